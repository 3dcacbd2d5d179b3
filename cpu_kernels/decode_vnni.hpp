// Decode of int8 caches by AVX512-VNNI (mirrors reference/decode.py, as decode.hpp does for every other
// case): keys and values are multiplied as they are, four bytes to a lane, instead of being widened to
// float32.
//
// vpdpbusd adds up four neighbouring bytes. In S = Q K^T neighbours are elements of a key: keys are
// transposed in words of four bytes, so that a lane is a key and no sum crosses lanes. In O += P V neighbours
// are values of one column: four values are interleaved, and a lane is a column. Either is done once for all
// rows.
//
// Nothing is lost by small operands: a query and the weights of a tile of keys are integers of 24 bits, in
// three digits of base 256, relative to their largest. Sums of their products with bytes are exact: a lane
// adds up at most head_dim (or a tile's keys) products below 2^15, far from 2^31. Two digits would be faster,
// but one element far above the others of its query would cost the scores as much as the rounding of the
// cache.
//
// K and V of a tile are read in turns, and each is asked for while the other is at work, at the pace of that
// work, so that memory is seldom idle.
#pragma once
#include "vnni_operands.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int VNNI_DECODE_ROWS = 16;

struct VnniDecodeSpace {
  char *keys, *copy, *values;
  int32_t *q, *raised;
  float *scores, *output, *row, *k_scales, *v_scales;
  int64_t words, column_groups, score_stride, output_stride;
  size_t bytes;
  VnniDecodeSpace(const fa_problem &p, const Tiles &tiles, void *memory) {
    Arena arena = {static_cast<char *>(memory), 0};
    const int64_t dims = round_up(p.head_dim, 16), tile = round_up(tiles.key_tile, BLOCK_KEYS);
    words = dims / 4;
    column_groups = round_up(p.v_dim, VALUE_COLUMNS) / VALUE_COLUMNS;
    score_stride = tile + W;  // so that rows do not lie 2^n bytes apart
    output_stride = column_groups * VALUE_COLUMNS;
    q = arena.take<int32_t>(tiles.item_rows * words * DIGITS);
    keys = arena.take<char>(dims * BLOCK_KEYS);
    raised = arena.take<int32_t>(BLOCK_KEYS);
    copy = arena.take<char>(round_up(p.head_dim, VALUE_COLUMNS) * W);
    values = arena.take<char>(tile * VALUE_COLUMNS);
    scores = arena.take<float>(tiles.item_rows * score_stride);
    output = arena.take<float>(tiles.item_rows * output_stride);
    row = arena.take<float>(maximum(dims, output_stride));
    k_scales = arena.take<float>(tile);
    v_scales = arena.take<float>(tile);
    bytes = arena.used;
  }
  int32_t *queries(int64_t r) const { return q + r * words * DIGITS; }
};

// One item's rows over its keys.
struct VnniDecoder {
  const fa_problem &p;
  const Sequence &seq;
  const Tiles &tiles;
  const VnniDecodeSpace &space;
  const KvRows k, v, k_scales, v_scales;
  const int rows;
  PacedRows k_ahead, v_ahead;
  RowState state[VNNI_DECODE_ROWS];
  float factors[VNNI_DECODE_ROWS];  // of scores
  float exponents[VNNI_DECODE_ROWS];  // of weights
  F sums[VNNI_DECODE_ROWS];  // of weights, lane by lane

  VnniDecoder(const fa_problem &problem, const Sequence &sequence, const Item &item, const Tiles &sizes,
              const VnniDecodeSpace &memory)
      : p(problem),
        seq(sequence),
        tiles(sizes),
        space(memory),
        k(key_source(p, seq, item.kv_head)),
        v(value_source(p, seq, item.kv_head)),
        k_scales(key_scales(p, seq, item.kv_head)),
        v_scales(value_scales(p, seq, item.kv_head)),
        rows(static_cast<int>(item.rows)),
        k_ahead{k, k.row_bytes <= round_up(p.head_dim, 2 * LINE)},
        v_ahead{v, v.row_bytes <= round_up(p.v_dim, 2 * LINE)} {}

  // Cycles of work on so many keys, at two products a cycle.
  int64_t score_cycles(int64_t keys) const { return keys * space.words * (14 + rows * DIGITS * 2) / 64; }
  int64_t other_cycles(int64_t keys) const {
    return keys * rows + keys * space.column_groups * (8 + rows * DIGITS * 2) / 4;
  }

  void score(int64_t key, int64_t keys) {
    copy_scales(k_scales, key, keys, space.k_scales);
    for (int64_t j = 0; j < keys; j += BLOCK_KEYS) {
      const int64_t here = minimum<int64_t>(BLOCK_KEYS, keys - j);
      lay_keys(k, p.head_dim, key + j, here, space.keys, space.raised, space.copy,
               v_ahead.take(space.words / 4 * ((here + W - 1) / W), 14));
      each_row_group(rows, [&](auto group, int r) {
        constexpr int R = decltype(group)::value, B = R <= 2 ? 4 : 2;  // 18 to 24 sums
        for (int64_t i = 0; i < here; i += B * W)
          score_keys<R, B>(
              space.keys + i * 4, space.raised + i, space.words, space.queries(r), factors + r,
              space.k_scales + j + i, space.scores + r * space.score_stride + j + i, space.score_stride,
              v_ahead.take(R == 1 ? space.words / 2 : space.words, R == 1 ? 12 : R * B * DIGITS / 2));
      });
    }
  }

  // Whether a row's scores are its weights' logarithms as they are, all of them.
  bool is_plain(const RowState &row, int64_t key, int64_t keys) const {
    return !is_modified(p) && keys % W == 0 && row.seen.first <= key && row.seen.last >= key + keys - 1;
  }

