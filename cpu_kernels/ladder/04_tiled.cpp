// Tiles: 16 queries share 64 keys while those are in the L1 cache, as in FlashAttention (arXiv 2205.14135).
//
// Why it is faster, if K and V are larger than L2: step 03 reads all of them again for each query, 8 D bytes
// for 4 D operations. Here a tile comes from further away once for 16 queries, a sixteenth of the traffic.
// While they fit in L2, step 03 was too slow to wait for it, and nothing is gained. Under a causal mask much
// is lost: hidden pairs are computed, hidden, and summed with weight 0, and they are half of all.
//
// What else it brings: a tile's scores are known before its first exponential, so the maximum moves once a
// tile, not once a key. The next steps stand on that: each needs a block of scores to work on.
//
// What binds: the work inside the core, as before.
#include "ladder.hpp"
#include "vector.hpp"

namespace {

constexpr int64_t QUERIES = 16, KEYS = 64;

inline float dot(const float *q, const float *k, int64_t D) {
  F acc = all(0);
  for (int64_t d = 0; d < D; d += W) acc += load(q + d) * load(k + d);
  return sum(acc);
}

// One query, one tile of keys: move (m, l, out) on by the tile's scores, which become weights.
inline void softmax(float *s, int64_t keys, float &m, float &l, float *out, int64_t D) {
  float top = m;
  for (int64_t j = 0; j < keys; ++j) top = s[j] > top ? s[j] : top;
  const float factor = expf(m - top);
  for (int64_t d = 0; d < D; d += W) store(out + d, load(out + d) * factor);
  l *= factor;
  m = top;
  for (int64_t j = 0; j < keys; ++j) l += s[j] = expf(s[j] - m);
}

}  // namespace

LADDER_STEP(04) {
  const int64_t D = p.head_dim;
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
      for (int64_t key = 0; key < p.keys; key += KEYS) {
        const int64_t keys = smaller(KEYS, p.keys - key);
        for (int64_t i = 0; i < rows; ++i) {
          float *out = head.out + (row + i) * D;
          for (int64_t j = 0; j < keys; ++j) {
            const float score = dot(head.q + (row + i) * D, head.k + (key + j) * D, D) * p.scale;
            s[j] = key + j < visible(p, row + i) ? score : -INFINITY;
          }
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
