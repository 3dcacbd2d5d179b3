// The exponential, a vector at a time: a polynomial and integer arithmetic on the exponent (exp2.hpp).
// log2(e) goes into the scale, so that the power is one of two.
//
// Why it is faster: W weights for about a dozen instructions, in place of W calls. It is exact to some 4
// units in the last place, no worse than what the sums around it lose.
//
// What binds: the two products. For each multiply-add of a score two loads, and log2(W) shuffles and
// additions to end it; for each multiply-add of the output two loads and a store.
#include "ladder.hpp"
#include "vector.hpp"
#include "exp2.hpp"

namespace {

constexpr int64_t QUERIES = 16, KEYS = 64;

inline float dot(const float *q, const float *k, int64_t D) {
  F acc = all(0);
  for (int64_t d = 0; d < D; d += W) acc += load(q + d) * load(k + d);
  return sum(acc);
}

// One query, one tile of keys: move (m, l, out) on by the tile's scores, which become weights. Scores are in
// units of log2(e), so that 2^s is wanted. `keys` is rounded up to whole vectors: behind the last key stand
// scores of -inf.
inline void softmax(float *s, int64_t keys, float &m, float &l, float *out, int64_t D) {
  for (; keys % W; ++keys) s[keys] = -INFINITY;
  F highest = all(m), total = all(0);
  for (int64_t j = 0; j < keys; j += W) highest = larger(load(s + j), highest);
  float top = m;
  for (int i = 0; i < W; ++i) top = highest[i] > top ? highest[i] : top;
  const float factor = exp2f(m - top);  // once a tile
  for (int64_t d = 0; d < D; d += W) store(out + d, load(out + d) * factor);
  m = top;
  for (int64_t j = 0; j < keys; j += W) {
    const F weight = exp2(load(s + j) - m);
    total += weight;
    store(s + j, weight);
  }
  l = l * factor + sum(total);
}

}  // namespace

LADDER_STEP(06) {
  const int64_t D = p.head_dim;
  const float scale = p.scale * LOG2E;
  float s[KEYS], m[QUERIES], l[QUERIES];
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t row = 0; row < p.queries; row += QUERIES) {
      const int64_t rows = smaller(QUERIES, p.queries - row);
      for (int64_t i = 0; i < rows; ++i) {
        m[i] = -INFINITY;
        l[i] = 0;
        for (int64_t d = 0; d < D; d += W) store(head.out + (row + i) * D + d, all(0));
      }
      const int64_t end = visible(p, row + rows - 1);  // no query of the block sees the tiles behind it
      for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t keys = smaller(KEYS, end - key);
        const bool full = key + keys <= visible(p, row);  // every query sees the whole tile
        for (int64_t i = 0; i < rows; ++i) {
          float *out = head.out + (row + i) * D;
          for (int64_t j = 0; j < keys; ++j)
            s[j] = dot(head.q + (row + i) * D, head.k + (key + j) * D, D) * scale;
          if (!full)
            for (int64_t j = 0; j < keys; ++j) s[j] = key + j < visible(p, row + i) ? s[j] : -INFINITY;
          softmax(s, keys, m[i], l[i], out, D);
          for (int64_t j = 0; j < keys; ++j) {
            const float *v = head.v + (key + j) * D;
            for (int64_t d = 0; d < D; d += W) store(out + d, load(out + d) + s[j] * load(v + d));
          }
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        float *out = head.out + (row + i) * D;
        for (int64_t d = 0; d < D; d += W) store(out + d, load(out + d) / l[i]);
      }
    }
  }
}
