// Which keys a query sees (reference/visibility.py), and what that makes of a tile: empty tiles are skipped,
// full ones need no work, and only partial ones compare numbers (reference/tiling_mask.py).
#pragma once
#include "problem.cuh"

// Keys [first, past) that a query sees as far as its position tells; the mask may hide more.
struct Interval {
  int first, past;

  DEVICE bool holds(int key) const { return key >= first && key < past; }
  DEVICE bool empty() const { return first >= past; }
};

DEVICE Interval interval_of(const Problem &p, const Sequence &s, i64 query) {
  const i64 position = s.q_offset + query;
  i64 first = 0, past = s.kv_length;
  if (p.window_left >= 0) first = maximum(first, position - p.window_left);
  if (p.window_right >= 0) past = minimum(past, position + p.window_right + 1);
  return {static_cast<int>(minimum(first, s.kv_length)), static_cast<int>(maximum(past, i64(0)))};
}

// Of several rows that stand at positions from one's to another's: keys that any of them sees, and keys that
// all of them see. Both ends of an interval grow with the position.
struct Span {
  Interval any, all;

  DEVICE Span(const Interval &low, const Interval &high)
      : any{low.first, high.past}, all{high.first, low.past} {}
  DEVICE bool empty(int begin, int end) const { return end <= any.first || begin >= any.past; }
  DEVICE bool full(int begin, int end) const { return begin >= all.first && end <= all.past; }
};

// The intervals of neighbouring rows in 32 bits: both ends move by one key a row, up to the last key. Rows count from
// the first, and are less than 2^16.
struct Band {
  int first, past;  // of row 0; nobody sees keys before `first`, or from `past` on
  const int keys;

  DEVICE Band(const Problem &p, const Sequence &s, i64 query) : keys(static_cast<int>(s.kv_length)) {
    const i64 position = s.q_offset + query;
    first = p.window_left >= 0 ? clamp(position - p.window_left) : LOWEST;
    past = p.window_right >= 0 ? clamp(position + p.window_right + 1) : keys;
  }
  DEVICE int first_of(int row) const { return first + row; }
  DEVICE int past_of(int row) const { return minimum(past + row, keys); }

 private:
  static constexpr int LOWEST = -(1 << 16);  // below 0 for any row
  DEVICE int clamp(i64 key) const { return static_cast<int>(minimum(maximum(key, i64(LOWEST)), keys)); }
};
