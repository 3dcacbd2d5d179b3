// Rows of K and V as cache lines: asked for ahead of their use, loaded with zeros behind the end of a row, and
// four rows of int8 interleaved, as the integer products of tiles and of AVX512-VNNI take them.
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

// The same at an even pace: work says how long it takes, and as many rows are asked for as are due by then.
struct PacedAhead {
  KvAhead rows;
  int64_t pace = 0, due = 0;  // rows a cycle, rows: in 1/ONE

  static constexpr int64_t ONE = 1 << 16;

  __attribute__((always_inline)) inline void spend(int64_t cycles) {
    for (due += cycles * pace; due >= ONE; due -= ONE) rows.fetch(1);
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
