// The register tiles of steps 08 and 09: loops over constants that the compiler unrolls, so that each
// acc[r][n] is a register. In the inner loop stand NV loads of vectors, R broadcast loads, and R * NV
// multiply-adds.
#pragma once
#include "vector.hpp"

namespace {

// Scores of N keys: s[r][n] = the sum over d of Q^T[d][n] * k[r][d].
template <int N>
inline void score_rows(const float *qt, const float *k, int64_t D, float *s) {
  F acc[N][NV] = {};
  for (int64_t d = 0; d < D; ++d) {
    F q[NV];
    for (int n = 0; n < NV; ++n) q[n] = load(qt + (d * NV + n) * W);
    for (int r = 0; r < N; ++r)
      for (int n = 0; n < NV; ++n) acc[r][n] += q[n] * k[r * D + d];
  }
  for (int r = 0; r < N; ++r)
    for (int n = 0; n < NV; ++n) store(s + (r * NV + n) * W, acc[r][n]);
}

// R columns of the output: O^T[c][n] += the sum over keys of s[j][n] * v[j][c]. Rows of v lie `stride` apart.
inline void output_columns(const float *s, const float *v, int64_t stride, int64_t keys, float *ot) {
  F acc[R][NV];
  for (int c = 0; c < R; ++c)
    for (int n = 0; n < NV; ++n) acc[c][n] = load(ot + (c * NV + n) * W);
  for (int64_t j = 0; j < keys; ++j) {
    F weight[NV];
    for (int n = 0; n < NV; ++n) weight[n] = load(s + (j * NV + n) * W);
    for (int c = 0; c < R; ++c)
      for (int n = 0; n < NV; ++n) acc[c][n] += weight[n] * v[j * stride + c];
  }
  for (int c = 0; c < R; ++c)
    for (int n = 0; n < NV; ++n) store(ot + (c * NV + n) * W, acc[c][n]);
}

}  // namespace
