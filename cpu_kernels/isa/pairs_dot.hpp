// Products of bfloat16 pairs with AVX512-BF16. One of two files with the same names (see pairs_amx.hpp).
//
// C (rows x NV W floats) = A B, or += with ADD. A is rows of bfloat16, `pairs` pairs long, as its layout
// says; B holds in each of `pairs` rows NV W pairs of bfloat16, one pair to a lane: so a pair of A,
// broadcast, meets a row of B in one dot instruction, which adds two products to each sum.
#pragma once
#include "simd.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int PAIR_NV = MAX_NV;  // vectors of queries in a sub-block
constexpr int PAIR_STEP = 1;     // pairs come in multiples of this

// How A lies in memory, in elements: 16 rows make a block, 32 columns a step. Rows are an odd number of cache
// lines long, so that they spread over the sets of L1.
struct PairLayout {
  int64_t row, step, block;
  explicit PairLayout(int64_t columns)
      : row((round_up(columns, 32) / 32 | 1) * 32), step(32), block(16 * row) {}
};

struct PairUnit {
  PairUnit() {}
};

inline __m512bh pair_lanes(const uint32_t *p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
inline __m512bh pair_everywhere(const uint16_t *p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(pair)));
}

template <int NV, bool ADD>
void pair_product(const uint16_t *a, const PairLayout &layout, const uint32_t *b, int64_t pairs, float *c,
                  int64_t rows) {
  constexpr int R = 8;
  for (int64_t r = 0; r < rows; r += R, a += R * layout.row, c += R * NV * W) {
    F acc[R][NV];
    for (int i = 0; i < R; ++i)
      for (int n = 0; n < NV; ++n) acc[i][n] = ADD ? load(c + (i * NV + n) * W) : zero();
#pragma GCC unroll 2
    for (int64_t p = 0; p < pairs; ++p) {
      __m512bh lanes[NV];
      for (int n = 0; n < NV; ++n) lanes[n] = pair_lanes(b + (p * NV + n) * W);
      for (int i = 0; i < R; ++i) {
        const __m512bh pair = pair_everywhere(a + i * layout.row + 2 * p);
        for (int n = 0; n < NV; ++n) acc[i][n] = _mm512_dpbf16_ps(acc[i][n], pair, lanes[n]);
      }
    }
    for (int i = 0; i < R; ++i)
      for (int n = 0; n < NV; ++n) store(c + (i * NV + n) * W, acc[i][n]);
  }
}

}  // namespace
}  // namespace FA_NAMESPACE
