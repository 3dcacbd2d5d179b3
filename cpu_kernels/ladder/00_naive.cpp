#include "ladder.hpp"

LADDER_STEP(00) {
  const int64_t D = p.head_dim;
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t i = 0; i < p.queries; ++i) {
      const float *q = head.q + i * D;
      float *out = head.out + i * D, *s = p.scores;
      const int64_t keys = visible(p, i);
      for (int64_t j = 0; j < keys; ++j) {
        float dot = 0;
        for (int64_t d = 0; d < D; ++d) dot += q[d] * head.k[j * D + d];
        s[j] = dot * p.scale;
      }
      float m = -INFINITY, l = 0;
      for (int64_t j = 0; j < keys; ++j) m = s[j] > m ? s[j] : m;
      for (int64_t j = 0; j < keys; ++j) l += s[j] = expf(s[j] - m);
      for (int64_t d = 0; d < D; ++d) {
        float total = 0;
        for (int64_t j = 0; j < keys; ++j) total += s[j] * head.v[j * D + d];
        out[d] = total / l;
      }
    }
  }
}
