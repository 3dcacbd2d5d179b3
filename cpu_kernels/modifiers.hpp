// What happens to a tile of scores between the product and the softmax, only where a problem asks for it:
// softcap, ALiBi, masks, visibility. Queries stand in the lanes: s[key][lane].
//
// Plain scores are in units of log2(e), so that the exponential is a power of 2 at once. Scores that are
// modified stay natural, as the terms are: a mask entry of the lowest float32, times log2(e), would be -inf
// and hide its key. Mirrors reference/standard.py (order of the terms) and reference/visibility.py.
#pragma once
#include "rows.hpp"

namespace FA_NAMESPACE {
namespace {

// tanh to float32 precision: odd polynomial near 0 (coefficients: Cephes, tanhf), 1 - 2 / (e^2x + 1)
// elsewhere.
inline F tanh(F x) {
  const F a = abs(x), z = mul(x, x);
  F p = set1(-5.70498872745e-3f);
  p = fma(p, z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  const F near_zero = fma(mul(p, z), x, x);
  const F e = exp2(mul(min(a, set1(20.0f)), set1(2 * LOG2E)));
  const F far = sub(set1(1.0f), div(set1(2.0f), add(e, set1(1.0f))));
  return select_gt(a, set1(0.625f), select_gt(zero(), x, sub(zero(), far), far),
                   near_zero);  // a NaN stays one
}

// Where the mask of one query row begins, in elements; key j lies j * mask_strides[3] further.
inline int64_t mask_offset(const fa_problem &p, const Sequence &seq, Row row) {
  return seq.batch * p.mask_strides[0] + row.head * p.mask_strides[1] + row.query * p.mask_strides[2];
}

// Both kinds of mask as an additive term: a boolean becomes 0 or -inf.
inline float mask_value(const fa_problem &p, int64_t element) {
  if (p.mask_kind == FA_MASK_BOOL) return static_cast<const uint8_t *>(p.mask)[element] ? 0.0f : -INFINITY;
  return static_cast<const float *>(p.mask)[element];
}

// n <= W mask values of consecutive keys; zeros behind them.
inline F mask_values(const fa_problem &p, int64_t element, int64_t n) {
  const int64_t step = p.mask_strides[3];
  if (n == W && step == 1) {
    return p.mask_kind == FA_MASK_BOOL ? load_allowed(static_cast<const uint8_t *>(p.mask) + element)
                                       : load(static_cast<const float *>(p.mask) + element);
  }
  float values[W] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = mask_value(p, element + i * step);
  return load(values);
}

// A hidden key is set to -inf rather than added to: a score of +inf or NaN must not survive its mask.
inline F apply_mask(F s, F term) { return select_gt(term, set1(-INFINITY), add(s, term), add(term, zero())); }

// Add the mask of W query rows (their offsets in `rows`) to s[0..keys) of one vector column; `stride` floats
// a key.
inline void add_mask(const fa_problem &p, const int64_t *rows, int64_t key, int64_t keys, float *s,
                     int64_t stride) {
  bool shared = true;
  for (int i = 1; i < W; ++i) shared &= rows[i] == rows[0];
  const int64_t step = p.mask_strides[3];
  if (shared) {
    for (int64_t j = 0; j < keys; ++j)
      store(s + j * stride,
            apply_mask(load(s + j * stride), set1(mask_value(p, rows[0] + (key + j) * step))));
    return;
  }
  for (int64_t j = 0; j < keys; j += W) {
    const int64_t n = minimum<int64_t>(W, keys - j);
    F term[W];
    for (int i = 0; i < W; ++i) term[i] = mask_values(p, rows[i] + (key + j) * step, n);
    transpose(term);
    for (int64_t i = 0; i < n; ++i) {
      float *at = s + (j + i) * stride;
      store(at, apply_mask(load(at), term[i]));
    }
  }
}

}  // namespace
}  // namespace FA_NAMESPACE
