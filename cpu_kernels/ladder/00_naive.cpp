// Three loops and a softmax, as the formula is written: for each query all scores, their maximum, their
// exponentials, and then the output, number by number.
//
// What the compiler makes of it, at -O3: sums of floats keep the order they are written in, since another
// order rounds differently and only -ffast-math would permit it. So GCC multiplies q and k a vector at a
// time, then takes the products out of the vector and adds them one after the other. expf is a call to libm,
// score by score.
//
// What binds: latency. A pair of query and key is D additions for the score and D for the output, each of
// which waits some 4 cycles for the one before; the core overlaps a few such chains by looking ahead, and
// that is all the parallelism there is. The last loop walks down a column of V: of each cache line of 16
// floats it uses one, and comes back for the next D / 16 * 16 times.
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
