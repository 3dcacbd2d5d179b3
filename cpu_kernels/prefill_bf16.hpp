// Attention of many bfloat16 query rows by an instruction that multiplies pairs of bfloat16 (AVX512-BF16,
// AMX). Mirrors reference/tiling.py, as prefill.hpp does, which serves every other case.
//
// Queries stand in the lanes here too. Both products have one form, C = A B with A in rows of bfloat16 and B
// in rows of pairs, one pair a lane: S^T = K Q^T takes K as it lies (copied, so that rows spread over the
// sets of L1) and the pairs of Q^T, packed once for an item; O^T += V^T P^T takes V transposed, once for a
// tile and all its sub-blocks, and the weights of two neighbouring keys, which lie under each other, as
// pairs.
//
// Scores, maxima, sums and outputs are float32. Weights are rounded to bfloat16, by 2^-8 of their size at
// most, relative to a maximum that lags by at most LAZY. The output is divided by the sum of the rounded
// weights, so that a row with one large weight gets its value all but exactly. The log-sum-exp takes that of
// the weights before they are rounded, which is summed up where it is asked for.
#pragma once
#include <type_traits>

#include "modifiers.hpp"
#include "prefill.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int PAIR_SUB_ROWS = PAIR_NV * W;
constexpr int64_t PAIR_KEYS = 32;  // keys of a tile come in multiples of this
constexpr int64_t SLICE = 64;      // keys whose scores are in L1 at a time
constexpr int64_t COLUMNS = 32;    // of the output, whose values are in L1 at a time
constexpr int TOGETHER = 2;        // sub-blocks that share them there

struct PairSpace {
  uint32_t *q, *weights;
  uint16_t *k_tile, *v_tile;
  float *ot, *scores, *lanes, *staging;
  int32_t *intervals;
  int64_t *mask_rows;
  int64_t d_pairs, v_rows, weights_stride;
  PairLayout k_layout, v_layout;
  size_t bytes;
  PairSpace(const fa_problem &p, const Tiles &tiles, void *memory)
      : k_layout(p.head_dim), v_layout(tiles.key_tile) {
    Arena arena = {static_cast<char *>(memory), 0};
    const int64_t keys = round_up(tiles.key_tile, PAIR_KEYS);
    d_pairs = round_up(p.head_dim, 32) / 2;
    v_rows = round_up(p.v_dim, 16);
    q = arena.take<uint32_t>(tiles.item_rows * d_pairs);
    ot = arena.take<float>(tiles.item_rows * v_rows);
    scores = arena.take<float>(SLICE * PAIR_SUB_ROWS);
    weights_stride = keys / 2 * PAIR_SUB_ROWS;
    weights = arena.take<uint32_t>(TOGETHER * weights_stride);
    lanes = arena.take<float>(tiles.item_rows * 4);
    intervals = arena.take<int32_t>(tiles.item_rows * 2);
    mask_rows = arena.take<int64_t>(tiles.item_rows);
    staging = arena.take<float>(W * maximum(d_pairs, round_up(p.v_dim, W)));
    k_tile = arena.take<uint16_t>(keys / 16 * k_layout.block);
    v_tile = arena.take<uint16_t>(round_up(p.v_dim, 32) / 16 * v_layout.block);
    bytes = arena.used;
  }
};

// The queries of 16 rows as pairs: dst[pair][lane], `width` lanes apart; lanes without a row are 0.
inline void pack_queries(const fa_problem &p, const Sequence &seq, const Item &item, int64_t row_begin,
                         int64_t rows, int64_t d_pairs, float *staging, uint32_t *dst, int64_t width) {
  // Scores are multiplied by |scale|: a negative one changes the queries' signs, which is exact.
  const uint16_t sign = query_factor(p) < 0 ? 0x8000 : 0;
  std::memset(staging, 0, static_cast<size_t>(W * d_pairs) * sizeof(float));
  for (int64_t i = 0; i < rows; ++i) {
    const Row row = row_of(p, item, row_begin + i);
    const uint16_t *src =
        reinterpret_cast<const uint16_t *>(seq.q) + row.head * p.q_strides[1] + row.query * p.q_strides[2];
    uint16_t *to = reinterpret_cast<uint16_t *>(staging + i * d_pairs);
    for (int64_t d = 0; d < p.head_dim; ++d) to[d] = src[d] ^ sign;
  }
  transpose_in(staging, d_pairs, d_pairs, reinterpret_cast<float *>(dst), width);
}

