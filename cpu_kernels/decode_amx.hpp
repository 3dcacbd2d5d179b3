// Decode of bfloat16 and int8 caches by AMX tiles (mirrors reference/decode.py, as decode.hpp does for every
// other case). With several query rows a KV head, widening each key and value to float32 takes longer than
// reading it; tiles multiply them as they are.
//
// Nothing is lost by that. A query and a weight are split into pieces that the tiles take, three bfloat16 or
// three digits of 8 bits, which together hold the 24 bits of a float32; pieces are columns (rows) of one
// tile, so that they cost no further instruction for up to 5 query rows. Scores are S^T = K Q^T, with K as it
// lies and the pieces of Q in columns; outputs are O += P V, with the pieces of P in rows and V interleaved:
// two (four) keys side by side.
#pragma once
#include "decode.hpp"
#include "isa/tiles.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int AMX_DECODE_ROWS = 16;
constexpr int PIECES = 3;
constexpr int ROWS_A_TILE = W / PIECES;  // query rows whose pieces fit into one tile
constexpr int WEIGHT_TILES = (AMX_DECODE_ROWS + ROWS_A_TILE - 1) / ROWS_A_TILE;
static_assert(WEIGHT_TILES <= 4, "one accumulator each");

template <class T>
constexpr int LINE_ELEMENTS = 64 / static_cast<int>(sizeof(T));  // of a cache line, which is a row of a tile

template <class T>
struct TileSums {  // what the tiles of this type add up
  using Is = float;
};
template <>
struct TileSums<int8_t> {
  using Is = int32_t;
};

struct TileDecodeSpace {
  char *q, *k, *v, *weights;  // tiles
  void *sums;  // of scores, one tile
  float *scores, *output, *row, *scales, *highest;
  int64_t score_stride, output_stride, k_steps, groups, q_tiles, w_tiles;
  size_t bytes;
  TileDecodeSpace(const fa_problem &p, const Tiles &tiles, void *memory) {
    Arena arena = {static_cast<char *>(memory), 0};
    const int64_t line = p.kv_dtype == FA_INT8 ? 64 : 32, rows = tiles.item_rows;
    const int64_t keys = round_up(tiles.key_tile, 64);
    k_steps = round_up(p.head_dim, line) / line;
    groups = round_up(p.v_dim, 64) / W;
    w_tiles = (rows + ROWS_A_TILE - 1) / ROWS_A_TILE;
    q_tiles = pieces_of_query(p) == 1 ? 1 : w_tiles;
    score_stride = keys;
    output_stride = groups * W;
    q = arena.take<char>(q_tiles * k_steps * TILE_BYTES);
    k = arena.take<char>(4 * k_steps * TILE_BYTES);
    v = arena.take<char>(keys / line * 4 * TILE_BYTES);
    weights = arena.take<char>(w_tiles * keys / line * TILE_BYTES);
    // Of all keys of a tile, or of all columns of an output: a tile just stored cannot be loaded from at
    // once.
    sums = arena.take<float>(maximum(keys / W * q_tiles, groups * w_tiles) * W * W);
    scores = arena.take<float>(rows * score_stride);
    output = arena.take<float>(w_tiles * W * output_stride);
    row = arena.take<float>(maximum(round_up(p.head_dim, 64), output_stride));
    scales = arena.take<float>(keys);
    highest = arena.take<float>(AMX_DECODE_ROWS);
    bytes = arena.used;
  }
  static int pieces_of_query(const fa_problem &p) {
    return p.kv_dtype == FA_BFLOAT16 && p.q_dtype == FA_BFLOAT16 ? 1 : PIECES;
  }
};

// The next tile's lines, asked for little by little while this one is worked on, so that memory never rests.
struct LinesAhead {
  const KvRows *k, *v;
  int64_t k_lines, v_lines;  // of a row
  int64_t key, end;
  const char *k_row, *v_row;
  int64_t line;

  LinesAhead(const KvRows &keys, const KvRows &values, int64_t k_bytes, int64_t v_bytes, int64_t first,
             int64_t past)
      : k(&keys),
        v(&values),
        k_lines((k_bytes + 63) / 64),
        v_lines((v_bytes + 63) / 64),
        key(first),
        end(past) {
    start_row();
  }
  void start_row() {
    line = 0;
    if (key >= end) return;
    k_row = k->at(key);
    v_row = v->at(key);
  }
  void fetch(int64_t count) {
    for (; count > 0 && key < end; --count) {
      const char *const at = line < k_lines ? k_row + line * 64 : v_row + (line - k_lines) * 64;
      __builtin_prefetch(at, 0, 2);
      if (++line == k_lines + v_lines) {
        ++key;
        start_row();
      }
    }
  }
};

