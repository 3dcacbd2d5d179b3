// The tiling mask: tiles that no query of the block sees are skipped, tiles that all see take no mask work.
// Only tiles on the diagonal ask pair by pair.
//
// Why it is faster: causal visibility hides nearly half of all pairs. The rule is decided once a tile from
// the block's first and last query, in two comparisons for 16 * 64 pairs. Without a mask nothing changes.
//
// What binds: as in step 03, the loads, shuffles and the calls of expf that surround the multiply-adds.
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

LADDER_STEP(05) {
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
      const int64_t end = visible(p, row + rows - 1);  // no query of the block sees the tiles behind it
      for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t keys = smaller(KEYS, end - key);
        const bool full = key + keys <= visible(p, row);  // every query sees the whole tile
        for (int64_t i = 0; i < rows; ++i) {
          float *out = head.out + (row + i) * D;
          for (int64_t j = 0; j < keys; ++j)
            s[j] = dot(head.q + (row + i) * D, head.k + (key + j) * D, D) * p.scale;
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
