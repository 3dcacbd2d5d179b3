// What happens to a score between the product and softmax (reference/standard.py: softcap,
// then additive terms, then the mask).
#pragma once
#include "visibility.cuh"

// Scores that are changed stay natural, as the terms are: a mask entry of the lowest float32, times log2(e),
// would be -inf and hide its key. Scores that are not stay plain products: scale and log2(e) are one factor,
// applied inside the exponential.
struct Modifiers {
  const Problem &p;
  const Sequence &s;
  const float scale, cap, inverse_cap;

  DEVICE Modifiers(const Problem &problem, const Sequence &sequence)
      : p(problem),
        s(sequence),
        scale(problem.scale),
        cap(problem.softcap),
        inverse_cap(problem.softcap > 0 ? 1.0f / problem.softcap : 0.0f) {}

  // The natural score of one key to one query of one head; -inf where the mask hides it.
  DEVICE float apply(float product, i64 head, i64 query, int key) const {
    float x = product * scale;
    if (cap > 0) x = cap * tanh_exact(x * inverse_cap);
    if (p.alibi_slopes) {
      const float slope = p.alibi_slopes[s.batch * p.alibi_batch_stride + head];
      x += slope * static_cast<float>(key - (s.q_offset + query));
    }
    if (p.mask_kind != MASK_NONE) {
      const i64 at = s.batch * p.mask_strides[0] + head * p.mask_strides[1] + query * p.mask_strides[2] +
                     key * p.mask_strides[3];
      const float term = p.mask_kind == MASK_BOOL ? (static_cast<const u8 *>(p.mask)[at] ? 0.0f : -INFINITY)
                                                  : static_cast<const float *>(p.mask)[at];
      // Hidden rather than added to: a score of +inf or NaN must not survive its mask.
      x = term == -INFINITY ? -INFINITY : x + term;
    }
    return x;
  }

  // tanh to float32 precision (tanh.approx is right to 11 bits): odd polynomial near 0 (coefficients: Cephes,
  // tanhf), 1 - 2 / (e^2x + 1) elsewhere.
  static DEVICE float tanh_exact(float x) {
    const float a = fabsf(x), y = x * x;
    float r = fmaf(y, -5.70498872745e-3f, 2.06390887954e-2f);
    r = fmaf(y, r, -5.37397155531e-2f);
    r = fmaf(y, r, 1.33314422036e-1f);
    r = fmaf(y, r, -3.33332819422e-1f);
    const float far = 1.0f - 2.0f / (exp2_fast(fminf(a, 20.0f) * (2 * LOG2E)) + 1.0f);
    if (a > 0.625f) return copysignf(far, x);
    return fmaf(x * y, r, x);  // a NaN stays one
  }
};
