// The two products of attention for few query rows: a vector holds four neighbours of each of W / 4 rows.
//
// So one load repeats four elements of a key (or value) for all rows of a vector, and it serves NV vectors.
// The sums of four keys end side by side after a few shuffles, and a weight is needed in the four lanes of
// its row, where its four columns of the output stand. With a row alone in each lane, as in prefill, every
// element would be a load of its own; with head_dim alone in the lanes, every score would be a sum across
// them.
#pragma once
#include "isa/simd.hpp"
#include "line_walk.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int QUAD = 4;
constexpr int QUAD_ROWS = W / QUAD;           // query rows of a vector
constexpr int QUAD_NV = W >= 16 ? 4 : 3;      // vectors that share each key and value, at most
constexpr bool MANY = DECODE_ACC >= 16;       // registers: 32, not 16

// Sizes of the register tiles, keys and quads of columns: so that their accumulators, NV loaded vectors and
// what is repeated stay in registers.
constexpr int keys_of(int nv) { return MANY ? (nv == 4 ? 4 : 8) : nv == 1 ? 8 : 4; }
constexpr int columns_of(int nv) {
  return MANY ? (nv == 1 ? 16 : nv == 4 ? 4 : 8) : nv == 1 ? 8 : 4;
}  // quads

// acc[j][n] += q[n] k_j[0..4) of one step along head_dim.
template <int NV, int KEYS>
inline void score_step(F (&acc)[KEYS][NV], const float *q, const float *k, int64_t stride) {
  F query[NV];
  FA_UNROLL for (int n = 0; n < NV; ++n) query[n] = load(q + n * W);
  FA_UNROLL for (int j = 0; j < KEYS; ++j) {
    const F key = spread4(k + j * stride);
    FA_UNROLL for (int n = 0; n < NV; ++n) accumulate(acc[j][n], query[n], key);
  }
}

// s[four keys][n] = <q, k>, each quad four keys of one row. q: [quads of head_dim][n], whose number is a
// multiple of 4. For each four of them `share` lines are asked for, from `ahead` on.
template <int NV, int KEYS>
[[gnu::noinline]] void score_keys(const float *q, const float *k, int64_t stride, int64_t quads, float *s,
                                  const char *ahead, int64_t share) {
  F acc[KEYS][NV];
  FA_UNROLL for (int j = 0; j < KEYS; ++j) { FA_UNROLL for (int n = 0; n < NV; ++n) acc[j][n] = zero(); }
  const float *const end = k + quads * QUAD;
  do {
    for (const char *const past = ahead + share * CACHE_LINE; ahead < past; ahead += CACHE_LINE)
      prefetch_line(ahead);
    FA_UNROLL for (int i = 0; i < 4; ++i) score_step(acc, q + i * NV * W, k + i * QUAD, stride);
    q += 4 * NV * W;
    k += 4 * QUAD;
  } while (k < end);
  FA_UNROLL for (int j = 0; j < KEYS; j += QUAD) {
    FA_UNROLL for (int n = 0; n < NV; ++n)
        store(s + (j / QUAD * NV + n) * W, sum_quads(acc[j][n], acc[j + 1][n], acc[j + 2][n], acc[j + 3][n]));
  }
}

// out[quad of columns][n] += sum over keys of weights[key][n] v[key], which begins at zero (output_columns in
// products.hpp says why). For each key `share` lines are asked
// for, from `ahead` on.
template <int NV, int QUADS>
[[gnu::noinline]] void output_quads(const float *weights, const float *v, int64_t stride, int64_t keys,
                                    float *out, const char *ahead, int64_t share) {
  F acc[QUADS][NV];
  FA_UNROLL for (int c = 0; c < QUADS; ++c) { FA_UNROLL for (int n = 0; n < NV; ++n) acc[c][n] = zero(); }
  const float *const end = v + keys * stride;
  do {
    for (const char *const past = ahead + share * CACHE_LINE; ahead < past; ahead += CACHE_LINE)
      prefetch_line(ahead);
    F weight[NV];
    FA_UNROLL for (int n = 0; n < NV; ++n) weight[n] = load(weights + n * W);
    FA_UNROLL for (int c = 0; c < QUADS; ++c) {
      const F value = spread4(v + c * QUAD);
      FA_UNROLL for (int n = 0; n < NV; ++n) accumulate(acc[c][n], weight[n], value);
    }
    weights += NV * W;
    v += stride;
  } while (v < end);
  FA_UNROLL for (int c = 0; c < QUADS; ++c) {
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      float *const at = out + (c * NV + n) * W;
      store(at, add(load(at), acc[c][n]));
    }
  }
}

// All keys of a tile, in fours (what lies behind the last one must be readable).
template <int NV>
inline void quad_scores(const float *q, const float *k, int64_t stride, int64_t keys, int64_t quads, float *s,
                        LineWalk &ahead, int64_t share) {
  constexpr int KEYS = keys_of(NV);
  const int64_t lines = share * (quads / 4);
  int64_t j = 0;
  for (; j + KEYS <= keys; j += KEYS)
    score_keys<NV, KEYS>(q, k + j * stride, stride, quads, s + j / QUAD * NV * W, ahead.take(lines, k),
                         share);
  for (; j < keys; j += QUAD)
    score_keys<NV, QUAD>(q, k + j * stride, stride, quads, s + j / QUAD * NV * W, ahead.take(lines, k),
                         share);
}

// All columns, as many at a time as are left.
template <int NV, int QUADS>
inline void quad_outputs(const float *weights, const float *v, int64_t stride, int64_t keys, int64_t quads,
                         float *out, LineWalk &ahead, int64_t share) {
  for (; quads >= QUADS; quads -= QUADS, v += QUADS * QUAD, out += QUADS * NV * W)
    output_quads<NV, QUADS>(weights, v, stride, keys, out, ahead.take(share * keys, v), share);
  if constexpr (QUADS > 1) quad_outputs<NV, QUADS / 2>(weights, v, stride, keys, quads, out, ahead, share);
}

}  // namespace
}  // namespace FA_NAMESPACE
