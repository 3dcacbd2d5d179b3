// Attention of many query rows, tile by tile (mirrors reference/tiling.py, the order of FlashAttention-2).
//
// Queries stand in the lanes. A sub-block of NV vectors of queries keeps Q^T (head_dim x rows) and O^T (v_dim
// x rows); a register tile computes KR rows of S^T = K Q^T, or of O^T += V^T P^T, from broadcast scalars of K
// or V. So the softmax needs no sum or maximum across lanes, and head_dim can be any number. Keys and values
// of a tile are copied into panels, once for all sub-blocks of an item.
//
// Bytes, for AVX-512 at head_dim 128: Q^T and O^T of a sub-block 24 KiB each, scores of a tile of 128 keys 24
// KiB. The score product streams Q^T, the output product the scores, from L1 (48 KiB); the tile's keys and
// values (64 KiB each) and the sub-blocks of an item stay in L2.
#pragma once
#include "kv_rows.hpp"
#include "modifiers.hpp"
#include "products.hpp"

namespace FA_NAMESPACE {
namespace {

// The accumulator is rescaled only when a row's maximum grew by more than this, in whichever units the scores
// are, so that weights stay below e^8: exact in float32, and after the first few tiles almost never needed.
constexpr float LAZY = 8.0f;

// Sum of the weights of a tile above which a row's maximum is looked at: 128 weights of 2^LAZY. Below it
// nothing can have overflowed.
constexpr float LARGE_SUM = 0x1p15f;

// After so many keys a row's sums are added to others, kept aside, and begin again at zero: else each tile of
// a long row would be rounded at the size of all before it. Rows of less than twice as many do without.
constexpr int64_t ASIDE_KEYS = 4096;

struct SubBlock {
  int nv;  // vectors of queries
  int64_t rows;  // query rows, the rest of the lanes is padding
  float *qt;  // head_dim x nv W
  float *ot;  // v_dim x nv W, unnormalised
  float *neg_m;  // nv W: minus the reference maximum; 0 before the first visible key
  float *limit;  // nv W: LAZY, or -inf before the first visible key
  float *l;  // nv W: sum of weights
  float *aside, *l_aside;  // like ot and l, of earlier keys; NULL: nothing is put aside
  float *rounded;  // nv W: sum of weights as the products take them; NULL: as they are
  int32_t *first, *last;  // nv W: visible keys
  int64_t min_first, max_first, min_last, max_last;
  int64_t last_of[MAX_NV];  // the last key that some row of a vector sees
};

constexpr int SUB_ROWS = MAX_NV * W;

struct Arena {  // carves a block of memory into 64-byte aligned pieces; with base NULL it only counts
  char *base;
  size_t used;
  template <class T>
  T *take(int64_t n) {
    T *piece = base ? reinterpret_cast<T *>(base + used) : nullptr;
    used += static_cast<size_t>(round_up(n * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
};

// Some keys, row after row, as float32.
struct Rows {
  const float *at;
  int64_t stride;
};

struct PrefillSpace {
  float *qt, *ot, *aside, *scores, *lanes, *staging, *k_rows, *k_tile, *v_tile;
  int32_t *intervals;
  int64_t *mask_rows;
  size_t bytes;
  PrefillSpace(const fa_problem &p, const Tiles &tiles, void *memory) {
    Arena arena = {static_cast<char *>(memory), 0};
    qt = arena.take<float>(tiles.item_rows * p.head_dim);
    ot = arena.take<float>(tiles.item_rows * p.v_dim);
    const bool is_long = tiles.key_split >= 2 * ASIDE_KEYS;
    aside = arena.take<float>(is_long ? tiles.item_rows * p.v_dim : 0);
    if (!is_long) aside = nullptr;
    scores = arena.take<float>(tiles.key_tile * SUB_ROWS);
    lanes = arena.take<float>(tiles.item_rows * 5);
    intervals = arena.take<int32_t>(tiles.item_rows * 2);
    mask_rows = arena.take<int64_t>(tiles.item_rows);
    staging = arena.take<float>(W * round_up(maximum(p.head_dim, p.v_dim), W));
    k_rows = arena.take<float>(W * padded(p.head_dim));
    k_tile = arena.take<float>(round_up(tiles.key_tile, W) * p.head_dim);
    v_tile = arena.take<float>(v_panel(tiles.key_tile) * (round_up(p.v_dim, W) / KR));
    bytes = arena.used;
  }
  // An odd number of cache lines a row, so that the rows of a tile spread over the sets of L1.
  static int64_t padded(int64_t dim) { return (round_up(dim, 16) / 16 | 1) * 16; }
  // Likewise for panels of V, all of which a row is spread over when it is copied.
  static int64_t v_panel(int64_t keys) { return padded(keys * KR); }
};

// Query rows, or their rows of the output, that are about to be read, or written.
struct RowsAhead {
  const fa_problem *p;
  const Item *item;
  const char *base;
  const int64_t *strides;
  int64_t bytes, row, end;

  inline void fetch(int64_t count) {
    for (; count > 0 && row < end; --count, ++row) {
      const Row where = row_of(*p, *item, row);
      const char *const from =
          base + (where.head * strides[1] + where.query * strides[2]) * element_size(p->q_dtype);
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
    }
  }
};

// The rows of K and V that the next tile will read. Each sub-block brings its share of them into L2 between
// its register tiles, so that copying the next tile does not wait for memory.
struct Ahead {
  RowsAhead queries, outputs;  // of the next sub-block, of this one
  KvRows k, v;
  int64_t key, k_bytes, v_bytes;  // first key of the next tile; bytes of a row
  int64_t row, rows, step;  // this sub-block's rows of it: row, row + step, ...

  inline void fetch(int64_t count) {
    queries.fetch(3);
    outputs.fetch(3);
    for (; count > 0 && row < rows; --count, row += step) {
      const char *const k_row = k.at(key + row), *const v_row = v.at(key + row);
      for (int64_t at = 0; at < k_bytes; at += 64) __builtin_prefetch(k_row + at, 0, 2);
      for (int64_t at = 0; at < v_bytes; at += 64) __builtin_prefetch(v_row + at, 0, 2);
    }
  }
};

// s[j][lane] = <k_j, q_lane> + shift[lane]; with TOP, top[lane] is raised to the largest.
template <int SV, int NV, bool TOP>
void score_tile(const float *qt, Panels k, int64_t keys, int64_t head_dim, const float *shift, float *s,
                float *top, Ahead &ahead) {
  int64_t j = 0;
  const float *panel = k.at;
  for (; j + KR <= keys; j += KR, panel += k.stride) {
    score_rows<SV, NV, KR, TOP>(qt, panel, head_dim, shift, s + j * SV * W, top);
    ahead.fetch((KR + ahead.step - 1) / ahead.step);
  }
  if (KR > 4 && keys - j >= 4) {
    score_rows<SV, NV, 4, TOP>(qt, panel, head_dim, shift, s + j * SV * W, top);
    j += 4;
    panel += 4;
  }
  for (; j < keys; ++j, ++panel) score_rows<SV, NV, 1, TOP>(qt, panel, head_dim, shift, s + j * SV * W, top);
}

// O^T += V^T P^T. The values lie in panels of KR columns, panel after panel, so that a register tile reads
// one stream.
template <int SV, int NV>
void output_tile(float *ot, Panels v, int64_t keys, int64_t v_dim, const float *s) {
  int64_t c = 0;
  const float *panel = v.at;
  for (; c + KR <= v_dim; c += KR, panel += v.stride)
    output_columns<SV, NV, KR>(s, panel, keys, ot + c * SV * W);
  if (KR > 4 && v_dim - c >= 4) {
    output_columns<SV, NV, 4>(s, panel, keys, ot + c * SV * W);
    c += 4;
    panel += 4;
  }
  for (; c < v_dim; ++c, ++panel) output_columns<SV, NV, 1>(s, panel, keys, ot + c * SV * W);
}

struct Modifiers {
  bool any;  // softcap, ALiBi or a mask: then scores and maxima are natural, else in units of log2(e)
  float softcap;
  const float *slopes;  // per lane; NULL without ALiBi
  const int64_t *positions;  // per lane
  const int64_t *mask_rows;  // per lane; NULL without a mask
};

// Scores out of sight become -inf, in NV vectors from the block's vector `skip` on: those of keys that not
// all rows see.
template <int SV, int NV>
void hide_tile(const SubBlock &block, int skip, int64_t key, int64_t keys, float *s) {
  const int32_t *const first = block.first + skip * W, *const last = block.last + skip * W;
  const auto hide_keys = [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      FA_UNROLL for (int n = 0; n < NV; ++n) {
        float *const at = s + (j * SV + n) * W;
        store(at, hide(load(at), static_cast<int32_t>(key + j), first + n * W, last + n * W));
      }
    }
  };
  const int64_t seen = minimum(maximum<int64_t>(block.max_first - key, 0), keys),
                unseen = minimum(maximum(block.min_last + 1 - key, seen), keys);
  hide_keys(0, seen);
  hide_keys(unseen, keys);
}

// Everything between the product and the exponential that is not plain; `top` is set to the largest scores
// that are left.
template <int NV>
void modify_tile(const fa_problem &p, const SubBlock &block, const Modifiers &mod, bool full, int64_t key,
                 int64_t keys, float *s, float *top) {
  if (mod.softcap > 0) {
    const F cap = set1(mod.softcap);
    for (int64_t i = 0; i < keys * NV; ++i) store(s + i * W, mul(tanh(load(s + i * W)), cap));
  }
  if (mod.slopes) {
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      float distance[W];  // from the query to the tile's first key
      for (int i = 0; i < W; ++i) distance[i] = static_cast<float>(key - mod.positions[n * W + i]);
      const F slope = load(mod.slopes + n * W), start = load(distance);
      for (int64_t j = 0; j < keys; ++j) {
        float *at = s + (j * NV + n) * W;
        store(at, fma(slope, add(start, set1(static_cast<float>(j))), load(at)));
      }
    }
  }
  if (mod.mask_rows)
    for (int n = 0; n < NV; ++n) add_mask(p, mod.mask_rows + n * W, key, keys, s + n * W, NV * W);
  if (!full) hide_tile<NV, NV>(block, 0, key, keys, s);
  FA_UNROLL for (int n = 0; n < NV; ++n) {
    F highest = set1(-INFINITY);
    for (int64_t j = 0; j < keys; ++j) highest = max(load(s + (j * NV + n) * W), highest);
    store(top + n * W, highest);
  }
}

// s becomes 2^s; the sums are added to `sums`.
template <int SV, int NV>
void weights_tile(int64_t keys, float *s, float *sums) {
  F sum[NV];
  FA_UNROLL for (int n = 0; n < NV; ++n) sum[n] = load(sums + n * W);
  for (int64_t j = 0; j < keys; ++j) {
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      const F weight = exp2(load(s + (j * SV + n) * W));
      sum[n] = add(sum[n], weight);
      store(s + (j * SV + n) * W, weight);
    }
  }
  FA_UNROLL for (int n = 0; n < NV; ++n) store(sums + n * W, sum[n]);
}

// s becomes (s + shift) unit.
template <int NV>
void shift_tile(const float *shift, float unit, int64_t keys, float *s) {
  for (int64_t j = 0; j < keys; ++j) {
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      float *const at = s + (j * NV + n) * W;
      store(at, mul(add(load(at), load(shift + n * W)), set1(unit)));
    }
  }
}

// How the reference maximum of a sub-block moved with a tile.
enum class Growth { NONE, SOME, FAR };

// Where a row's maximum grew by more than LAZY (or its first key came), move the row to its new maximum.
// `top` is relative to the old one, unless `natural`; shift receives what the reference moved by, negated.
// FAR: so far that scores taken relative to the old maximum have lost the digits they need.
template <int NV>
Growth rescale(const SubBlock &block, int64_t v_dim, bool natural, const float *top, float *shift) {
  F growth[NV];
  bool grew = false, far = false;
  FA_UNROLL for (int n = 0; n < NV; ++n) {
    const F t = load(top + n * W);
    growth[n] = natural ? add(t, load(block.neg_m + n * W)) : t;
    grew |= any_gt(growth[n], load(block.limit + n * W));
  }
  if (!grew) return Growth::NONE;
  F factor[NV];
  FA_UNROLL for (int n = 0; n < NV; ++n) {
    const F t = load(top + n * W), limit = load(block.limit + n * W), old = load(block.neg_m + n * W);
    const F moved = select_gt(growth[n], limit, natural ? sub(zero(), t) : sub(old, t), old);
    const F change = sub(moved, old);  // what was really taken off, after rounding
    // A row without keys so far has l = 0 and O = 0, which any finite factor leaves alone; 2^change may be
    // infinite.
    factor[n] = select_gt(limit, zero(), exp2(natural ? mul(change, set1(LOG2E)) : change), set1(1.0f));
    far |= any_gt(select_gt(limit, zero(), growth[n], zero()), set1(64.0f));
    store(shift + n * W, change);
    store(block.neg_m + n * W, moved);
    store(block.limit + n * W, select_gt(growth[n], limit, set1(LAZY), limit));
    store(block.l + n * W, mul(load(block.l + n * W), factor[n]));
    if (block.aside) store(block.l_aside + n * W, mul(load(block.l_aside + n * W), factor[n]));
  }
  float *const both[] = {block.ot, block.aside};
  for (float *const sums : both) {
    for (int64_t c = 0; sums && c < v_dim; ++c) {
      FA_UNROLL for (int n = 0; n < NV; ++n) {
        float *const at = sums + (c * NV + n) * W;
        store(at, mul(load(at), factor[n]));
      }
    }
  }
  return far ? Growth::FAR : Growth::SOME;
}

// Keys [begin, end) of a tile, which the first `skip` vectors of queries do not see.
struct Span {
  int64_t begin, end;
  int skip;
};

// Towards the end of what the rows see, ever fewer vectors have work left. Whole panels of keys.
template <int NV>
void find_spans(const SubBlock &block, int64_t key, int64_t keys, Span (&spans)[NV]) {
  int64_t begin = 0;
  for (int n = 0; n < NV; ++n) {
    const int64_t seen = n == NV - 1 ? keys : round_up(maximum<int64_t>(block.last_of[n] + 1 - key, 0), KR);
    const int64_t end = minimum(maximum(begin, seen), keys);
    spans[n] = {begin, end, n};
    begin = end;
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// work(Count<n>()) for 1 <= n <= MOST.
template <int MOST, class Work>
inline void with_count(int n, Work work) {
  if (n == MOST) return work(Count<MOST>());
  if constexpr (MOST > 1) with_count<MOST - 1>(n, work);
}

// A tile of plain scores when every row has a reference maximum. None is looked for: the sums of weights tell
// when a reference has become too small. Then nothing but `s` was changed, and the answer is false.
template <int NV>
bool attend_started(const fa_problem &p, const SubBlock &block, Panels k, Panels v, bool full, int64_t key,
                    int64_t keys, float *s, Ahead &ahead) {
  Span spans[NV] = {{0, keys, 0}};
  if (!full) find_spans<NV>(block, key, keys, spans);
  const auto each_span = [&](auto work) {
    for (const Span &span : spans) {
      if (span.begin < span.end)
        with_count<NV>(NV - span.skip, [&](auto count) {
          work(count, span, span.end - span.begin, s + (span.begin * NV + span.skip) * W);
        });
    }
  };
  alignas(64) float sums[NV * W] = {};
  each_span([&](auto count, const Span &span, int64_t length, float *at) {
    constexpr int N = decltype(count)::value;
    score_tile<NV, N, false>(block.qt + span.skip * W, {k.at + span.begin / KR * k.stride, k.stride}, length,
                             p.head_dim, block.neg_m + span.skip * W, at, nullptr, ahead);
    if (!full) hide_tile<NV, N>(block, span.skip, key + span.begin, length, at);
    weights_tile<NV, N>(length, at, sums + span.skip * W);
  });
  bool large = false;
  FA_UNROLL for (int n = 0; n < NV; ++n) large |= any_gt(load(sums + n * W), set1(LARGE_SUM));
  if (large) return false;
  FA_UNROLL for (int n = 0; n < NV; ++n) {
    store(block.l + n * W, add(load(block.l + n * W), load(sums + n * W)));
  }
  each_span([&](auto count, const Span &span, int64_t length, const float *at) {
    output_tile<NV, decltype(count)::value>(block.ot + span.skip * W, {v.at + span.begin * KR, v.stride},
                                            length, p.v_dim, at);
  });
  return true;
}

template <int NV>
void attend_tile(const fa_problem &p, const SubBlock &block, const Modifiers &mod, Panels k, Panels v,
                 int64_t key, int64_t keys, float *s, Ahead &ahead) {
  const bool full = key >= block.max_first && key + keys - 1 <= block.min_last;
  bool started = !mod.any;
  FA_UNROLL for (int n = 0; n < NV; ++n) started &= !any_gt(zero(), load(block.limit + n * W));
  if (started && attend_started<NV>(p, block, k, v, full, key, keys, s, ahead)) return;

  alignas(64) float top[NV * W], shift[NV * W], nothing[NV * W];
  const auto reset_top = [&] { FA_UNROLL for (int n = 0; n < NV; ++n) store(top + n * W, set1(-INFINITY)); };
  if (mod.any) {
    reset_top();
    FA_UNROLL for (int n = 0; n < NV; ++n) store(nothing + n * W, zero());
    score_tile<NV, NV, true>(block.qt, k, keys, p.head_dim, nothing, s, top, ahead);
    modify_tile<NV>(p, block, mod, full, key, keys, s, top);
    rescale<NV>(block, p.v_dim, true, top, shift);
    shift_tile<NV>(block.neg_m, LOG2E, keys, s);
  } else {
    // Plain scores are computed relative to the reference maximum at once, which saves a subtraction each.
    // Where that loses digits, once in a while, they are computed again (twice, should the first new
    // reference be rounded too).
    Growth growth = Growth::FAR;
    for (int attempt = 0; attempt < 3 && growth == Growth::FAR; ++attempt) {
      reset_top();
      score_tile<NV, NV, true>(block.qt, k, keys, p.head_dim, block.neg_m, s, top, ahead);
      if (!full) modify_tile<NV>(p, block, mod, full, key, keys, s, top);
      growth = rescale<NV>(block, p.v_dim, false, top, shift);
    }
    if (growth != Growth::NONE) shift_tile<NV>(shift, 1.0f, keys, s);
  }
  weights_tile<NV, NV>(keys, s, block.l);
  output_tile<NV, NV>(block.ot, v, keys, p.v_dim, s);
}

// The sums since the last time join those kept aside, and begin again.
inline void put_aside(const SubBlock &block, int64_t v_dim) {
  const auto move = [](float *from, float *to, int64_t n) {
    for (int64_t i = 0; i < n; i += W) {
      store(to + i, add(load(to + i), load(from + i)));
      store(from + i, zero());
    }
  };
  move(block.ot, block.aside, v_dim * block.nv * W);
  move(block.l, block.l_aside, block.nv * W);
}

inline void attend_sub_block(const fa_problem &p, const SubBlock &block, const Modifiers &mod, Panels k,
                             Panels v, int64_t key, int64_t keys, float *s, Ahead &ahead) {
  static_assert(MAX_NV == 2 || MAX_NV == 3, "one case for each number of vectors");
  if (block.nv == 1) return attend_tile<1>(p, block, mod, k, v, key, keys, s, ahead);
  if (block.nv == 2) return attend_tile<2>(p, block, mod, k, v, key, keys, s, ahead);
  if constexpr (MAX_NV == 3) attend_tile<3>(p, block, mod, k, v, key, keys, s, ahead);
}

}  // namespace
}  // namespace FA_NAMESPACE
