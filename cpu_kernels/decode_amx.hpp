// Decode of bfloat16 and int8 caches by AMX tiles (mirrors reference/decode.py, as decode.hpp does for every
// other case). With several query rows a KV head, widening each key and value to float32 takes longer than
// reading it; tiles multiply them as they are.
//
// A tile product adds up two (int8: four) neighbours of a row of A with two (four) neighbours of a row of B.
// Scores are S^T = K Q^T: K is A, as it lies, so neighbours are elements of a key. In O += P V the values are
// B. Taken as they lie, too, neighbours are two columns of one value, of which each must end in a sum of its
// own: a weight stands in A twice, in rows of its own, at one place of the two and with a zero at the other
// (so that a NaN or an infinity among the values shows in the column beside it, too).
// That is the way of bfloat16. For int8 the weight would stand there four times, so four values are
// interleaved instead: neighbours are four values of one column.
//
// Nothing is lost by small operands. A query and a weight are split into pieces that the tiles take, three
// bfloat16 or three digits of 8 bits, which together hold the 24 bits of a float32; pieces are columns (rows)
// of one tile, so that they cost no further instruction for up to 5 query rows.
#pragma once
#include "tile_operands.hpp"

namespace FA_NAMESPACE {
namespace {

struct TileDecodeSpace {
  char *q, *copy, *weights, *products;  // tiles
  float *sums, *scores, *output, *row, *scales;
  int64_t score_stride, k_steps, column_groups, row_groups, rows_a_tile, q_tiles;
  size_t bytes;
  TileDecodeSpace(const fa_problem &p, const Tiles &tiles, void *memory) {
    Arena arena = {static_cast<char *>(memory), 0};
    const int64_t keys = round_up(tiles.key_tile, 64), line = p.kv_dtype == FA_INT8 ? 64 : 32;
    k_steps = round_up(p.head_dim, line) / line;
    column_groups = round_up(p.v_dim, VALUE_COLUMNS) / VALUE_COLUMNS;
    row_groups = (tiles.item_rows + MOST_ROWS_A_TILE - 1) / MOST_ROWS_A_TILE;
    rows_a_tile = (tiles.item_rows + row_groups - 1) / row_groups;
    q_tiles = pieces_of_query(p) == 1 ? 1 : row_groups;
    score_stride = keys;
    const int64_t outputs = row_groups * column_groups * 4;
    q = arena.take<char>(q_tiles * k_steps * TILE_BYTES);
    copy = arena.take<char>(maximum(k_steps, keys / W * 2) * TILE_BYTES);
    const int64_t weight_tiles = p.kv_dtype == FA_INT8 ? keys / WEIGHT_KEYS<int8_t> * WEIGHT_TILES<int8_t>
                                                       : keys / WEIGHT_KEYS<bfloat> * WEIGHT_TILES<bfloat>;
    weights = arena.take<char>(row_groups * weight_tiles * TILE_BYTES);
    products = arena.take<char>(p.kv_dtype == FA_INT8 ? outputs * TILE_BYTES : 0);
    sums = arena.take<float>(q_tiles * keys * W);
    scores = arena.take<float>(tiles.item_rows * score_stride);
    output = arena.take<float>(outputs * W * W);
    row = arena.take<float>(maximum(round_up(p.head_dim, 64), column_groups * VALUE_COLUMNS));
    scales = arena.take<float>(keys);
    bytes = arena.used;
  }
  static int pieces_of_query(const fa_problem &p) {
    return p.kv_dtype == FA_BFLOAT16 && p.q_dtype == FA_BFLOAT16 ? 1 : PIECES;
  }
  // The four tiles of sums of 64 columns.
  float *outputs(int64_t rows, int64_t columns) const {
    return output + (rows * column_groups + columns) * 4 * W * W;
  }
};

// One item's rows over its keys. The scores of a tile of keys are computed before the products of the one
// before: so tiles are at work once a turn, vectors once, and no tile load follows at once on the stores of
// what it reads.
template <class T>
struct TileDecoder {
  const fa_problem &p;
  const Sequence &seq;
  const Tiles &tiles;
  const TileDecodeSpace &space;
  const KvRows k, v, k_scales, v_scales;
  const int64_t rows;
  const int pieces;  // of a query
  int64_t end;
  KvAhead k_ahead, v_ahead;
  RowState state[AMX_DECODE_ROWS];
  float factors[AMX_DECODE_ROWS];  // of scores
  float units[AMX_DECODE_ROWS];  // of products

  TileDecoder(const fa_problem &problem, const Sequence &sequence, const Item &item, const Tiles &sizes,
              const TileDecodeSpace &memory)
      : p(problem),
        seq(sequence),
        tiles(sizes),
        space(memory),
        k(key_source(p, seq, item.kv_head)),
        v(value_source(p, seq, item.kv_head)),
        k_scales(key_scales(p, seq, item.kv_head)),
        v_scales(value_scales(p, seq, item.kv_head)),
        rows(item.rows),
        pieces(TileDecodeSpace::pieces_of_query(p)),
        k_ahead{{k, 0}, space.k_steps, 0},
        v_ahead{{v, 0}, (p.v_dim + LINE_ELEMENTS<T> - 1) / LINE_ELEMENTS<T>, 0} {}

