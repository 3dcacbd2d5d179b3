// A block of queries as steps 08 and 09 hold it, and all of its work but the two products: step 07's, for NV
// vectors of queries in place of one.
#pragma once
#include "exp2.hpp"
#include "ladder.hpp"

namespace {

constexpr int64_t QUERIES = NV * W, KEYS = 128, MAX_DIM = 256;

struct Block {
  alignas(64) float qt[MAX_DIM * QUERIES], ot[MAX_DIM * QUERIES];  // Q^T, in units of log2(e), and O^T
  F m[NV], l[NV];
  I seen[NV];  // keys each query sees
  int64_t row, rows;
};

inline void begin(Block &b, const ladder_problem &p, const float *q, int64_t row, int64_t last) {
  b.row = row;
  b.rows = smaller(QUERIES, last - row);
  for (int64_t i = 0; i < QUERIES; ++i) {
    const int64_t query = b.row + smaller(i, b.rows - 1);  // lanes left over repeat the last query
    b.m[i / W][i % W] = -INFINITY;
    b.l[i / W][i % W] = 0;
    b.seen[i / W][i % W] = static_cast<int32_t>(visible(p, query));
    for (int64_t d = 0; d < p.head_dim; ++d) {
      b.qt[d * QUERIES + i] = q[query * p.head_dim + d] * p.scale * LOG2E;
      b.ot[d * QUERIES + i] = 0;
    }
  }
}

inline void end(const Block &b, float *out, int64_t D) {
  for (int64_t i = 0; i < b.rows; ++i) {
    const float share = 1 / b.l[i / W][i % W];
    for (int64_t d = 0; d < D; ++d) out[(b.row + i) * D + d] = b.ot[d * QUERIES + i] * share;
  }
}

// Scores of a tile become weights; (m, l, O^T) move on with them.
inline void softmax(Block &b, float *scores, int64_t key, int64_t keys, bool full, int64_t D) {
  for (int n = 0; n < NV; ++n) {
    F top = b.m[n];
    for (int64_t j = 0; j < keys; ++j) {
      float *at = scores + (j * NV + n) * W;
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
      float *at = scores + (j * NV + n) * W;
      const F weight = exp2(load(at) - top);
      store(at, weight);
      total += weight;
    }
    b.m[n] = top;
    b.l[n] = total;
  }
}

}  // namespace
