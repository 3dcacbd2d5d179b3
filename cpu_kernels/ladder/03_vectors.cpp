#include "ladder.hpp"
#include "vector.hpp"

namespace {

inline float dot(const float *q, const float *k, int64_t D) {
  F acc = all(0);
  for (int64_t d = 0; d < D; d += W) acc += load(q + d) * load(k + d);
  return sum(acc);
}

}  // namespace

LADDER_STEP(03) {
  const int64_t D = p.head_dim;
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t i = 0; i < p.queries; ++i) {
      float *out = head.out + i * D, m = -INFINITY, l = 0;
      for (int64_t d = 0; d < D; d += W) store(out + d, all(0));
      for (int64_t j = 0; j < visible(p, i); ++j) {
        const float s = dot(head.q + i * D, head.k + j * D, D) * p.scale;
        if (s > m) {
          const float factor = expf(m - s);
          for (int64_t d = 0; d < D; d += W) store(out + d, load(out + d) * factor);
          l *= factor;
          m = s;
        }
        const float weight = expf(s - m), *v = head.v + j * D;
        for (int64_t d = 0; d < D; d += W) store(out + d, load(out + d) + weight * load(v + d));
        l += weight;
      }
      for (int64_t d = 0; d < D; d += W) store(out + d, load(out + d) / l);
    }
  }
}