// Keys [key, key + n) as rows; zeros behind head_dim and, up to a multiple of PAIR_KEYS, behind the last key.
inline void lay_keys(const KvRows &source, int64_t dim, int64_t key, int64_t n, uint16_t *dst,
                     const PairLayout &layout) {
  for (int64_t j = 0; j < round_up(n, PAIR_KEYS); ++j) {
    const uint16_t *const row = j < n ? reinterpret_cast<const uint16_t *>(source.at(key + j)) : nullptr;
    uint16_t *to = dst + j / 16 * layout.block + j % 16 * layout.row;
    for (int64_t d = 0; d < dim; d += 32, to += layout.step) {
      const __mmask32 some = dim - d >= 32 ? ~0u : (1u << (dim - d)) - 1;
      _mm512_storeu_si512(to, row ? _mm512_maskz_loadu_epi16(some, row + d) : _mm512_setzero_si512());
    }
  }
}

// 32 keys times 32 columns of V, transposed: dst[c][key]. Rows of neighbouring keys are interleaved to pairs,
// which are then transposed as floats would be.
inline void transpose_values(const uint16_t *const (&rows)[32], int64_t count, uint16_t *dst,
                             const PairLayout &layout) {
  const __mmask32 some = count >= 32 ? ~0u : (1u << count) - 1;
  F low[W], high[W];
  for (int i = 0; i < W; ++i) {
    const __m512i even = rows[2 * i] ? _mm512_maskz_loadu_epi16(some, rows[2 * i]) : _mm512_setzero_si512();
    const __m512i odd =
        rows[2 * i + 1] ? _mm512_maskz_loadu_epi16(some, rows[2 * i + 1]) : _mm512_setzero_si512();
    low[i] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(even, odd));
    high[i] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(even, odd));
  }
  transpose(low);
  transpose(high);
  // Interleaving works within quarters of the vectors: columns 0-3, 8-11, 16-19, 24-27 came low.
  for (int i = 0; i < W; ++i) {
    const int64_t column = i / 4 * 8 + i % 4;
    uint16_t *const to = dst + column / 16 * layout.block + column % 16 * layout.row;
    store(reinterpret_cast<float *>(to), low[i]);
    store(reinterpret_cast<float *>(to + 4 * layout.row), high[i]);
  }
}

inline void lay_values(const KvRows &source, int64_t dim, int64_t key, int64_t n, uint16_t *dst,
                       const PairLayout &layout) {
  for (int64_t j = 0; j < n; j += 32, dst += layout.step) {
    const uint16_t *rows[32];
    for (int64_t i = 0; i < 32; ++i)
      rows[i] = j + i < n ? reinterpret_cast<const uint16_t *>(source.at(key + j + i)) : nullptr;
    for (int64_t c = 0; c < dim; c += 32) {
      transpose_values(rows, dim - c, dst + c / 16 * layout.block, layout);
      for (const uint16_t *&row : rows)
        if (row) row += 32;
    }
  }
}

// A sub-block, and the part of a tile whose weights wait to be multiplied by values. Keys of a tile are
// counted from its first one on.
struct PairBlock {
  SubBlock rows;
  Modifiers modifiers;
  const uint32_t *q;
  uint32_t *weights;  // of all keys of a tile
  int64_t from, to;  // keys of the tile that the sub-block sees, from rounded down to PAIR_KEYS
  bool settled;  // every row has seen keys, so has a reference
  int64_t waiting, weighed;  // keys [waiting, weighed) have weights, but are not in the output yet
};

// A tile of keys and values, laid out.
struct PairTile {
  const uint16_t *k, *v;
  int64_t key;  // its first
};

// Columns [column, column + columns) of the output gain what the waiting weights say.
template <int NV>
inline void add_waiting(const PairBlock &block, const PairSpace &space, const PairTile &tile, int64_t column,
                        int64_t columns) {
  const int64_t first = block.waiting, count = block.weighed - first;
  if (count > 0)
    pair_product<NV, true>(tile.v + column / 16 * space.v_layout.block + first / 32 * space.v_layout.step,
                           space.v_layout, block.weights + first / 2 * NV * W, count / 2,
                           block.rows.ot + column * NV * W, columns);
}

