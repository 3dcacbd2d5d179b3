// Vectors along head_dim: W products at a time, added up lane by lane, and across the lanes once at the end.
//
// Why it is faster: we may reorder the sum where the compiler must not. A score is a chain of D / W
// multiply-adds in place of D, and the scores of the next keys, which need nothing of this one, overlap
// with it.
//
// What binds: everything but multiply-adds. A pair has 2 D / W of those, 8 at D = 64 and W = 16. Around them
// stand: two loads for each multiply-add of the score; two loads and a store for each of the output, for the
// output row is too long-lived for a register; log2(W) shuffles and additions, one after the other, to
// sum across the lanes; and a call of expf, some tens of instructions for one number.
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
