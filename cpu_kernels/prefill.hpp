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
  for (int n = 0; n < block.nv; ++n) block.last_of[n] = -1;
  for (int64_t lane = 0; lane < block.nv * W; ++lane) {
    // Padding repeats the last row.
    const Row row = row_of(p, item, row_begin + minimum(lane, block.rows - 1));
    const Interval seen = interval_of(p, seq, item, row.query);
    block.first[lane] = static_cast<int32_t>(seen.first);
    block.last[lane] = static_cast<int32_t>(seen.last);
    if (seen.first <= seen.last) {
      block.min_first = minimum(block.min_first, seen.first);
      block.max_last = maximum(block.max_last, seen.last);
      block.last_of[lane / W] = maximum(block.last_of[lane / W], seen.last);
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

// Q^T of a sub-block, times what makes powers of 2 of its scores, and O^T = 0.
inline void load_queries(const fa_problem &p, const Sequence &seq, const Item &item, int64_t row_begin,
                         const SubBlock &block, float *staging) {
  const int64_t lanes = block.nv * W, stride = round_up(p.head_dim, W);
  const float factor = query_factor(p) * (is_modified(p) ? 1.0f : LOG2E);
  for (int n = 0; n < block.nv; ++n) {
    const int64_t rows = minimum<int64_t>(W, block.rows - n * W);
    for (int64_t i = 0; i < rows; ++i)
      load_query(p, seq, row_of(p, item, row_begin + n * W + i), staging + i * stride, factor);
    std::memset(staging + rows * stride, 0, static_cast<size_t>((W - rows) * stride) * sizeof(float));
    transpose_in(staging, stride, p.head_dim, block.qt + n * W, lanes);
  }
  std::memset(block.ot, 0, static_cast<size_t>(p.v_dim * lanes) * sizeof(float));
  if (!block.aside) return;
  std::memset(block.aside, 0, static_cast<size_t>(p.v_dim * lanes) * sizeof(float));
  std::memset(block.l_aside, 0, static_cast<size_t>(lanes) * sizeof(float));
}

inline void end_sub_block(const fa_problem &p, const Sequence &seq, const Item &item, int64_t row_begin,
                          const SubBlock &block, float *staging) {
  const int64_t lanes = block.nv * W, stride = round_up(p.v_dim, W);
  const float *const ot = block.aside ? block.aside : block.ot, *const l =
                                                                    block.aside ? block.l_aside : block.l;
  const float unit = is_modified(p) ? 1.0f : static_cast<float>(LN2);  // of the maxima
  for (int n = 0; n < block.nv; ++n) {
    Finish ends[W];
    float factors[W];
    const int64_t rows = minimum<int64_t>(W, block.rows - n * W);
    for (int64_t i = 0; i < W; ++i) {
      const int64_t lane = n * W + i;
      ends[i] = {0, 0, true};
      factors[i] = 0.0f;
      if (i >= rows) continue;
      const int64_t head = row_of(p, item, row_begin + lane).head;
      const float m = -block.neg_m[lane] * unit;
      ends[i] = finish_state(p, item, head, m, l[lane]);
      factors[i] =
          block.rounded ? finish_state(p, item, head, m, block.rounded[lane]).factor : ends[i].factor;
    }
    const F factor = load(factors);
    for (int64_t c = 0; c < p.v_dim; c += W) {
      F t[W];
      for (int i = 0; i < W; ++i)
        t[i] = c + i < p.v_dim ? mul(load(ot + (c + i) * lanes + n * W), factor) : zero();
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

// Keys [key, key + n) in panels. Behind the n-th key the last panel holds whatever `rows` held.
inline Panels key_panels(const fa_problem &p, const KvSource &src, int64_t key, int64_t n, float *rows,
                         float *panels) {
  const int64_t panel = p.head_dim * KR;
  for (int64_t j = 0; j < n; j += W) {
    const Rows some = key_rows(p, src, key + j, minimum<int64_t>(W, n - j), rows);
    for (int64_t d = 0; d < p.head_dim; d += W) {
      F t[W];
      FA_UNROLL for (int i = 0; i < W; ++i) t[i] = load(some.at + i * some.stride + d);
      transpose(t);
      float *const to = panels + j / KR * panel + d * KR;
      for (int64_t i = 0; i < minimum<int64_t>(W, p.head_dim - d); ++i) {
        alignas(64) float lanes[W];
        store(lanes, t[i]);
        for (int part = 0; part < W / KR; ++part)
          std::memcpy(to + part * panel + i * KR, lanes + part * KR, KR * sizeof(float));
      }
    }
  }
  return {panels, panel};
}

inline Panels value_panels(const fa_problem &p, const KvSource &src, int64_t key, int64_t n, float *buffer) {
  const int64_t panel = PrefillSpace::v_panel(n);
  with_kv_type(
      p, [&](auto type) { lay_panels<typename decltype(type)::Is>(src, key, n, p.v_dim, buffer, panel); });
  return {buffer, panel};
}

// Whether the caller still wants this item, who is asked where it is time to: never in the middle of a tile.
inline bool goes_on(const Item &item, unsigned denormals) {
  if (!item.watch) return true;
  if (fa::is_due(*item.watch)) {
    restore_denormals(denormals);
    fa::ask(*item.watch);
    flush_denormals();
  }
  return !fa::is_stopped(*item.watch);
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
  int64_t since_aside[fa::MAX_SUB_BLOCKS] = {};  // keys
  bool begun[fa::MAX_SUB_BLOCKS] = {}, ended[fa::MAX_SUB_BLOCKS] = {};
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
    block.aside = space.aside ? space.aside + lane * p.v_dim : nullptr;
    block.l_aside = lanes + 3 * width;
    block.rounded = nullptr;
    block.first = space.intervals + 2 * lane;
    block.last = block.first + width;
    begin_rows(p, seq, item, row, block, mask_rows + lane, positions + lane, slopes + lane);
    const bool has_mask = p.mask_kind != FA_MASK_NONE;
    modifiers[count] = {is_modified(p), p.softcap, p.alibi_slopes ? slopes + lane : nullptr, positions + lane,
                        has_mask ? mask_rows + lane : nullptr};
    begin = minimum(begin, block.min_first);
    end = maximum(end, block.max_last + 1);
    lane += width;
  }

  const int size = element_size(p.kv_dtype), q_size = element_size(p.q_dtype);
  const KvSource k = {key_source(p, seq, item.kv_head), key_scales(p, seq, item.kv_head)};
  const KvSource v = {value_source(p, seq, item.kv_head), value_scales(p, seq, item.kv_head)};
  begin -= begin % tiles.key_tile;  // tiles do not depend on which sub-blocks make the item
  for (int64_t key = begin; key < end && goes_on(item, denormals); key += tiles.key_tile) {
    const int64_t keys = minimum(tiles.key_tile, end - key);
    const Panels kt = key_panels(p, k, key, keys, space.k_rows, space.k_tile);
    const Panels vt = value_panels(p, v, key, keys, space.v_tile);
    const int64_t next = key + keys;
    for (int b = 0; b < count; ++b) {
      const SubBlock &block = blocks[b];
      const int64_t first = maximum<int64_t>(block.min_first - key, 0),
                    last = minimum(block.max_last - key, keys - 1), row = b * SUB_ROWS;
      if (first > last) continue;
      // Queries are read when their first key comes, and outputs written after their last: between products
      // that hide most of the way to memory, since the rows were asked for one product earlier.
      const bool ends = block.max_last < next, next_begins = b + 1 < count && !begun[b + 1];
      if (!begun[b]) load_queries(p, seq, item, row, block, space.staging);
      begun[b] = true;
      const int64_t q_end = next_begins ? row + SUB_ROWS + blocks[b + 1].rows : 0;
      Ahead ahead = {{&p, &item, seq.q, p.q_strides, p.head_dim * q_size, row + SUB_ROWS, q_end},
                     {&p, &item, seq.out, p.out_strides, p.v_dim * q_size, row,
                      ends && !item.partial ? row + block.rows : 0},
                     k.rows,
                     v.rows,
                     next,
                     p.head_dim * size,
                     p.v_dim * size,
                     b,
                     minimum(tiles.key_tile, end - next),
                     count};
      // Whole panels of keys; what is out of sight in them is hidden.
      const int64_t from = first / KR * KR, to = minimum(round_up(last + 1, KR), keys);
      attend_sub_block(p, block, modifiers[b], {kt.at + from / KR * kt.stride, kt.stride},
                       {vt.at + from * KR, vt.stride}, key + from, to - from, space.scores, ahead);
      since_aside[b] += keys;
      if (block.aside && (ends || since_aside[b] >= ASIDE_KEYS)) {
        put_aside(block, p.v_dim);
        since_aside[b] = 0;
      }
      if (ends) end_sub_block(p, seq, item, row, block, space.staging);
      ended[b] = ends;
    }
  }
  for (int b = 0; b < count; ++b) {
    if (ended[b]) continue;
    blocks[b].aside = nullptr;
    std::memset(blocks[b].ot, 0, static_cast<size_t>(p.v_dim * blocks[b].nv * W) * sizeof(float));
    end_sub_block(p, seq, item, b * SUB_ROWS, blocks[b], space.staging);  // its rows see no key
  }
  restore_denormals(denormals);
}

}  // namespace
}  // namespace FA_NAMESPACE
