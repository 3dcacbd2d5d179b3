// Walk V in the order it lies in memory: key by key, adding a whole row of V to the whole output row.
//
// Why it is faster: the D sums of a row do not depend on one another, so the compiler may work on a vector of
// them at a time without changing the order in any of them; and a cache line of V is used whole when it is
// there. Nothing but the order of two loops has changed.
//
// What binds: the score. Its D additions are still one chain, because they all go into one number.
#include "ladder.hpp"

LADDER_STEP(01) {
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
      for (int64_t d = 0; d < D; ++d) out[d] = 0;
      for (int64_t j = 0; j < keys; ++j)
        for (int64_t d = 0; d < D; ++d) out[d] += s[j] * head.v[j * D + d];
      for (int64_t d = 0; d < D; ++d) out[d] /= l;
    }
  }
}
