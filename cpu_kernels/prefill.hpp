// One item of many query rows: set up its sub-blocks, walk the key tiles, write the rows.
// A tile that a sub-block does not see is never computed; one it sees whole takes no mask work.
#pragma once
#include "online_softmax.hpp"
#include "tiling.hpp"

namespace FA_NAMESPACE {
namespace {

// Transpose the W rows in `staging` (W x stride floats) into dst[d * rows + lane].
inline void transpose_in(const float *staging, int64_t stride, int64_t dim, float *dst, int64_t rows) {
  for (int64_t d = 0; d < dim; d += W) {
    F t[W];
    for (int i = 0; i < W; ++i) t[i] = load(staging + i * stride + d);
    transpose(t);
    for (int64_t i = 0; i < minimum<int64_t>(W, dim - d); ++i) store(dst + (d + i) * rows, t[i]);
  }
}

// The state of a sub-block before its first key: what its rows see, and nothing collected.
inline void begin_rows(const fa_problem &p, const Sequence &seq, const Item &item, int64_t row_begin,
                       SubBlock &block, int64_t *mask_rows, int64_t *positions, float *slopes) {
  block.min_first = item.key_end;
  block.min_last = item.key_end;
  block.max_first = block.max_last = -1;
  for (int64_t lane = 0; lane < block.nv * W; ++lane) {
    // Padding repeats the last row.
    const Row row = row_of(p, item, row_begin + minimum(lane, block.rows - 1));
    const Interval seen = interval_of(p, seq, item, row.query);
    block.first[lane] = static_cast<int32_t>(seen.first);
    block.last[lane] = static_cast<int32_t>(seen.last);
    if (seen.first <= seen.last) {
      block.min_first = minimum(block.min_first, seen.first);
      block.max_last = maximum(block.max_last, seen.last);
    }
    block.max_first = maximum(block.max_first, seen.first);
    block.min_last = minimum(block.min_last, seen.last);
    positions[lane] = seq.q_offset + row.query;
    slopes[lane] = slope_of(p, seq, row.head);
    mask_rows[lane] = p.mask_kind == FA_MASK_NONE ? 0 : mask_offset(p, seq, row);
  }
  for (int n = 0; n < block.nv; ++n) {
    store(block.neg_m + n * W, zero());
    store(block.limit + n * W, set1(-INFINITY));
    store(block.l + n * W, zero());
  }
}

inline void begin_sub_block(const fa_problem &p, const Sequence &seq, const Item &item, int64_t row_begin,
                            SubBlock &block, PrefillSpace &space, int64_t *positions, float *slopes) {
  const int64_t lanes = block.nv * W, stride = round_up(p.head_dim, W);
  const float factor = query_factor(p) * (is_modified(p) ? 1.0f : LOG2E);
  begin_rows(p, seq, item, row_begin, block, space.mask_rows, positions, slopes);
  for (int n = 0; n < block.nv; ++n) {
    std::memset(space.staging, 0, static_cast<size_t>(W * stride) * sizeof(float));
    for (int64_t i = 0; i < minimum<int64_t>(W, block.rows - n * W); ++i)
      load_query(p, seq, row_of(p, item, row_begin + n * W + i), space.staging + i * stride, factor);
    transpose_in(space.staging, stride, p.head_dim, block.qt + n * W, lanes);
  }
  std::memset(block.ot, 0, static_cast<size_t>(p.v_dim * lanes) * sizeof(float));
}

inline void end_sub_block(const fa_problem &p, const Sequence &seq, const Item &item, int64_t row_begin,
                          const SubBlock &block, float *staging) {
  const int64_t lanes = block.nv * W, stride = round_up(p.v_dim, W);
  const float unit = is_modified(p) ? 1.0f : static_cast<float>(LN2);  // of the maxima
  for (int n = 0; n < block.nv; ++n) {
    Finish ends[W];
    float factors[W];
    const int64_t rows = minimum<int64_t>(W, block.rows - n * W);
    for (int64_t i = 0; i < W; ++i) {
      const int64_t lane = n * W + i;
      ends[i] = {0, 0, true};
      if (i < rows)
        ends[i] = finish_state(p, item, row_of(p, item, row_begin + lane).head, -block.neg_m[lane] * unit,
                               block.l[lane]);
      factors[i] = ends[i].factor;
    }
    const F factor = load(factors);
    for (int64_t c = 0; c < p.v_dim; c += W) {
      F t[W];
      for (int i = 0; i < W; ++i)
        t[i] = c + i < p.v_dim ? mul(load(block.ot + (c + i) * lanes + n * W), factor) : zero();
      transpose(t);
      for (int i = 0; i < W; ++i) store(staging + i * stride + c, t[i]);
    }
    for (int64_t i = 0; i < rows; ++i) {
      float *row = staging + i * stride;
      if (ends[i].empty) std::memset(row, 0, static_cast<size_t>(p.v_dim) * sizeof(float));
      write_row(p, seq, item, row_begin + n * W + i, row, ends[i].lse);
    }
  }
}

template <class T>
inline void lay_rows(const KvSource &src, int64_t key, int64_t n, int64_t dim, float *dst,
                     int64_t dst_stride) {
  each_row<T>(src, key, n, [&](int64_t j, const T *from, F scale) {
    float *to = dst + j * dst_stride;
    int64_t d = 0;
    for (; d + W <= dim; d += W) store(to + d, scaled<T>(load_kv(from + d), scale));
    if (d < dim) store(to + d, scaled<T>(load_kv(from + d, static_cast<int>(dim - d)), scale));
  });
}

template <class T>
inline void lay_panels(const KvSource &src, int64_t key, int64_t n, int64_t dim, float *dst, int64_t panel) {
  each_row<T>(src, key, n, [&](int64_t j, const T *from, F scale) {
    float *to = dst + j * KR;
    for (int64_t d = 0; d < dim; d += W, to += W / KR * panel) {
      alignas(64) float values[W];
      const F value = d + W <= dim ? load_kv(from + d) : load_kv(from + d, static_cast<int>(dim - d));
      store(values, scaled<T>(value, scale));
      for (int i = 0; i < W / KR; ++i) std::memcpy(to + i * panel, values + i * KR, KR * sizeof(float));
    }
  });
}

// Keys [key, key + n) as float32 rows. All are copied, float32 ones too: rows at the caller's spacing (a
// power of two more often than not) would fall into few sets of L1, and the copy serves every sub-block of
// the item. Here pages end, too, and the scales of int8 rows.
inline Rows key_rows(const fa_problem &p, const KvSource &src, int64_t key, int64_t n, float *buffer) {
  const int64_t spaced = PrefillSpace::padded(p.head_dim);
  with_kv_type(
      p, [&](auto type) { lay_rows<typename decltype(type)::Is>(src, key, n, p.head_dim, buffer, spaced); });
  return {buffer, spaced};
}

inline Panels value_panels(const fa_problem &p, const KvSource &src, int64_t key, int64_t n, float *buffer) {
  const int64_t panel = n * KR;
  with_kv_type(
      p, [&](auto type) { lay_panels<typename decltype(type)::Is>(src, key, n, p.v_dim, buffer, panel); });
  return {buffer, panel};
}

inline size_t prefill_bytes(const fa_problem &p, const Tiles &tiles) {
  return PrefillSpace(p, tiles, nullptr).bytes;
}

inline void prefill(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                    void *workspace) {
  const unsigned denormals = flush_denormals();
  PrefillSpace space(p, tiles, workspace);
  SubBlock blocks[fa::MAX_SUB_BLOCKS];
  Modifiers modifiers[fa::MAX_SUB_BLOCKS];
  int64_t positions[fa::MAX_SUB_BLOCKS * SUB_ROWS];
  float slopes[fa::MAX_SUB_BLOCKS * SUB_ROWS];
  int count = 0;
  int64_t lane = 0, begin = item.key_end, end = item.key_begin;
  int64_t *const mask_rows = space.mask_rows;
  for (int64_t row = 0; row < item.rows; row += SUB_ROWS, ++count) {
    SubBlock &block = blocks[count];
    block.rows = minimum<int64_t>(SUB_ROWS, item.rows - row);
    block.nv = static_cast<int>((block.rows + W - 1) / W);
    float *const lanes = space.lanes + 5 * lane;
    const int64_t width = block.nv * W;
    block.qt = space.qt + lane * p.head_dim;
    block.ot = space.ot + lane * p.v_dim;
    block.neg_m = lanes;
    block.limit = lanes + width;
    block.l = lanes + 2 * width;
    block.first = space.intervals + 2 * lane;
    block.last = block.first + width;
    space.mask_rows = mask_rows + lane;
    begin_sub_block(p, seq, item, row, block, space, positions + lane, slopes + lane);
    const bool has_mask = p.mask_kind != FA_MASK_NONE;
    modifiers[count] = {is_modified(p), p.softcap, p.alibi_slopes ? slopes + lane : nullptr, positions + lane,
                        has_mask ? mask_rows + lane : nullptr};
    begin = minimum(begin, block.min_first);
    end = maximum(end, block.max_last + 1);
    lane += width;
  }

  const int size = element_size(p.kv_dtype);
  const KvSource k = {key_source(p, seq, item.kv_head), key_scales(p, seq, item.kv_head)};
  const KvSource v = {value_source(p, seq, item.kv_head), value_scales(p, seq, item.kv_head)};
  begin -= begin % tiles.key_tile;  // tiles do not depend on which sub-blocks make the item
  for (int64_t key = begin; key < end; key += tiles.key_tile) {
    const int64_t keys = minimum(tiles.key_tile, end - key);
    const Rows kt = key_rows(p, k, key, keys, space.k_tile);
    const Panels vt = value_panels(p, v, key, keys, space.v_tile);
    const int64_t next = key + keys;
    for (int b = 0; b < count; ++b) {
      Ahead ahead = {
          k.rows, v.rows, next, p.head_dim * size, p.v_dim * size, b, minimum(tiles.key_tile, end - next),
          count};
      const int64_t from = maximum(key, blocks[b].min_first),
                    to = minimum(key + keys, blocks[b].max_last + 1);
      if (from >= to) continue;
      attend_sub_block(p, blocks[b], modifiers[b], {kt.at + (from - key) * kt.stride, kt.stride},
                       {vt.at + (from - key) * KR, vt.stride}, from, to - from, space.scores, ahead);
    }
  }
  for (int b = 0; b < count; ++b) end_sub_block(p, seq, item, b * SUB_ROWS, blocks[b], space.staging);
  restore_denormals(denormals);
}

}  // namespace
}  // namespace FA_NAMESPACE