inline __m512i high_half(__m512i bits) {
  return _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}

// x as the sum of three bfloat16, each 16 bits in the upper half of a lane: the first cuts x off, the others
// what is left.
inline void split(F x, __m512i (&piece)[PIECES]) {
  for (int i = 0; i < PIECES; ++i) {
    piece[i] = high_half(_mm512_castps_si512(x));
    x = sub(x, _mm512_castsi512_ps(piece[i]));
  }
}

// A query row, split into columns of the tiles of Q: column `column` on. Row i of a tile holds, for each
// column, the 2 (4) neighbouring elements 2 i (4 i) and on.
inline void put_query_bf16(const float *row, int64_t k_steps, int pieces, char *tiles, int column) {
  for (int64_t d = 0; d < k_steps * 32; d += W) {
    __m512i piece[PIECES];
    split(load(row + d), piece);
    for (int i = 0; i < pieces; ++i) {
      alignas(64) uint32_t bits[W];
      _mm512_store_si512(bits, piece[i]);
      for (int e = 0; e < W; ++e) {
        const int64_t element = d + e;
        char *const tile = tiles + element / 32 * TILE_BYTES;
        const uint16_t value = static_cast<uint16_t>(bits[e] >> 16);
        std::memcpy(tile + element % 32 / 2 * 64 + (column + i) * 4 + element % 2 * 2, &value, 2);
      }
    }
  }
}

// Likewise in digits of base 256, the most significant first, each from -128 to 127. Returns what the number
// d2 65536 + d1 256 + d0 is to be multiplied by.
inline float put_query_int8(const float *row, int64_t k_steps, char *tiles, int column) {
  constexpr float LARGEST = 127 * 65536 + 127 * 256 + 127;
  F top = zero();
  for (int64_t d = 0; d < k_steps * 64; d += W) top = max(abs(load(row + d)), top);
  const float highest = reduce_max(top);
  const F factor = set1(highest > 0 ? LARGEST / highest : 0.0f), bound = set1(LARGEST);
  for (int64_t d = 0; d < k_steps * 64; d += W) {
    alignas(64) int32_t number[W];
    const F x = max(min(mul(load(row + d), factor), bound), sub(zero(), bound));
    _mm512_store_si512(number, _mm512_cvtps_epi32(x));
    for (int e = 0; e < W; ++e) {
      const int64_t element = d + e;
      char *const at = tiles + element / 64 * TILE_BYTES + element % 64 / 4 * 64 + column * 4 + element % 4;
      int32_t rest = number[e];
      for (int i = PIECES - 1; i >= 0; --i) {
        const int8_t digit = static_cast<int8_t>(rest);
        at[i * 4] = static_cast<char>(digit);
        rest = (rest - digit) / 256;
      }
    }
  }
  return highest / LARGEST;
}

template <class T>
inline __m512i load_line(const T *row, int64_t left) {  // left: elements up to the end of the row
  if (left >= LINE_ELEMENTS<T>) return _mm512_loadu_si512(row);
  if (sizeof(T) == 1) return _mm512_maskz_loadu_epi8((1ull << left) - 1, row);
  return _mm512_maskz_loadu_epi16((1u << left) - 1, row);
}

// Where a tile of 16 keys lies: its rows, and the steps along head_dim.
struct KeyTile {
  const char *at;
  int64_t row, step;  // bytes
};

// Keys [key, key + n), n <= 16. Most are loaded from where they are; copied are those that end within a line,
// cross pages, or are fewer than 16: zeros stand for what is missing.
template <class T>
inline KeyTile key_tile(const KvRows &source, int64_t dim, int64_t key, int64_t n, int64_t k_steps,
                        char *copy) {
  if (n == W && dim % LINE_ELEMENTS<T> == 0 && source.run(key, n) == n)
    return {source.at(key), source.row_bytes, 64};
  for (int64_t j = 0; j < W; ++j) {
    const T *const row = j < n ? reinterpret_cast<const T *>(source.at(key + j)) : nullptr;
    for (int64_t s = 0; s < k_steps; ++s) {
      const int64_t d = s * LINE_ELEMENTS<T>;
      _mm512_store_si512(copy + s * TILE_BYTES + j * 64,
                         row ? load_line(row + d, dim - d) : _mm512_setzero_si512());
    }
  }
  return {copy, 64, TILE_BYTES};
}

