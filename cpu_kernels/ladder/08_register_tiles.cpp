// Register tiles: R keys times NV vectors of queries at once, all accumulators in registers
// (register_tile.hpp).
//
// Why it is faster: with AVX-512, 8 x 3 = 24 independent chains, where 8 hide the latency; and a step in d
// loads 3 vectors of Q^T and 8 scalars of K for 24 multiply-adds, less than half a load each in place of two.
// Likewise for the output: 8 columns times 3 vectors of queries. 48 queries now share each tile of K and V.
//
// What binds: for the first time mostly the multiply-add units: 2 D for each vector of scores. Of the rest,
// the softmax is some 20 instructions for such a vector, over a tenth of the time at D = 64. The output
// product suffers from addresses: it reads R floats of each row of V, half a cache line, with rows D floats
// apart. At D = 128 that is 512 bytes, and 128 such lines fall into 8 of the 64 sets of L1, of 12 lines each.
#include "block.hpp"
#include "register_tile.hpp"

LADDER_STEP(08) {
  const int64_t D = p.head_dim;
  Block b;
  alignas(64) float s[KEYS * QUERIES];
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t row = 0; row < p.queries; row += QUERIES) {
      begin(b, p, head.q, row, p.queries);
      const int64_t seen = visible(p, row + b.rows - 1);
      for (int64_t key = 0; key < seen; key += KEYS) {
        const int64_t keys = smaller(KEYS, seen - key);
        int64_t j = 0;
        for (; j + R <= keys; j += R) score_rows<R>(b.qt, head.k + (key + j) * D, D, s + j * QUERIES);
        for (; j < keys; ++j) score_rows<1>(b.qt, head.k + (key + j) * D, D, s + j * QUERIES);
        softmax(b, s, key, keys, key + keys <= visible(p, row), D);
        for (int64_t d = 0; d < D; d += R)
          output_columns(s, head.v + key * D + d, D, keys, b.ot + d * QUERIES);
      }
      end(b, head.out, D);
    }
  }
}
