// The two products of attention, S^T = K Q^T and O^T += V^T P^T, one register tile at a time: KR rows of the
// result by NV vectors of queries, out of SV vectors that lie side by side.
//
// Each kernel is a function of its own: inlined into the loops over tiles, its accumulators compete with
// theirs for registers, and GCC keeps some in memory, which costs a third of the speed.
#pragma once
#include "isa/simd.hpp"

namespace FA_NAMESPACE {
namespace {

// What the products broadcast from: panels of KR keys, each holding coordinate after coordinate of its keys,
// or of KR columns of V, each holding key after key. So a register tile reads one stream, KR neighbours at a
// time; KR streams, one from each row, measured slower. `stride` floats a
// panel.
struct Panels {
  const float *at;
  int64_t stride;
};

// acc[r][n] += panel[i * KR + r] * y[i][n] for i < count.
template <int SV, int NV, int R, int UNROLL>
inline void multiply_step(F (&acc)[R][NV], const float *panel, const float *y) {
  FA_UNROLL for (int u = 0; u < UNROLL; ++u) {
    F vector[NV];
    FA_UNROLL for (int n = 0; n < NV; ++n) vector[n] = load(y + (u * SV + n) * W);
    FA_UNROLL for (int r = 0; r < R; ++r) {
      const F scalar = set1(panel[u * KR + r]);
      FA_UNROLL for (int n = 0; n < NV; ++n) accumulate(acc[r][n], scalar, vector[n]);
    }
  }
}

template <int SV, int NV, int R>
inline void multiply(F (&acc)[R][NV], const float *panel, const float *y, int64_t count) {
  constexpr int UNROLL = 2;
  int64_t i = 0;
  for (; i + UNROLL <= count; i += UNROLL, panel += UNROLL * KR, y += UNROLL * SV * W)
    multiply_step<SV, NV, R, UNROLL>(acc, panel, y);
  for (; i < count; ++i, panel += KR, y += SV * W) multiply_step<SV, NV, R, 1>(acc, panel, y);
}

// What is added to a score, minus the row's reference maximum, comes last: were it the first of the sum, each
// product would be rounded at the maximum's size, which is often far above the product's.
template <int SV, int NV, int K, bool TOP>
[[gnu::noinline]] void score_rows(const float *qt, const float *k, int64_t head_dim, const float *shift,
                                  float *s, float *top) {
  F acc[K][NV];
  FA_UNROLL for (int r = 0; r < K; ++r) { FA_UNROLL for (int n = 0; n < NV; ++n) acc[r][n] = zero(); }
  multiply<SV, NV, K>(acc, k, qt, head_dim);
  FA_UNROLL for (int n = 0; n < NV; ++n) {
    const F added = load(shift + n * W);
    FA_UNROLL for (int r = 0; r < K; ++r) acc[r][n] = add(acc[r][n], added);
  }
  FA_UNROLL for (int r = 0; r < K; ++r) {
    FA_UNROLL for (int n = 0; n < NV; ++n) store(s + (r * SV + n) * W, acc[r][n]);
  }
  if constexpr (TOP) {
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      F highest = load(top + n * W);
      FA_UNROLL for (int r = 0; r < K; ++r) highest = max(acc[r][n], highest);
      store(top + n * W, highest);
    }
  }
}

// A tile's sum begins at zero, and the output takes it up whole: so the error of an output grows with the
// keys of a tile and the number of tiles, not with their product.
template <int SV, int NV, int C>
[[gnu::noinline]] void output_columns(const float *s, const float *panel, int64_t keys, float *ot) {
  F acc[C][NV];
  FA_UNROLL for (int c = 0; c < C; ++c) { FA_UNROLL for (int n = 0; n < NV; ++n) acc[c][n] = zero(); }
  multiply<SV, NV, C>(acc, panel, s, keys);
  FA_UNROLL for (int c = 0; c < C; ++c) {
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      float *const at = ot + (c * SV + n) * W;
      store(at, add(load(at), acc[c][n]));
    }
  }
}

}  // namespace
}  // namespace FA_NAMESPACE