// One line each of 2 (4) neighbouring keys, interleaved: 2 (4) vectors of 16 columns.
inline void interleave(const __m512i (&line)[2], __m512i (&out)[2]) {
  out[0] = _mm512_unpacklo_epi16(line[0], line[1]);
  out[1] = _mm512_unpackhi_epi16(line[0], line[1]);
}
inline void interleave(const __m512i (&line)[4], __m512i (&out)[4]) {
  const __m512i a = _mm512_unpacklo_epi8(line[0], line[1]), b = _mm512_unpackhi_epi8(line[0], line[1]);
  const __m512i c = _mm512_unpacklo_epi8(line[2], line[3]), d = _mm512_unpackhi_epi8(line[2], line[3]);
  out[0] = _mm512_unpacklo_epi16(a, c);
  out[1] = _mm512_unpackhi_epi16(a, c);
  out[2] = _mm512_unpacklo_epi16(b, d);
  out[3] = _mm512_unpackhi_epi16(b, d);
}
// Interleaving works within quarters of a vector, so the 16 columns of vector i of a line are not neighbours:
// lane l holds this column of the line.
template <class T>
inline int64_t column_of(int64_t vector, int64_t lane) {
  constexpr int64_t share = LINE_ELEMENTS<T> / 4;  // columns of a quarter
  return lane / 4 * share + vector * 4 + lane % 4;
}

// 64 columns of the values [key, key + n), from `column` on, as tiles of a line's worth of keys times 16
// columns, 4 tiles for each line's worth of keys; zeros behind the last key and the last column.
template <class T>
inline void lay_values(const KvRows &source, int64_t dim, int64_t column, int64_t key, int64_t n, char *tiles,
                       LinesAhead &ahead) {
  constexpr int N = 4 / static_cast<int>(sizeof(T)), KEYS = LINE_ELEMENTS<T>;
  for (int64_t j = 0; j < round_up(n, KEYS); j += N) {
    const T *row[N];
    for (int i = 0; i < N; ++i)
      row[i] = j + i < n ? reinterpret_cast<const T *>(source.at(key + j + i)) + column : nullptr;
    char *to = tiles + j / KEYS * 4 * TILE_BYTES + j % KEYS / N * 64;
    for (int64_t c = 0; c < 64; c += LINE_ELEMENTS<T>) {
      __m512i line[N], out[N];
      for (int i = 0; i < N; ++i)
        line[i] =
            row[i] && column + c < dim ? load_line(row[i] + c, dim - column - c) : _mm512_setzero_si512();
      interleave(line, out);
      for (int i = 0; i < N; ++i, to += TILE_BYTES) _mm512_store_si512(to, out[i]);
    }
    ahead.fetch(N * 64 / LINE_ELEMENTS<T>);
  }
}

template <class T, int C, int A, int B>
inline void tile_dot_scores() {
  if constexpr (sizeof(T) == 1)
    tile_dot_s8s8<C, A, B>();
  else
    tile_dot_bf16<C, A, B>();
}
template <class T, int C, int A, int B>
inline void tile_dot_outputs() {
  if constexpr (sizeof(T) == 1)
    tile_dot_u8s8<C, A, B>();
  else
    tile_dot_bf16<C, A, B>();
}

