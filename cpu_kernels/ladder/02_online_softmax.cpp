#include "ladder.hpp"

LADDER_STEP(02) {
  const int64_t D = p.head_dim;
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t i = 0; i < p.queries; ++i) {
      const float *q = head.q + i * D;
      float *out = head.out + i * D, m = -INFINITY, l = 0;
      for (int64_t d = 0; d < D; ++d) out[d] = 0;
      for (int64_t j = 0; j < visible(p, i); ++j) {
        float dot = 0;
        for (int64_t d = 0; d < D; ++d) dot += q[d] * head.k[j * D + d];
        const float s = dot * p.scale;
        if (s > m) {  // a new maximum: what was summed so far was relative to the old one
          const float factor = expf(m - s);
          for (int64_t d = 0; d < D; ++d) out[d] *= factor;
          l *= factor;
          m = s;
        }
        const float weight = expf(s - m);
        for (int64_t d = 0; d < D; ++d) out[d] += weight * head.v[j * D + d];
        l += weight;
      }
      for (int64_t d = 0; d < D; ++d) out[d] /= l;
    }
  }
}