  int64_t keys_at(int64_t key) const { return minimum(tiles.key_tile, end - key); }
  int64_t weight_step() const { return space.row_groups * WEIGHT_TILES<T> * TILE_BYTES; }

  // While vectors are at work: about as many lines as memory brings in that time, which grows with the keys.
  void fetch_meanwhile() {
    k_ahead.fetch(maximum<int64_t>(1, tiles.key_tile / (8 * k_ahead.lines)));
    v_ahead.fetch(maximum<int64_t>(1, tiles.key_tile / (16 * v_ahead.lines)));
  }

  void score(int64_t key) {
    const int64_t keys = keys_at(key), padded = round_up(keys, 64);
    for (int64_t j = 0; j < keys; j += W) {
      const KvTile at =
          kv_tile<T>(k, p.head_dim, 0, space.k_steps, key + j, minimum<int64_t>(W, keys - j), space.copy);
      for (int64_t t = 0; t < space.q_tiles; ++t)
        score_tile<T>(at, space.q + t * space.k_steps * TILE_BYTES, space.k_steps,
                      space.sums + (t * padded + j) * W, k_ahead, W / space.k_steps);
    }
  }

  // Integer sums, in units of each row, into the output's first piece.
  void collect_products() {
    const float *sums = reinterpret_cast<const float *>(space.products);
    for (int64_t t = 0, first = 0; t < space.row_groups; ++t, first += space.rows_a_tile) {
      float *output = space.outputs(t, 0);
      const int64_t here = minimum(space.rows_a_tile, rows - first);
      for (int64_t i = 0; i < space.column_groups * 4; ++i, sums += W * W, output += W * W)
        for (int64_t r = 0; r < here; ++r) {
          const float *const digits = sums + r * PIECES * W;
          F sum = sum_as_float(load(digits), int32_t{});
          for (int d = 1; d < PIECES; ++d)
            sum = fma(sum, set1(256.0f), sum_as_float(load(digits + d * W), int32_t{}));
          float *const at = output + r * PIECES * W;
          store(at, fma(sum, set1(units[first + r]), load(at)));
        }
    }
  }

  void rescale(int64_t r, float factor) {
    float *at = space.outputs(r / space.rows_a_tile, 0) + r % space.rows_a_tile * PIECES * W;
    for (int64_t i = 0; i < space.column_groups * 4; ++i, at += W * W)
      for (int64_t c = 0; c < PIECES * W; c += W) store(at + c, mul(load(at + c), set1(factor)));
  }

  // From sums to weights.
  void weigh(int64_t key) {
    const int64_t keys = keys_at(key), padded = round_up(keys, 64),
                  rows_a_q_tile = pieces == 1 ? W : space.rows_a_tile;
    for (int64_t j = 0; j < keys; j += W) {
      for (int64_t t = 0, first = 0; t < space.q_tiles; ++t, first += rows_a_q_tile)
        collect_scores<T>(space.sums + (t * padded + j) * W, pieces, minimum(rows_a_q_tile, rows - first),
                          factors + first, space.scores + first * space.score_stride + j, space.score_stride);
      fetch_meanwhile();
    }
    if constexpr (HAS_SCALES<T>) copy_scales(k_scales, key, keys, space.scales);
    for (int64_t r = 0; r < rows; ++r) {
      float *const s = space.scores + r * space.score_stride;
      if constexpr (HAS_SCALES<T>) multiply_row(space.scales, keys, s);
      modify_row(p, seq, state[r], key, keys, s);
      const float factor = weigh_row(state[r], keys, s);
      if (factor != 1.0f) rescale(r, factor);
      fetch_meanwhile();
    }
    if constexpr (HAS_SCALES<T>) {
      copy_scales(v_scales, key, keys, space.scales);
      for (int64_t r = 0; r < rows; ++r)
        multiply_row(space.scales, keys, space.scores + r * space.score_stride);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = round_up(keys, W); j < round_up(keys, WEIGHT_KEYS<T>); j += W)
        store(space.scores + r * space.score_stride + j, zero());
      units[r] = put_weights(space.scores + r * space.score_stride, round_up(keys, WEIGHT_KEYS<T>),
                             space.weights + r / space.rows_a_tile * WEIGHT_TILES<T> * TILE_BYTES,
                             weight_step(), r % space.rows_a_tile * PIECES, T{});
      fetch_meanwhile();
    }
  }