// Four accumulators at once, whichever of keys, columns, rows they stand for: a product takes 16 cycles, its
// sum is there after 52.
struct FourSums {
  static void clear() {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  static void store(char *at, int64_t step, int64_t stride) {
    tile_store<0>(at, stride);
    tile_store<1>(at + step, stride);
    tile_store<2>(at + 2 * step, stride);
    tile_store<3>(at + 3 * step, stride);
  }
};

// Four tiles of 16 keys against one tile of queries: sums[4][key][column].
template <class T>
inline void score_four_tiles(const KeyTile (&k)[4], const char *q, int64_t k_steps, void *sums) {
  FourSums::clear();
  for (int64_t s = 0; s < k_steps; ++s, q += TILE_BYTES) {
    tile_load<6>(q, 64);
    tile_load<4>(k[0].at + s * k[0].step, k[0].row);
    tile_dot_scores<T, 0, 4, 6>();
    tile_load<5>(k[1].at + s * k[1].step, k[1].row);
    tile_dot_scores<T, 1, 5, 6>();
    tile_load<4>(k[2].at + s * k[2].step, k[2].row);
    tile_dot_scores<T, 2, 4, 6>();
    tile_load<5>(k[3].at + s * k[3].step, k[3].row);
    tile_dot_scores<T, 3, 5, 6>();
  }
  FourSums::store(static_cast<char *>(sums), TILE_BYTES, 64);
}

inline F sum_as_float(F lane_sums, float) { return lane_sums; }
inline F sum_as_float(F lane_sums, int32_t) { return _mm512_cvtepi32_ps(_mm512_castps_si512(lane_sums)); }

// Sums of 16 keys (rows) and 16 columns to scores of 16 keys each of the rows of this tile.
template <class T>
inline void collect_scores(const float *sums, int pieces, int64_t rows, const float *factors, float *scores,
                           int64_t stride) {
  using Sum = typename TileSums<T>::Is;
  F t[W];
  for (int i = 0; i < W; ++i) t[i] = load(sums + i * W);
  transpose(t);
  for (int64_t r = 0; r < rows; ++r) {
    F score = sum_as_float(t[r * pieces], Sum{});
    for (int i = 1; i < pieces; ++i) {
      const F piece = sum_as_float(t[r * pieces + i], Sum{});
      score = sizeof(T) == 1 ? fma(score, set1(256.0f), piece) : add(score, piece);
    }
    store(scores + r * stride, mul(score, set1(factors[r])));
  }
}

// The weights of a row as pieces: rows of tiles of A, `row` on. Returns what the digits are to be multiplied
// by.
inline float put_weights(const float *weights, int64_t keys, char *tiles, int row, bfloat) {
  for (int64_t j = 0; j < keys; j += W) {
    __m512i piece[PIECES];
    split(load(weights + j), piece);
    char *const at = tiles + j / 32 * TILE_BYTES + row * 64 + j % 32 * 2;
    for (int i = 0; i < PIECES; ++i)
      _mm256_store_si256(reinterpret_cast<__m256i *>(at + i * 64),
                         _mm512_cvtepi32_epi16(_mm512_srli_epi32(piece[i], 16)));
  }
  return 1.0f;
}
inline float put_weights(const float *weights, int64_t keys, char *tiles, int row, int8_t) {
  constexpr float LARGEST =
      16776960.0f;  // a little below 2^24, so that rounding cannot carry into a fourth digit
  F top = zero();
  for (int64_t j = 0; j < keys; j += W) top = max(load(weights + j), top);
  const float highest = reduce_max(top);
  const F factor = set1(highest > 0 ? LARGEST / highest : 0.0f);
  for (int64_t j = 0; j < keys; j += W) {
    const __m512i number = _mm512_cvtps_epi32(min(mul(load(weights + j), factor), set1(LARGEST)));
    char *const at = tiles + j / 64 * TILE_BYTES + row * 64 + j % 64;
    for (int i = 0; i < PIECES; ++i)
      _mm_store_si128(reinterpret_cast<__m128i *>(at + i * 64),
                      _mm512_cvtepi32_epi8(_mm512_srli_epi32(number, static_cast<unsigned>(16 - 8 * i))));
  }
  return highest / LARGEST;
}

// The products of one tile of weights and 64 columns of values, over `steps` tiles of keys.
template <class T>
inline void add_products(const char *weights, const char *v, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s, weights += TILE_BYTES, v += 4 * TILE_BYTES) {
    tile_load<4>(weights, 64);
    tile_load<5>(v, 64);
    tile_dot_outputs<T, 0, 4, 5>();
    tile_load<6>(v + TILE_BYTES, 64);
    tile_dot_outputs<T, 1, 4, 6>();
    tile_load<5>(v + 2 * TILE_BYTES, 64);
    tile_dot_outputs<T, 2, 4, 5>();
    tile_load<6>(v + 3 * TILE_BYTES, 64);
    tile_dot_outputs<T, 3, 4, 6>();
  }
}

