// Queries in the lanes: W queries side by side, so that one multiply-add takes one key a step further for
// all.
//
// Q is transposed once for a block, and so is the output. The score of a key is the sum over d of
// Q^T[d] (a vector: element d of W queries) times K[j][d] (a scalar, broadcast by its load).
//
// Why it is faster: nothing is summed across lanes any more, neither scores nor maxima nor denominators; a
// column of the output stays in a register for all keys of a tile; and masks and exponentials work on whole
// vectors whatever the number of keys. head_dim need not be a multiple of anything.
//
// With 8 lanes (AVX2) the sums across lanes were shorter, and this step alone gains nothing; the next one
// does.
//
// What binds: latency again. Each score, and each output column, is one chain of multiply-adds of 4 cycles
// each, where the core could start two every cycle: it would take 8 chains at once to keep it busy. And each
// multiply-add loads both a vector and a scalar, of which the core can load two a cycle.
#include "ladder.hpp"
#include "vector.hpp"
#include "exp2.hpp"

namespace {

constexpr int64_t QUERIES = W, KEYS = 64, MAX_DIM = 256;

struct Block {
  alignas(64) float qt[MAX_DIM * QUERIES], ot[MAX_DIM * QUERIES], s[KEYS * QUERIES];
  F m, l;
  I seen;  // keys each query sees
};

inline F score(const float *qt, const float *k, int64_t D) {
  F acc = all(0);
  for (int64_t d = 0; d < D; ++d) acc += load(qt + d * W) * k[d];
  return acc;
}

inline F column(const float *s, const float *v, int64_t keys, int64_t D, F acc) {
  for (int64_t j = 0; j < keys; ++j) acc += load(s + j * W) * v[j * D];
  return acc;
}

void softmax(Block &b, int64_t key, int64_t keys, bool full, int64_t D) {
  F top = b.m;
  for (int64_t j = 0; j < keys; ++j) {
    F s = load(b.s + j * W);
    if (!full) s = static_cast<int32_t>(key + j) < b.seen ? s : all(-INFINITY);
    store(b.s + j * W, s);
    top = larger(s, top);
  }
  const F factor = exp2(b.m - top);
  for (int64_t d = 0; d < D; ++d) store(b.ot + d * W, load(b.ot + d * W) * factor);
  b.l *= factor;
  b.m = top;
  for (int64_t j = 0; j < keys; ++j) {
    const F weight = exp2(load(b.s + j * W) - top);
    store(b.s + j * W, weight);
    b.l += weight;
  }
}

}  // namespace

LADDER_STEP(07) {
  const int64_t D = p.head_dim;
  Block b;
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t row = 0; row < p.queries; row += QUERIES) {
      const int64_t rows = smaller(QUERIES, p.queries - row);
      b.m = all(-INFINITY);
      b.l = all(0);
      for (int64_t i = 0; i < W; ++i) {
        const int64_t query = row + smaller(i, rows - 1);  // lanes left over repeat the last query
        b.seen[i] = static_cast<int32_t>(visible(p, query));
        for (int64_t d = 0; d < D; ++d) {
          b.qt[d * W + i] = head.q[query * D + d] * p.scale * LOG2E;
          b.ot[d * W + i] = 0;
        }
      }
      const int64_t end = visible(p, row + rows - 1);
      for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t keys = smaller(KEYS, end - key);
        for (int64_t j = 0; j < keys; ++j) store(b.s + j * W, score(b.qt, head.k + (key + j) * D, D));
        softmax(b, key, keys, key + keys <= visible(p, row), D);
        for (int64_t d = 0; d < D; ++d)
          store(b.ot + d * W, column(b.s, head.v + key * D + d, keys, D, load(b.ot + d * W)));
      }
      const F share = 1 / b.l;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t d = 0; d < D; ++d) head.out[(row + i) * D + d] = b.ot[d * W + i] * share[i];
    }
  }
}