  // Where a row's maximum grew by more than LAZY, or its first key came, the row moves to its new maximum.
  void follow_maximum(int r, int64_t keys, const float *s) {
    RowState &row = state[r];
    F top = set1(-INFINITY);
    for (int64_t j = 0; j < keys; j += W) top = max(load(s + j), top);
    if (!any_gt(top, set1(row.m == -INFINITY ? row.m : row.m + LAZY))) return;
    const float highest = reduce_max(top);
    if (row.m != -INFINITY) {
      const F factor = set1(static_cast<float>(std::exp(static_cast<double>(row.m) - highest)));
      sums[r] = mul(sums[r], factor);
      float *const output = space.output + r * space.output_stride;
      for (int64_t c = 0; c < space.output_stride; c += W) store(output + c, mul(load(output + c), factor));
    }
    row.m = highest;
  }

  // From scores to weights, as digits. All rows take each step before any takes the next, so that the steps
  // of one hide how long another's last.
  void weigh_rows(int64_t key, int64_t keys) {
    const int64_t padded = round_up(keys, W);
    F tops[VNNI_DECODE_ROWS];
    copy_scales(v_scales, key, keys, space.v_scales);
    for (int r = 0; r < rows; ++r) {
      float *const s = space.scores + r * space.score_stride;
      if (!is_plain(state[r], key, keys)) modify_row(p, seq, state[r], key, keys, s);
      follow_maximum(r, padded, s);
    }
    for (int r = 0; r < rows; ++r)
      tops[r] = weigh(state[r].m == -INFINITY ? 0.0f : state[r].m, space.v_scales, padded,
                      space.scores + r * space.score_stride, sums[r]);
    for (int r = 0; r < rows; ++r) exponents[r] = exponent_of(tops[r]);
    for (int r = 0; r < rows; ++r) put_weights(exponents[r], padded, space.scores + r * space.score_stride);
  }

  void multiply(int64_t key, int64_t keys) {
    const int32_t *const weights = reinterpret_cast<const int32_t *>(space.scores);
    for (int64_t c = 0; c < space.column_groups; ++c) {
      lay_values(v, p.v_dim, c * VALUE_COLUMNS, key, keys, space.values, k_ahead.take((keys + 3) / 4, 8));
      const auto add_to = [&](auto count, int r) {
        add_values<decltype(count)::value>(
            space.values, (keys + 3) / 4, weights + r * space.score_stride, space.score_stride, exponents + r,
            space.output + r * space.output_stride + c * VALUE_COLUMNS, space.output_stride,
            k_ahead.take((keys + 3) / 4, decltype(count)::value * DIGITS * 2));
      };
      int r = 0;
      for (; r + 2 <= rows; r += 2) add_to(Constant<2>{}, r);
      if (r < rows) add_to(Constant<1>{}, r);
    }
  }

  void run(int64_t begin, int64_t end) {
    for (int64_t key = begin; key < end; key += tiles.key_tile) {
      const int64_t keys = minimum(tiles.key_tile, end - key);
      v_ahead.begin(key, keys, score_cycles(keys));
      score(key, keys);
      k_ahead.begin(key + keys, minimum(tiles.key_tile, end - key - keys), other_cycles(keys));
      weigh_rows(key, keys);
      multiply(key, keys);
    }
  }
};

inline size_t decode_vnni_bytes(const fa_problem &p, const Tiles &tiles) {
  return VnniDecodeSpace(p, tiles, nullptr).bytes;
}

inline void decode_vnni(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                        void *workspace) {
  const unsigned denormals = flush_denormals();
  const VnniDecodeSpace space(p, tiles, workspace);
  VnniDecoder decoder(p, seq, item, tiles, space);
  int64_t begin = item.key_end, end = item.key_begin;
  std::memset(space.keys, 0, static_cast<size_t>(space.words * 4 * BLOCK_KEYS));
  std::memset(space.raised, 0, BLOCK_KEYS * sizeof(int32_t));
  std::memset(space.output, 0, static_cast<size_t>(item.rows * space.output_stride) * sizeof(float));
  std::memset(space.row, 0, static_cast<size_t>(space.words * 4) * sizeof(float));
  for (int64_t r = 0; r < item.rows; ++r) {
    const Row row = row_of(p, item, r);
    RowState &state = decoder.state[r];
    decoder.sums[r] = zero();
    state = {-INFINITY, 0.0f, row, interval_of(p, seq, item, row.query)};
    load_query(p, seq, row, space.row, 1.0f);
    decoder.factors[r] = query_factor(p) * put_query(space.row, space.words * 4, space.queries(r));
    if (state.seen.first <= state.seen.last) {
      begin = minimum(begin, state.seen.first);
      end = maximum(end, state.seen.last + 1);
    }
  }
  decoder.run(begin, end);
  for (int64_t r = 0; r < item.rows; ++r) {
    const RowState &state = decoder.state[r];
    const Finish finish = finish_state(p, item, state.where.head, state.m, reduce_add(decoder.sums[r]));
    const float *const sums = space.output + r * space.output_stride;
    for (int64_t c = 0; c < space.output_stride; c += 4)
      _mm_store_ps(
          space.row + column_of(c),
          finish.empty ? _mm_setzero_ps() : _mm_mul_ps(_mm_load_ps(sums + c), _mm_set1_ps(finish.factor)));
    write_row(p, seq, item, r, space.row, finish.lse);
  }
  restore_denormals(denormals);
}

}  // namespace
}  // namespace FA_NAMESPACE