// output[piece rows][64 columns] += P V; bfloat16 pieces are added where they are.
inline void add_outputs(const TileDecodeSpace &space, const char *weights, int64_t steps, float *output,
                        int64_t, bfloat) {
  char *const at = reinterpret_cast<char *>(output);
  const int64_t stride = space.output_stride * 4;
  tile_load<0>(at, stride);
  tile_load<1>(at + 64, stride);
  tile_load<2>(at + 128, stride);
  tile_load<3>(at + 192, stride);
  add_products<bfloat>(weights, space.v, steps);
  FourSums::store(at, 64, stride);
}
// Sums of digits are integers: those of this tile, tile `number` of the sums.
inline void add_outputs(const TileDecodeSpace &space, const char *weights, int64_t steps, float *,
                        int64_t number, int8_t) {
  FourSums::clear();
  add_products<int8_t>(weights, space.v, steps);
  FourSums::store(static_cast<char *>(space.sums) + number * TILE_BYTES, TILE_BYTES, 64);
}

// Integer sums of a tile of weights, in units of each row, into the output of the row's first piece.
inline void collect_outputs(const float *sums, int64_t groups, int64_t rows, const float *unit, float *output,
                            int64_t stride) {
  for (int64_t g = 0; g < groups; ++g, sums += W * W, output += W)
    for (int64_t r = 0; r < rows; ++r) {
      const float *const digits = sums + r * PIECES * W;
      F sum = sum_as_float(load(digits), int32_t{});
      for (int d = 1; d < PIECES; ++d)
        sum = fma(sum, set1(256.0f), sum_as_float(load(digits + d * W), int32_t{}));
      float *const at = output + r * PIECES * stride;
      store(at, fma(sum, set1(unit[r]), load(at)));
    }
}

template <class T>
inline void decode_key_tiles(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                             const TileDecodeSpace &space, RowState *state, const float *factors,
                             int64_t begin, int64_t end) {
  constexpr int64_t KEYS = LINE_ELEMENTS<T>;
  const KvRows k = key_source(p, seq, item.kv_head), v = value_source(p, seq, item.kv_head);
  const KvRows k_scales = key_scales(p, seq, item.kv_head), v_scales = value_scales(p, seq, item.kv_head);
  const int pieces = TileDecodeSpace::pieces_of_query(p);
  const int64_t rows = item.rows, rows_a_tile = W / pieces;
  LinesAhead ahead(k, v, p.head_dim * static_cast<int64_t>(sizeof(T)),
                   p.v_dim * static_cast<int64_t>(sizeof(T)), minimum(begin + tiles.key_tile, end), end);
  for (int64_t key = begin; key < end; key += tiles.key_tile) {
    const int64_t keys = minimum(tiles.key_tile, end - key), padded = round_up(keys, 64);
    float *const sums = static_cast<float *>(space.sums);
    for (int64_t j = 0; j < keys; j += 4 * W) {
      KeyTile four[4];
      for (int64_t i = 0; i < 4; ++i)
        four[i] = key_tile<T>(k, p.head_dim, key + j + i * W,
                              maximum<int64_t>(0, minimum<int64_t>(W, keys - j - i * W)), space.k_steps,
                              space.k + i * space.k_steps * TILE_BYTES);
      for (int64_t t = 0; t < space.q_tiles; ++t)
        score_four_tiles<T>(four, space.q + t * space.k_steps * TILE_BYTES, space.k_steps,
                            sums + (t * padded + j) * W);
      ahead.fetch(4 * W * space.k_steps);
    }
    for (int64_t t = 0, first = 0; t < space.q_tiles; ++t, first += rows_a_tile)
      for (int64_t j = 0; j < keys; j += W)
        collect_scores<T>(sums + (t * padded + j) * W, pieces, minimum(rows_a_tile, rows - first),
                          factors + first, space.scores + first * space.score_stride + j, space.score_stride);
    if constexpr (HAS_SCALES<T>) copy_scales(k_scales, key, keys, space.scales);
    for (int64_t r = 0; r < rows; ++r) {
      float *const s = space.scores + r * space.score_stride;
      if constexpr (HAS_SCALES<T>) multiply_row(space.scales, keys, s);
      modify_row(p, seq, state[r], key, keys, s);
      const float factor = weigh_row(state[r], keys, s);
      for (int64_t j = round_up(keys, W); j < padded; j += W) store(s + j, zero());
      if (factor == 1.0f) continue;
      float *const output =
          space.output + (r / ROWS_A_TILE * W + r % ROWS_A_TILE * PIECES) * space.output_stride;
      for (int64_t c = 0; c < PIECES * space.output_stride; ++c) output[c] *= factor;
    }
    if constexpr (HAS_SCALES<T>) {
      copy_scales(v_scales, key, keys, space.scales);
      for (int64_t r = 0; r < rows; ++r)
        multiply_row(space.scales, keys, space.scores + r * space.score_stride);
    }
    const int64_t steps = round_up(keys, KEYS) / KEYS, w_bytes = steps * TILE_BYTES;
    for (int64_t r = 0; r < rows; ++r)
      space.highest[r] = put_weights(space.scores + r * space.score_stride, steps * KEYS,
                                     space.weights + r / ROWS_A_TILE * w_bytes,
                                     static_cast<int>(r % ROWS_A_TILE * PIECES), T{});
    for (int64_t g = 0; g < space.groups; g += 4) {
      lay_values<T>(v, p.v_dim, g * W, key, keys, space.v, ahead);
      for (int64_t t = 0; t < space.w_tiles; ++t)
        add_outputs(space, space.weights + t * w_bytes, steps,
                    space.output + t * W * space.output_stride + g * W, t * space.groups + g, T{});
    }
    if constexpr (sizeof(T) == 1)
      for (int64_t t = 0, first = 0; t < space.w_tiles; ++t, first += ROWS_A_TILE)
        collect_outputs(sums + t * space.groups * W * W, space.groups,
                        minimum<int64_t>(ROWS_A_TILE, rows - first), space.highest + first,
                        space.output + t * W * space.output_stride, space.output_stride);
  }
}

