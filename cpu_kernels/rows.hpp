// Query rows of an item: where they lie, what they see, how they are loaded and how results are written back.
// Mirrors reference/visibility.py: causal, window, lengths and offsets all end as one interval of keys a row.
#pragma once
#include "isa/simd.hpp"
#include "kernels.hpp"
#include "paged.hpp"

namespace FA_NAMESPACE {
namespace {

using fa::Item;
using fa::Sequence;
using fa::Tiles;

struct Row {
  int64_t head, query;
};

inline Row row_of(const fa_problem &p, const Item &item, int64_t r) {
  if (p.q_heads == p.kv_heads) return {item.kv_head, item.row_begin + r};  // spares three divisions
  const int64_t group = p.q_heads / p.kv_heads, row = item.row_begin + r;
  return {item.kv_head * group + row % group, row / group};
}

// The h-th KV head of an item, as an item of its own.
inline Item head_of(const fa_problem &p, const Item &item, int64_t h) {
  Item one = item;
  one.kv_head += static_cast<int32_t>(h);
  one.kv_heads = 1;
  if (item.partial) one.partial += h * item.rows * (p.v_dim + 1);
  return one;
}

// The keys that query i sees, as first <= j <= last (empty when last < first), clipped to the item's keys.
struct Interval {
  int64_t first, last;
};

inline Interval interval_of(const fa_problem &p, const Sequence &seq, const Item &item, int64_t query) {
  const int64_t position = seq.q_offset + query;
  Interval seen = {item.key_begin, item.key_end - 1};
  if (p.window_left >= 0) seen.first = maximum(seen.first, position - p.window_left);
  if (p.window_right >= 0) seen.last = minimum(seen.last, position + p.window_right);
  if (seen.last < seen.first) seen = {item.key_end, item.key_begin - 1};
  return seen;
}

template <class T>
inline void load_row(float *dst, const T *src, int64_t n, float factor) {
  const F f = set1(factor);
  int64_t d = 0;
  for (; d + W <= n; d += W) store(dst + d, mul(load_kv(src + d), f));
  if (d < n)
    store(dst + d, mul(load_kv(src + d, static_cast<int>(n - d)), f));  // dst is padded to a multiple of W
}

// One query row as float32 times `factor`, zero-padded to a multiple of W.
inline void load_query(const fa_problem &p, const Sequence &seq, Row row, float *dst, float factor) {
  const int64_t offset = row.head * p.q_strides[1] + row.query * p.q_strides[2];
  switch (p.q_dtype) {
    case FA_FLOAT32:
      return load_row(dst, reinterpret_cast<const float *>(seq.q) + offset, p.head_dim, factor);
    case FA_FLOAT16: return load_row(dst, reinterpret_cast<const half *>(seq.q) + offset, p.head_dim, factor);
    default: return load_row(dst, reinterpret_cast<const bfloat *>(seq.q) + offset, p.head_dim, factor);
  }
}

template <class T>
inline void store_row(T *dst, const float *src, int64_t n) {
  int64_t d = 0;
  for (; d + W <= n; d += W) store_as(dst + d, load(src + d));
  for (; d < n; ++d) dst[d] = narrow<T>(src[d]);
}

inline void store_output(const fa_problem &p, const Sequence &seq, Row row, const float *src) {
  const int64_t offset = row.head * p.out_strides[1] + row.query * p.out_strides[2];
  switch (p.q_dtype) {
    case FA_FLOAT32: return store_row(reinterpret_cast<float *>(seq.out) + offset, src, p.v_dim);
    case FA_FLOAT16: return store_row(reinterpret_cast<half *>(seq.out) + offset, src, p.v_dim);
    default: return store_row(reinterpret_cast<bfloat *>(seq.out) + offset, src, p.v_dim);
  }
}

inline float *lse_of(const fa_problem &p, const Sequence &seq, Row row) {
  return seq.lse ? seq.lse + row.head * p.lse_strides[1] + row.query * p.lse_strides[2] : nullptr;
}

inline float slope_of(const fa_problem &p, const Sequence &seq, int64_t head) {
  return p.alibi_slopes ? p.alibi_slopes[seq.batch * p.alibi_batch_stride + head] : 0.0f;
}

// What multiplies q to give natural scores (with a softcap, what its tanh is taken of).
inline float query_factor(const fa_problem &p) { return p.softcap > 0 ? p.scale / p.softcap : p.scale; }

// Whether something other than visibility changes the scores between the product and the softmax.
inline bool is_modified(const fa_problem &p) {
  return p.softcap > 0 || p.alibi_slopes || p.mask_kind != FA_MASK_NONE;
}

}  // namespace
}  // namespace FA_NAMESPACE
