// The end of a row: from its state (m, l, unnormalised O) to output and log-sum-exp, and the merge of parts.
// Mirrors reference/online_softmax.py. Maxima and log-sum-exp are natural here, whatever units a kernel works
// in.
#pragma once
#include "rows.hpp"

namespace FA_NAMESPACE {
namespace {

// What a row is multiplied by, and the log of its denominator.
struct Finish {
  float factor;  // multiplies the unnormalised output; 0 for a row without visible keys
  float lse;  // -inf for a row without visible keys
  bool empty;
};

// l is 0 only where no key was visible: the largest visible key alone adds at least 1. (A NaN is not 0.)
// The logarithm is taken only where somebody reads it.
inline Finish finish_row(float m, float l, bool has_sink, float sink, bool wants_lse) {
  if (l == 0.0f) return {0.0f, -INFINITY, true};
  if (!has_sink)
    return {1.0f / l, wants_lse ? static_cast<float>(m + std::log(static_cast<double>(l))) : 0.0f, false};
  const double top = sink > m ? sink : m;
  const double mine = std::exp(m - top), total = l * mine + std::exp(sink - top);
  return {static_cast<float>(mine / total), static_cast<float>(wants_lse ? top + std::log(total) : 0.0),
          false};
}

// Write one finished row (already multiplied by its factor).
inline void write_row(const fa_problem &p, const Sequence &seq, const Item &item, int64_t r, const float *row,
                      float lse) {
  if (item.partial) {
    float *dst = item.partial + r * (p.v_dim + 1);
    std::memcpy(dst, row, static_cast<size_t>(p.v_dim) * sizeof(float));
    dst[p.v_dim] = lse;
    return;
  }
  const Row where = row_of(p, item, r);
  store_output(p, seq, where, row);
  if (float *at = lse_of(p, seq, where)) *at = lse;
}

// Partial results carry no sink: it belongs to the row once, so the merge adds it.
inline Finish finish_state(const fa_problem &p, const Item &item, int64_t head, float m, float l) {
  const bool has_sink = p.sinks && !item.partial;
  return finish_row(m, l, has_sink, has_sink ? p.sinks[head] : 0.0f, p.lse || item.partial);
}

// Combine `splits` partial results of each row: weights exp(lse - largest), as in reference/decode.py.
inline void merge_rows(const fa_problem &p, const Sequence &seq, const Item &item, int64_t splits,
                       int64_t stride, void *workspace) {
  const float *parts = item.partial;
  float *row = static_cast<float *>(workspace);
  Item whole = item;
  whole.partial = nullptr;
  for (int64_t r = 0; r < item.rows; ++r) {
    const float *first = parts + r * (p.v_dim + 1);
    float top = -INFINITY;
    for (int64_t i = 0; i < splits; ++i) top = maximum(top, first[i * stride + p.v_dim]);
    std::memset(row, 0, static_cast<size_t>(p.v_dim) * sizeof(float));
    float l = 0;
    for (int64_t i = 0; i < splits; ++i) {
      const float *part = first + i * stride;
      if (part[p.v_dim] == -INFINITY) continue;  // no visible key in this part
      const float weight = static_cast<float>(std::exp(static_cast<double>(part[p.v_dim]) - top));
      l += weight;
      for (int64_t c = 0; c < p.v_dim; ++c) row[c] += weight * part[c];
    }
    const Finish end = finish_state(p, whole, row_of(p, whole, r).head, top, l);
    for (int64_t c = 0; c < p.v_dim; ++c) row[c] *= end.factor;
    write_row(p, seq, whole, r, row, end.lse);
  }
}

}  // namespace
}  // namespace FA_NAMESPACE