inline size_t decode_amx_bytes(const fa_problem &p, const Tiles &tiles) {
  return TileDecodeSpace(p, tiles, nullptr).bytes;
}

template <class T>
inline void decode_tiles(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                         void *workspace) {
  const TileUnit unit;
  const TileDecodeSpace space(p, tiles, workspace);
  const int pieces = TileDecodeSpace::pieces_of_query(p);
  const int64_t rows_a_tile = W / pieces;
  RowState state[AMX_DECODE_ROWS];
  float factors[AMX_DECODE_ROWS];
  int64_t begin = item.key_end, end = item.key_begin;
  std::memset(space.q, 0, static_cast<size_t>(space.q_tiles * space.k_steps * TILE_BYTES));
  std::memset(
      space.weights, 0,
      static_cast<size_t>(space.w_tiles * round_up(tiles.key_tile, 64) / LINE_ELEMENTS<T> * TILE_BYTES));
  std::memset(space.output, 0, static_cast<size_t>(space.w_tiles * W * space.output_stride) * sizeof(float));
  std::memset(space.row, 0, static_cast<size_t>(round_up(p.head_dim, 64)) * sizeof(float));
  for (int64_t r = 0; r < item.rows; ++r) {
    const Row row = row_of(p, item, r);
    state[r] = {-INFINITY, 0.0f, row, interval_of(p, seq, item, row.query)};
    load_query(p, seq, row, space.row, 1.0f);
    char *const q = space.q + r / rows_a_tile * space.k_steps * TILE_BYTES;
    const int column = static_cast<int>(r % rows_a_tile) * pieces;
    factors[r] = query_factor(p);
    if constexpr (sizeof(T) == 1)
      factors[r] *= put_query_int8(space.row, space.k_steps, q, column);
    else
      put_query_bf16(space.row, space.k_steps, pieces, q, column);
    if (state[r].seen.first <= state[r].seen.last) {
      begin = minimum(begin, state[r].seen.first);
      end = maximum(end, state[r].seen.last + 1);
    }
  }
  decode_key_tiles<T>(p, seq, item, tiles, space, state, factors, begin, end);
  for (int64_t r = 0; r < item.rows; ++r) {
    const float *const pieces_of_row =
        space.output + (r / ROWS_A_TILE * W + r % ROWS_A_TILE * PIECES) * space.output_stride;
    const Finish finish = finish_state(p, item, state[r].where.head, state[r].m, state[r].l);
    for (int64_t i = 0; i < space.output_stride; ++i) {
      float sum = pieces_of_row[i];
      if constexpr (sizeof(T) == 2)
        for (int piece = 1; piece < PIECES; ++piece) sum += pieces_of_row[piece * space.output_stride + i];
      constexpr int64_t LINE_WIDTH = LINE_ELEMENTS<T>;
      const int64_t within = i % LINE_WIDTH, column = i - within + column_of<T>(within / W, within % W);
      space.row[column] = finish.empty ? 0.0f : sum * finish.factor;
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
