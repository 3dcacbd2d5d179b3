// Where the rows of K, V and their scales lie: one after the other, or in pages found through a block table.
// Mirrors reference/paged.py. Rows of one page lie a fixed step apart, so kernels walk runs of rows.
#pragma once
#include "common.hpp"
#include "kernels.hpp"

namespace FA_NAMESPACE {
namespace {

inline int element_size(int32_t dtype) { return dtype == FA_FLOAT32 ? 4 : dtype == FA_INT8 ? 1 : 2; }

struct KvRows {
  const char *base;  // row 0 of the KV head; with pages, of page 0
  int64_t row_bytes, page_bytes;
  const int32_t *table;  // of the sequence; NULL: contiguous
  int64_t page_size;
  int shift;  // page_size is 2^shift; -1: no power of two, so that each look-up divides
  int64_t head_bytes;  // from a KV head to the next

  int64_t page(int64_t key) const { return shift >= 0 ? key >> shift : key / page_size; }
  const char *at(int64_t key) const {
    if (!table) return base + key * row_bytes;
    const int64_t number = page(key);
    return base + table[number] * page_bytes + (key - number * page_size) * row_bytes;
  }
  // How many of the n rows from `key` on lie row_bytes apart.
  int64_t run(int64_t key, int64_t n) const {
    return table ? minimum(n, (page(key) + 1) * page_size - key) : n;
  }
};

inline KvRows rows_at(const fa_problem &p, const fa::Sequence &seq, const void *base, const int64_t *strides,
                      int64_t kv_head, int64_t size) {
  const char *const head = static_cast<const char *>(base) + kv_head * strides[1] * size;
  const bool power = p.page_size > 0 && (p.page_size & (p.page_size - 1)) == 0;
  return {head,
          strides[2] * size,
          strides[0] * size,
          seq.block_table,
          p.page_size,
          power ? __builtin_ctzll(static_cast<uint64_t>(p.page_size)) : -1,
          strides[1] * size};
}

inline KvRows key_source(const fa_problem &p, const fa::Sequence &seq, int64_t kv_head) {
  return rows_at(p, seq, seq.k, p.k_strides, kv_head, element_size(p.kv_dtype));
}
inline KvRows value_source(const fa_problem &p, const fa::Sequence &seq, int64_t kv_head) {
  return rows_at(p, seq, seq.v, p.v_strides, kv_head, element_size(p.kv_dtype));
}
// Of int8 keys and values: one float a row.
inline KvRows key_scales(const fa_problem &p, const fa::Sequence &seq, int64_t kv_head) {
  return rows_at(p, seq, seq.k_scales, p.k_scale_strides, kv_head, sizeof(float));
}
inline KvRows value_scales(const fa_problem &p, const fa::Sequence &seq, int64_t kv_head) {
  return rows_at(p, seq, seq.v_scales, p.v_scale_strides, kv_head, sizeof(float));
}

}  // namespace
}  // namespace FA_NAMESPACE
