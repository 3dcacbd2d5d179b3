// One pass over the keys: keep the largest score so far, and rescale what was summed when it grows.
//
// The idea is Milakov and Gimelshein's (arXiv 1805.02867), carried from the denominator to the output row.
// The row of scores is gone: memory beyond the output no longer grows with the number of keys.
//
// Why it is not faster: the row of scores lay in the cache anyway, and the arithmetic is the same, with a
// comparison more. The gain is freedom. A key is done with when it was looked at once, so that keys may come
// in pieces of any size; every step from here on relies on it. What binds is what bound before.
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