// Where a row's maximum grew by more than LAZY, or its first key came, move the row to its new maximum.
// Weights relative to the old one go into the output before. `unit` turns scores into powers of 2.
template <int NV>
void raise_reference(PairBlock &pair_block, const PairSpace &space, const PairTile &tile, const float *top,
                     float unit) {
  const SubBlock &block = pair_block.rows;
  F growth[NV];
  bool grew = false;
  for (int n = 0; n < NV; ++n) {
    growth[n] = add(load(top + n * W), load(block.neg_m + n * W));
    grew |= any_gt(growth[n], load(block.limit + n * W));
  }
  if (!grew) return;
  add_waiting<NV>(pair_block, space, tile, 0, space.v_rows);
  pair_block.waiting = pair_block.weighed;
  F factor[NV];
  for (int n = 0; n < NV; ++n) {
    const F limit = load(block.limit + n * W), old = load(block.neg_m + n * W);
    const F moved = select_gt(growth[n], limit, sub(zero(), load(top + n * W)), old);
    // A row without keys so far has l = 0 and O = 0, which any finite factor leaves alone.
    factor[n] = select_gt(limit, zero(), exp2(mul(sub(moved, old), set1(unit))), set1(1.0f));
    store(block.neg_m + n * W, moved);
    store(block.limit + n * W, select_gt(growth[n], limit, set1(LAZY), limit));
    store(block.l + n * W, mul(load(block.l + n * W), factor[n]));
    if (block.rounded != block.l) store(block.rounded + n * W, mul(load(block.rounded + n * W), factor[n]));
  }
  for (int64_t c = 0; c < space.v_rows; ++c)
    for (int n = 0; n < NV; ++n)
      store(block.ot + (c * NV + n) * W, mul(load(block.ot + (c * NV + n) * W), factor[n]));
}

// The largest score of each lane. Four chains, so that a maximum need not wait for the one before it.
template <int NV>
void largest_scores(const float *s, int64_t keys, float *top) {
  F highest[4][NV];
  for (int i = 0; i < 4; ++i)
    for (int n = 0; n < NV; ++n) highest[i][n] = set1(-INFINITY);
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4)
    for (int i = 0; i < 4; ++i)
      for (int n = 0; n < NV; ++n) highest[i][n] = max(load(s + ((j + i) * NV + n) * W), highest[i][n]);
  for (; j < keys; ++j)
    for (int n = 0; n < NV; ++n) highest[0][n] = max(load(s + (j * NV + n) * W), highest[0][n]);
  for (int n = 0; n < NV; ++n)
    store(top + n * W, max(max(highest[0][n], highest[1][n]), max(highest[2][n], highest[3][n])));
}

// Two vectors of weights, of one key and the next, as bfloat16 pairs. Half a unit in the last place is added,
// the rest cut off.
inline __m512i pairs_of(F first, F second) {
  asm("" : "+v"(first), "+v"(second));  // else GCC 12 sends both through memory to make integers of them
  const __m512i half_unit = _mm512_set1_epi32(0x8000),
                high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i a = _mm512_add_epi32(_mm512_castps_si512(first), half_unit);
  const __m512i b = _mm512_add_epi32(_mm512_castps_si512(second), half_unit);
  // (b & high) | (a >> 16)
  return _mm512_ternarylogic_epi32(b, high, _mm512_srli_epi32(a, 16), 0xea);
}

// sum += both elements of each pair.
inline void add_pairs(F &sum, __m512i pairs) {
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pairs), ones);
}

// weights[pair] = 2^(s factor + reference). `rounded` collects the sums of what is written, l, where it is an
// array of its own (BOTH), those before rounding. Where a sum exceeds `most`, both stay as they were, and the
// answer is false.
template <int NV, bool BOTH>
bool weights_pairs(const SubBlock &block, const float *reference, float factor, float most, int64_t keys,
                   const float *s, uint32_t *weights) {
  F sum[NV], rounded[NV], origin[NV];
  for (int n = 0; n < NV; ++n) {
    sum[n] = rounded[n] = zero();
    origin[n] = load(reference + n * W);
  }
  const F unit = set1(factor);
  for (int64_t j = 0; j < keys; j += 2)
    for (int n = 0; n < NV; ++n) {
      const F a = exp2(fma(load(s + (j * NV + n) * W), unit, origin[n]));
      const F b = exp2(fma(load(s + ((j + 1) * NV + n) * W), unit, origin[n]));
      const __m512i pairs = pairs_of(a, b);
      if constexpr (BOTH) sum[n] = add(sum[n], add(a, b));
      add_pairs(rounded[n], pairs);
      _mm512_storeu_si512(weights + (j / 2 * NV + n) * W, pairs);
    }
  bool large = false;
  for (int n = 0; n < NV; ++n) large |= any_gt(rounded[n], set1(most));
  if (large) return false;
  for (int n = 0; n < NV; ++n) {
    if constexpr (BOTH) store(block.l + n * W, add(load(block.l + n * W), sum[n]));
    store(block.rounded + n * W, add(load(block.rounded + n * W), rounded[n]));
  }
  return true;
}

