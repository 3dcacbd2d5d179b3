// Register tiles: R keys times NV vectors of queries at once, all accumulators in registers (vector.hpp).
//
// Why it is faster: with AVX-512, 8 x 3 = 24 independent chains, where 8 hide the latency; and a step in d
// loads 3 vectors of Q^T and 8 scalars of K for 24 multiply-adds, less than half a load each in place of two.
// Likewise for the output: 8 columns times 3 vectors of queries. 48 queries now share each tile of K and V.
//
// What binds: for the first time mostly the multiply-add units: 2 D for each vector of scores. Of the rest,
// the softmax is some 20 instructions for such a vector, a tenth at D = 64. The output product suffers from
// addresses: it reads 8 floats of each row of V, half a cache line, with rows D floats apart. At D = 128 that
// is 512 bytes, and 128 such lines fall into 8 of the 64 sets of L1, which hold 12 lines each.
#include "ladder.hpp"
#include "vector.hpp"
#include "exp2.hpp"

namespace {

constexpr int64_t QUERIES = NV * W, KEYS = 128, MAX_DIM = 256;

struct Block {
  alignas(64) float qt[MAX_DIM * QUERIES], ot[MAX_DIM * QUERIES], s[KEYS * QUERIES];
  F m[NV], l[NV];
  I seen[NV];  // keys each query sees
};

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

inline void output_columns(const float *s, const float *v, int64_t keys, int64_t D, float *ot) {
  F acc[R][NV];
  for (int c = 0; c < R; ++c)
    for (int n = 0; n < NV; ++n) acc[c][n] = load(ot + (c * NV + n) * W);
  for (int64_t j = 0; j < keys; ++j) {
    F weight[NV];
    for (int n = 0; n < NV; ++n) weight[n] = load(s + (j * NV + n) * W);
    for (int c = 0; c < R; ++c)
      for (int n = 0; n < NV; ++n) acc[c][n] += weight[n] * v[j * D + c];
  }
  for (int c = 0; c < R; ++c)
    for (int n = 0; n < NV; ++n) store(ot + (c * NV + n) * W, acc[c][n]);
}

void softmax(Block &b, int64_t key, int64_t keys, bool full, int64_t D) {
  for (int n = 0; n < NV; ++n) {
    F top = b.m[n];
    for (int64_t j = 0; j < keys; ++j) {
      float *at = b.s + (j * NV + n) * W;
      if (!full) store(at, static_cast<int32_t>(key + j) < b.seen[n] ? load(at) : all(-INFINITY));
      top = larger(load(at), top);
    }
    const F factor = exp2(b.m[n] - top);
    for (int64_t d = 0; d < D; ++d) {
      float *at = b.ot + (d * NV + n) * W;
      store(at, load(at) * factor);
    }
    F total = b.l[n] * factor;
    for (int64_t j = 0; j < keys; ++j) {
      float *at = b.s + (j * NV + n) * W;
      const F weight = exp2(load(at) - top);
      store(at, weight);
      total += weight;
    }
    b.m[n] = top;
    b.l[n] = total;
  }
}

}  // namespace

LADDER_STEP(08) {
  const int64_t D = p.head_dim;
  Block b;
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t row = 0; row < p.queries; row += QUERIES) {
      const int64_t rows = smaller(QUERIES, p.queries - row);
      for (int64_t i = 0; i < QUERIES; ++i) {
        const int64_t query = row + smaller(i, rows - 1);  // lanes left over repeat the last query
        b.m[i / W][i % W] = -INFINITY;
        b.l[i / W][i % W] = 0;
        b.seen[i / W][i % W] = static_cast<int32_t>(visible(p, query));
        for (int64_t d = 0; d < D; ++d) {
          b.qt[d * QUERIES + i] = head.q[query * D + d] * p.scale * LOG2E;
          b.ot[d * QUERIES + i] = 0;
        }
      }
      const int64_t end = visible(p, row + rows - 1);
      for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t keys = smaller(KEYS, end - key);
        int64_t j = 0;
        for (; j + R <= keys; j += R) score_rows<R>(b.qt, head.k + (key + j) * D, D, b.s + j * QUERIES);
        for (; j < keys; ++j) score_rows<1>(b.qt, head.k + (key + j) * D, D, b.s + j * QUERIES);
        softmax(b, key, keys, key + keys <= visible(p, row), D);
        for (int64_t d = 0; d < D; d += R)
          output_columns(b.s, head.v + key * D + d, keys, D, b.ot + d * QUERIES);
      }
      for (int64_t i = 0; i < rows; ++i) {
        const float share = 1 / b.l[i / W][i % W];
        for (int64_t d = 0; d < D; ++d) head.out[(row + i) * D + d] = b.ot[d * QUERIES + i] * share;
      }
    }
  }
}
