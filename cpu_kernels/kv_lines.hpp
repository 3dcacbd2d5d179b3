// Rows of K and V as cache lines: asked for ahead of their use, loaded with zeros behind the end of a row,
// and four rows of int8 interleaved, as the integer products of tiles and of AVX512-VNNI take them.
#pragma once
#include "decode.hpp"

namespace FA_NAMESPACE {
namespace {

template <class T>
constexpr int LINE_ELEMENTS = 64 / static_cast<int>(sizeof(T));  // of a cache line

// Rows one after the other. A row's place is looked up where a page begins only: a division for each row
// would take longer than the work on it.
struct RowWalk {
  const KvRows &rows;
  int64_t key;
  const char *at = nullptr;
  int64_t left = 0;  // rows from here on that lie row_bytes apart

  const char *next() {
    if (left == 0) {
      at = rows.at(key);
      left = rows.run(key, INT64_MAX);
    }
    const char *const row = at;
    ++key;
    --left;
    at += rows.row_bytes;
    return row;
  }
};

// Rows of K or of V to come, asked for few by few between other work, each once and in order.
struct KvAhead {
  RowWalk walk;
  const int64_t lines;  // of a row
  int64_t past;

  __attribute__((always_inline)) inline void fetch(int64_t count) {
    for (const int64_t last = minimum(walk.key + count, past); walk.key < last;) {
      const char *const row = walk.next();
      for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(row + i * LINE, 0, 2);
    }
  }
};

// Where to ask for memory in a loop: two lines a turn, each turn `step` bytes further. No test, since a
// branch in an innermost loop makes GCC 12 keep accumulators in memory, and no more arithmetic, since that
// would take turns with the products. A hint never faults, so the last may point past the end. Lines go to
// L1: they are used within the next few thousand cycles.
struct LinesAhead {
  const char *at;
  int64_t step;

  __attribute__((always_inline)) inline void fetch() {
    __builtin_prefetch(at, 0, 3);
    __builtin_prefetch(at + LINE, 0, 3);
    at += step;
  }
};

// Rows to come, asked for at an even pace: each loop takes those that are due by its end.
struct PacedRows {
  const KvRows &source;
  bool dense;  // rows lie side by side, or nearly
  int64_t key = 0, past = 0;
  int64_t pace = 0, due = 0;  // rows a cycle, rows: in 1/ONE

  static constexpr int64_t ONE = 1 << 16;

  // Rows [first, first + n) from now on, within so many cycles.
  void begin(int64_t first, int64_t n, int64_t cycles) {
    key = first;
    past = first + n;
    pace = n * ONE / maximum<int64_t>(cycles, 1);
    due = 0;
  }

  // For a loop of so many turns. Rows that do not lie side by side are asked for one a turn, beyond those due
  // perhaps.
  LinesAhead take(int64_t turns, int64_t cycles_a_turn) {
    due += turns * cycles_a_turn * pace;
    if (key == past) return {source.base, 0};
    const int64_t n = source.run(key, minimum(maximum<int64_t>(due >> 16, 1), past - key));
    const char *const at = source.at(key);
    key += n;
    due -= n * ONE;
    return {at, dense ? static_cast<int32_t>(n * source.row_bytes) / static_cast<int32_t>(turns)
                      : source.row_bytes};
  }
};

template <class T>
inline __m512i load_line(const T *row, int64_t left) {  // left: elements up to the end of the row
  if (left >= LINE_ELEMENTS<T>) return _mm512_loadu_si512(row);
  if (left <= 0) return _mm512_setzero_si512();
  if (sizeof(T) == 1) return _mm512_maskz_loadu_epi8((1ull << left) - 1, row);
  return _mm512_maskz_loadu_epi16((1u << left) - 1, row);
}

// One line each of four neighbouring values, interleaved: four vectors of 16 columns.
inline void interleave(const __m512i (&line)[4], __m512i (&out)[4]) {
  const __m512i a = _mm512_unpacklo_epi8(line[0], line[1]), b = _mm512_unpackhi_epi8(line[0], line[1]);
  const __m512i c = _mm512_unpacklo_epi8(line[2], line[3]), d = _mm512_unpackhi_epi8(line[2], line[3]);
  out[0] = _mm512_unpacklo_epi16(a, c);
  out[1] = _mm512_unpackhi_epi16(a, c);
  out[2] = _mm512_unpacklo_epi16(b, d);
  out[3] = _mm512_unpackhi_epi16(b, d);
}

}  // namespace
}  // namespace FA_NAMESPACE