// Weights of the keys [first, first + keys) of a tile; first is a multiple of PAIR_KEYS.
template <int NV>
void weigh_slice(const fa_problem &p, PairBlock &pair_block, const PairSpace &space, const PairTile &tile,
                 int64_t first, int64_t keys) {
  const SubBlock &block = pair_block.rows;
  const Modifiers &mod = pair_block.modifiers;
  float *const s = space.scores;
  alignas(64) float top[NV * W], reference[NV * W];
  const int64_t key = tile.key + first, padded = round_up(keys, PAIR_KEYS);
  pair_product<NV, false>(tile.k + first / 16 * space.k_layout.block, space.k_layout, pair_block.q,
                          space.d_pairs, s, padded);

  uint32_t *const weights = pair_block.weights + first / 2 * NV * W;
  const bool full = key >= block.max_first && key + keys - 1 <= block.min_last;
  const float scale = std::fabs(query_factor(p));
  for (int64_t i = keys * NV; i < padded * NV; ++i) store(s + i * W, set1(-INFINITY));
  // A scale of 0 gives equal weights; so does the smallest normal number, which keeps hidden scores at -inf.
  const float plain = maximum(scale * LOG2E, 0x1p-126f);
  const auto weigh = [&](const float *origin, float unit, float most) {
    return block.l == block.rounded ? weights_pairs<NV, false>(block, origin, unit, most, padded, s, weights)
                                    : weights_pairs<NV, true>(block, origin, unit, most, padded, s, weights);
  };
  const bool seen = pair_block.settled && full && !mod.any;
  pair_block.settled |= full && !mod.any;
  // Once every row has a reference, maxima are looked for only where the sums tell of one far above it.
  if (seen && weigh(block.neg_m, plain, LARGE_SUM)) {
    pair_block.weighed = first + padded;
    return;
  }
  float factor = LOG2E;  // of what lies in s
  if (mod.any) {
    for (int64_t i = 0; i < keys * NV; ++i) store(s + i * W, mul(load(s + i * W), set1(scale)));
    modify_tile<NV>(p, block, mod, full, key, keys, s, top);
    raise_reference<NV>(pair_block, space, tile, top, LOG2E);
    // Subtracted here: a maximum as low as the lowest float32, times log2(e), would be infinite.
    for (int64_t j = 0; j < keys; ++j)
      for (int n = 0; n < NV; ++n)
        store(s + (j * NV + n) * W, add(load(s + (j * NV + n) * W), load(block.neg_m + n * W)));
    for (int n = 0; n < NV; ++n) store(reference + n * W, zero());
  } else {
    factor = plain;
    if (full)
      largest_scores<NV>(s, keys, top);
    else
      modify_tile<NV>(p, block, mod, full, key, keys, s, top);
    for (int n = 0; n < NV; ++n) store(top + n * W, mul(load(top + n * W), set1(factor)));
    raise_reference<NV>(pair_block, space, tile, top, 1.0f);
    for (int n = 0; n < NV; ++n) store(reference + n * W, load(block.neg_m + n * W));
  }
  weigh(reference, factor, INFINITY);
  pair_block.weighed = first + padded;
}

template <class Visit>
inline void with_vectors(int nv, Visit visit) {
  if (nv == 1) return visit(std::integral_constant<int, 1>{});
  if (nv == 2) return visit(std::integral_constant<int, 2>{});
  if constexpr (PAIR_NV == 3) visit(std::integral_constant<int, 3>{});
}