  void multiply(int64_t key) {
    constexpr int64_t LINES = VALUE_COLUMNS / LINE_ELEMENTS<T>;
    const int64_t keys = keys_at(key), blocks = (keys + W - 1) / W;
    for (int64_t c = 0; c < space.column_groups; ++c) {
      KvTile at[AMX_MOST_KEYS / W] = {};
      if constexpr (sizeof(T) == 1)
        lay_values(v, p.v_dim, c * VALUE_COLUMNS, key, keys, space.copy, v_ahead, 4 / space.column_groups);
      else
        for (int64_t i = 0; i < blocks; ++i)
          at[i] = kv_tile<T>(v, p.v_dim, c * LINES, LINES, key + i * W, minimum<int64_t>(W, keys - i * W),
                             space.copy + i * LINES * TILE_BYTES);
      for (int64_t t = 0; t < space.row_groups; ++t) {
        const char *const weights = space.weights + t * WEIGHT_TILES<T> * TILE_BYTES;
        if constexpr (sizeof(T) == 1) {
          FourSums::clear();
          add_products(weights, weight_step(), space.copy, (keys + 63) / 64);
          FourSums::store(space.products + (t * space.column_groups + c) * 4 * TILE_BYTES);
        } else {
          FourSums::load(space.outputs(t, c));
          add_products(weights, weight_step(), at, blocks, v_ahead,
                       W / (space.column_groups * space.row_groups));
          FourSums::store(space.outputs(t, c));
        }
      }
    }
  }

  void run(int64_t begin, int64_t past) {
    end = past;
    if (begin >= end) return;
    k_ahead.walk.key = v_ahead.walk.key = begin;
    k_ahead.past = minimum(begin + tiles.key_tile, end);
    v_ahead.past = begin;
    score(begin);
    for (int64_t key = begin; key < end; key += tiles.key_tile) {
      const int64_t next = minimum(key + tiles.key_tile, end);
      k_ahead.past = minimum(next + tiles.key_tile, end);
      v_ahead.past = minimum(next + tiles.key_tile / 2, end);
      weigh(key);
      if (next < end) score(next);
      multiply(key);
      if constexpr (sizeof(T) == 1) collect_products();
    }
  }
};

inline size_t decode_amx_bytes(const fa_problem &p, const Tiles &tiles) {
  return TileDecodeSpace(p, tiles, nullptr).bytes;
}

template <class T>
inline void decode_tiles(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                         void *workspace) {
  const TileDecodeSpace space(p, tiles, workspace);
  const TileUnit unit(static_cast<int>(space.rows_a_tile * PIECES));
  TileDecoder<T> decoder(p, seq, item, tiles, space);
  const int64_t rows_a_q_tile = decoder.pieces == 1 ? W : space.rows_a_tile,
                outputs = space.row_groups * space.column_groups * 4;
  int64_t begin = item.key_end, end = item.key_begin;
  std::memset(space.q, 0, static_cast<size_t>(space.q_tiles * space.k_steps * TILE_BYTES));
  std::memset(space.weights, 0,
              static_cast<size_t>(round_up(tiles.key_tile, 64) / WEIGHT_KEYS<T> * decoder.weight_step()));
  std::memset(space.output, 0, static_cast<size_t>(outputs * TILE_BYTES));
  std::memset(space.row, 0, static_cast<size_t>(round_up(p.head_dim, 64)) * sizeof(float));
  for (int64_t r = 0; r < item.rows; ++r) {
    const Row row = row_of(p, item, r);
    RowState &state = decoder.state[r];
    state = {-INFINITY, 0.0f, row, interval_of(p, seq, item, row.query)};
    load_query(p, seq, row, space.row, 1.0f);
    char *const q = space.q + r / rows_a_q_tile * space.k_steps * TILE_BYTES;
    const int column = static_cast<int>(r % rows_a_q_tile) * decoder.pieces;
    decoder.factors[r] = query_factor(p);
    if constexpr (sizeof(T) == 1)
      decoder.factors[r] *= put_query_int8(space.row, space.k_steps, q, column);
    else
      put_query_bf16(space.row, space.k_steps, decoder.pieces, q, column);
    if (state.seen.first <= state.seen.last) {
      begin = minimum(begin, state.seen.first);
      end = maximum(end, state.seen.last + 1);
    }
  }
  decoder.run(begin, end);
  for (int64_t r = 0; r < item.rows; ++r) {
    const RowState &state = decoder.state[r];
    const Finish finish = finish_state(p, item, state.where.head, state.m, state.l);
    for (int64_t c = 0; c < space.column_groups; ++c)
      for (int64_t i = 0; i < 4; ++i) {
        const float *const at =
            space.outputs(r / space.rows_a_tile, c) + (i * W + r % space.rows_a_tile * PIECES) * W;
        for (int64_t lane = 0; lane < W; ++lane) {
          float sum = at[lane];
          if constexpr (sizeof(T) == 2)
            for (int piece = 1; piece < PIECES; ++piece) sum += at[piece * W + lane];
          space.row[c * VALUE_COLUMNS + column_of<T>(i, lane)] = finish.empty ? 0.0f : sum * finish.factor;
        }
      }
    write_row(p, seq, item, r, space.row, finish.lse);
  }
}

inline void decode_amx(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                       void *workspace) {
  const unsigned denormals = flush_denormals();
  if (p.kv_dtype == FA_INT8)
    decode_tiles<int8_t>(p, seq, item, tiles, workspace);
  else
    decode_tiles<bfloat>(p, seq, item, tiles, workspace);
  restore_denormals(denormals);
}

}  // namespace
}  // namespace FA_NAMESPACE