// A few sub-blocks go through a tile together: keys, slice by slice, and values, some columns at a time, are
// used by all of them while they are in L1.
inline void attend_pairs(const fa_problem &p, PairBlock *blocks, int count, const PairSpace &space,
                         const PairTile &tile, int64_t keys) {
  for (int b = 0; b < count; ++b) {
    PairBlock &block = blocks[b];
    block.from = maximum<int64_t>(0, block.rows.min_first - tile.key) / PAIR_KEYS * PAIR_KEYS;
    block.to = minimum(keys, block.rows.max_last + 1 - tile.key);
    block.waiting = block.weighed = block.from;
  }
  for (int64_t slice = 0; slice < keys; slice += SLICE)
    for (int b = 0; b < count; ++b) {
      const int64_t first = maximum(slice, blocks[b].from), past = minimum(slice + SLICE, blocks[b].to);
      if (first < past)
        with_vectors(blocks[b].rows.nv,
                     [&](auto nv) { weigh_slice<nv.value>(p, blocks[b], space, tile, first, past - first); });
    }
  for (int64_t column = 0; column < space.v_rows; column += COLUMNS)
    for (int b = 0; b < count; ++b)
      with_vectors(blocks[b].rows.nv, [&](auto nv) {
        add_waiting<nv.value>(blocks[b], space, tile, column, minimum(COLUMNS, space.v_rows - column));
      });
}

inline size_t prefill_bf16_bytes(const fa_problem &p, const Tiles &tiles) {
  return PairSpace(p, tiles, nullptr).bytes;
}

inline void prefill_bf16(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                         void *workspace) {
  const unsigned denormals = flush_denormals();
  const PairSpace space(p, tiles, workspace);
  PairBlock blocks[fa::MAX_SUB_BLOCKS];
  int64_t positions[fa::MAX_SUB_BLOCKS * PAIR_SUB_ROWS];
  float slopes[fa::MAX_SUB_BLOCKS * PAIR_SUB_ROWS];
  int count = 0;
  int64_t lane = 0, begin = item.key_end, end = item.key_begin;
  for (int64_t row = 0; row < item.rows; row += PAIR_SUB_ROWS, ++count) {
    SubBlock &block = blocks[count].rows;
    block.rows = minimum<int64_t>(PAIR_SUB_ROWS, item.rows - row);
    block.nv = static_cast<int>((block.rows + W - 1) / W);
    const int64_t width = block.nv * W;
    float *const lanes = space.lanes + 4 * lane;
    uint32_t *const q = space.q + lane * space.d_pairs;
    block.ot = space.ot + lane * space.v_rows;
    block.neg_m = lanes;
    block.limit = lanes + width;
    block.rounded = lanes + 2 * width;
    block.l = p.lse || item.partial ? lanes + 3 * width : block.rounded;
    block.aside = block.l_aside = nullptr;
    block.first = space.intervals + 2 * lane;
    block.last = block.first + width;
    begin_rows(p, seq, item, row, block, space.mask_rows + lane, positions + lane, slopes + lane);
    for (int n = 0; n < block.nv; ++n)
      pack_queries(p, seq, item, row + n * W, minimum<int64_t>(W, block.rows - n * W), space.d_pairs,
                   space.staging, q + n * W, width);
    std::memset(block.ot, 0, static_cast<size_t>(space.v_rows * width) * sizeof(float));
    std::memset(block.rounded, 0, static_cast<size_t>(width) * sizeof(float));
    blocks[count].q = q;
    blocks[count].settled = false;
    blocks[count].weights = space.weights + count % TOGETHER * space.weights_stride;
    blocks[count].modifiers = {is_modified(p), p.softcap, p.alibi_slopes ? slopes + lane : nullptr,
                               positions + lane,
                               p.mask_kind != FA_MASK_NONE ? space.mask_rows + lane : nullptr};
    begin = minimum(begin, block.min_first);
    end = maximum(end, block.max_last + 1);
    lane += width;
  }

  const KvRows k = key_source(p, seq, item.kv_head), v = value_source(p, seq, item.kv_head);
  begin -= begin % tiles.key_tile;  // tiles do not depend on which sub-blocks make the item
  for (int64_t key = begin; key < end && goes_on(item, denormals); key += tiles.key_tile) {
    const PairUnit unit;  // for a tile only: between them, others may need the registers
    const int64_t keys = minimum(tiles.key_tile, end - key);
    lay_keys(k, p.head_dim, key, keys, space.k_tile, space.k_layout);
    lay_values(v, p.v_dim, key, keys, space.v_tile, space.v_layout);
    const PairTile tile = {space.k_tile, space.v_tile, key};
    for (int b = 0; b < count; b += TOGETHER)
      attend_pairs(p, blocks + b, minimum(TOGETHER, count - b), space, tile, keys);
  }
  for (int b = 0; b < count; ++b)
    end_sub_block(p, seq, item, b * PAIR_SUB_ROWS, blocks[b].rows, space.staging);
  restore_denormals(denormals);
}

}  // namespace
}  // namespace FA_NAMESPACE
