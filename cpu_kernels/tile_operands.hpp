// The operands of decode by AMX tiles, and their products: queries and weights in pieces, keys and values as
// they lie or interleaved. decode_amx.hpp says which and why.
#pragma once
#include "decode.hpp"
#include "isa/tiles.hpp"
#include "kv_lines.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int AMX_DECODE_ROWS = 16;
constexpr int AMX_MOST_KEYS = 256;  // of a tile of keys: see decode_keys in plan.cpp
constexpr int PIECES = 3;
constexpr int MOST_ROWS_A_TILE = W / PIECES;  // query rows whose pieces fit into one tile

template <class T>
constexpr int WEIGHT_TILES = sizeof(T) == 1 ? 1 : 2;  // a tile of keys
template <class T>
constexpr int WEIGHT_KEYS = sizeof(T) == 1 ? 64 : 16;  // of a tile of weights
constexpr int VALUE_COLUMNS = 64;  // of the values, multiplied together: four tiles of sums

template <class T>
struct TileSums {  // what the tiles of this type add up
  using Is = float;
};
template <>
struct TileSums<int8_t> {
  using Is = int32_t;
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

// A line of elements into column `column` of a tile of Q, whose row i holds, for each column, the 2 (4)
// neighbouring elements 2 i (4 i) and on.
inline void put_column(__m512i line, char *tile, int column) {
  const __m512i rows =
      _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 6);
  _mm512_i32scatter_epi32(tile + column * 4, rows, line, 1);
}

// A query row, split into columns of the tiles of Q: column `column` on.
inline void put_query_bf16(const float *row, int64_t k_steps, int pieces, char *tiles, int column) {
  for (int64_t s = 0; s < k_steps; ++s, row += 32, tiles += TILE_BYTES) {
    __m512i low[PIECES], high[PIECES];
    split(load(row), low);
    split(load(row + W), high);
    for (int i = 0; i < pieces; ++i) {
      const __m256i first = _mm512_cvtepi32_epi16(_mm512_srli_epi32(low[i], 16));
      const __m256i second = _mm512_cvtepi32_epi16(_mm512_srli_epi32(high[i], 16));
      put_column(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1), tiles, column + i);
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
  for (int64_t s = 0; s < k_steps; ++s, row += 64, tiles += TILE_BYTES) {
    alignas(64) int8_t digits[PIECES][64];
    for (int64_t d = 0; d < 64; d += W) {
      const F x = max(min(mul(load(row + d), factor), bound), sub(zero(), bound));
      __m512i rest = _mm512_cvtps_epi32(x);
      for (int i = PIECES - 1; i >= 0; --i) {
        _mm_store_si128(reinterpret_cast<__m128i *>(digits[i] + d), _mm512_cvtepi32_epi8(rest));
        rest = _mm512_srai_epi32(_mm512_add_epi32(rest, _mm512_set1_epi32(128)), 8);
      }
    }
    for (int i = 0; i < PIECES; ++i) put_column(_mm512_load_si512(digits[i]), tiles, column + i);
  }
  return highest / LARGEST;
}

// Where a tile of 16 keys or values lies: its rows, and the steps along a row.
struct KvTile {
  const char *at;
  int64_t row, step;  // bytes
};

// Lines [line, line + lines) of the rows [key, key + n), n <= 16. Most are loaded from where they are; copied
// are those that end within a line, cross pages, or are fewer than 16: zeros stand for what is missing.
template <class T>
inline KvTile kv_tile(const KvRows &source, int64_t dim, int64_t line, int64_t lines, int64_t key, int64_t n,
                      char *copy) {
  if (n == W && dim >= (line + lines) * LINE_ELEMENTS<T> && source.run(key, n) == n)
    return {source.at(key) + line * LINE, source.row_bytes, LINE};
  for (int64_t j = 0; j < W; ++j) {
    const T *const row = j < n ? reinterpret_cast<const T *>(source.at(key + j)) : nullptr;
    for (int64_t s = 0; s < lines; ++s) {
      const int64_t d = (line + s) * LINE_ELEMENTS<T>;
      _mm512_store_si512(copy + s * TILE_BYTES + j * LINE,
                         row ? load_line(row + d, dim - d) : _mm512_setzero_si512());
    }
  }
  return {copy, LINE, TILE_BYTES};
}

template <class T, int C, int A, int B>
inline void tile_dot_scores() {
  if constexpr (sizeof(T) == 1)
    tile_dot_s8s8<C, A, B>();
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
  static void load(const void *from) {
    const char *const at = static_cast<const char *>(from);
    tile_load<0>(at, 64);
    tile_load<1>(at + TILE_BYTES, 64);
    tile_load<2>(at + 2 * TILE_BYTES, 64);
    tile_load<3>(at + 3 * TILE_BYTES, 64);
  }
  static void store(void *to) {
    char *const at = static_cast<char *>(to);
    tile_store<0>(at, 64);
    tile_store<1>(at + TILE_BYTES, 64);
    tile_store<2>(at + 2 * TILE_BYTES, 64);
    tile_store<3>(at + 3 * TILE_BYTES, 64);
  }
};

// A tile of 16 keys against one tile of queries: sums[key][column]. One accumulator is enough: each product
// takes up the sums of the one before row by row.
template <class T>
inline void score_tile(const KvTile &k, const char *q, int64_t k_steps, float *sums, KvAhead &ahead,
                       int64_t share) {
  tile_zero<5>();
  for (int64_t s = 0; s < k_steps; ++s, q += TILE_BYTES) {
    ahead.fetch(share);
    tile_load<7>(q, 64);
    tile_load<6>(k.at + s * k.step, k.row);
    tile_dot_scores<T, 5, 6, 7>();
  }
  tile_store<5>(sums, 64);
}

inline F sum_as_float(F lane_sums, float) { return lane_sums; }
inline F sum_as_float(F lane_sums, int32_t) { return _mm512_cvtepi32_ps(_mm512_castps_si512(lane_sums)); }

// Four columns of a tile of sums (16 keys, 16 columns): 16 keys each. A vector of four keys, every fourth
// one, costs no shuffle to load, and what is left to transpose lies within its quarters.
inline void load_columns(const float *sums, F (&column)[4]) {
  F t[4];
  for (int i = 0; i < 4; ++i) {
    const float *const at = sums + i * W;
    t[i] = _mm512_castps128_ps512(_mm_load_ps(at));
    t[i] = _mm512_insertf32x4(t[i], _mm_load_ps(at + 4 * W), 1);
    t[i] = _mm512_insertf32x4(t[i], _mm_load_ps(at + 8 * W), 2);
    t[i] = _mm512_insertf32x4(t[i], _mm_load_ps(at + 12 * W), 3);
  }
  const F a = _mm512_unpacklo_ps(t[0], t[1]), b = _mm512_unpackhi_ps(t[0], t[1]);
  const F c = _mm512_unpacklo_ps(t[2], t[3]), d = _mm512_unpackhi_ps(t[2], t[3]);
  column[0] = _mm512_shuffle_ps(a, c, 0x44);
  column[1] = _mm512_shuffle_ps(a, c, 0xee);
  column[2] = _mm512_shuffle_ps(b, d, 0x44);
  column[3] = _mm512_shuffle_ps(b, d, 0xee);
}

// Sums of 16 keys to their scores of the rows whose pieces are columns of this tile. Pieces of a row lie side
// by side.
template <class T>
inline void collect_scores(const float *sums, int pieces, int64_t rows, const float *factors, float *scores,
                           int64_t stride) {
  using Sum = typename TileSums<T>::Is;
  alignas(64) float columns[W][W];
  const int64_t used = pieces * rows;
  for (int64_t c = 0; c < used; c += 4) {
    F four[4];
    load_columns(sums + c, four);
    for (int i = 0; i < 4; ++i) store(columns[c + i], four[i]);
  }
  for (int64_t r = 0; r < rows; ++r) {
    F score = sum_as_float(load(columns[r * pieces]), Sum{});
    for (int i = 1; i < pieces; ++i) {
      const F piece = sum_as_float(load(columns[r * pieces + i]), Sum{});
      score = sizeof(T) == 1 ? fma(score, set1(256.0f), piece) : add(score, piece);
    }
    store(scores + r * stride, mul(score, set1(factors[r])));
  }
}

// The weights of a row as pieces, at each place: rows of tiles of A, from `row` on. Tiles of 16 keys lie
// `step` apart, places next to one another. Returns what the sums are to be multiplied by.
inline float put_weights(const float *weights, int64_t keys, char *tiles, int64_t step, int64_t row, bfloat) {
  char *at = tiles + row * LINE;
  for (int64_t j = 0; j < keys; j += W, at += step) {
    __m512i piece[PIECES];
    split(load(weights + j), piece);
    for (int i = 0; i < PIECES; ++i) {
      _mm512_store_si512(at + i * LINE, _mm512_srli_epi32(piece[i], 16));
      _mm512_store_si512(at + i * LINE + TILE_BYTES, piece[i]);
    }
  }
  return 1.0f;
}
inline float put_weights(const float *weights, int64_t keys, char *tiles, int64_t step, int64_t row, int8_t) {
  // A little below 2^24, so that rounding cannot carry into a fourth digit.
  constexpr float LARGEST = 16776960.0f;
  F top = zero();
  for (int64_t j = 0; j < keys; j += W) top = max(load(weights + j), top);
  const float highest = reduce_max(top);
  const F factor = set1(highest > 0 ? LARGEST / highest : 0.0f);
  for (int64_t j = 0; j < keys; j += W) {
    const __m512i number = _mm512_cvtps_epi32(min(mul(load(weights + j), factor), set1(LARGEST)));
    char *const at = tiles + j / 64 * step + row * LINE + j % 64;
    for (int i = 0; i < PIECES; ++i)
      _mm_store_si128(reinterpret_cast<__m128i *>(at + i * LINE),
                      _mm512_cvtepi32_epi8(_mm512_srli_epi32(number, static_cast<unsigned>(16 - 8 * i))));
  }
  return highest / LARGEST;
}

// 64 columns of the values [key, key + n), from `column` on, as four tiles of 64 values times 16 columns for
// each 64 values; zeros behind the last value and the last column.
inline void lay_values(const KvRows &source, int64_t dim, int64_t column, int64_t key, int64_t n, char *tiles,
                       KvAhead &ahead, int64_t share) {
  RowWalk walk = {source, key};
  for (int64_t j = 0; j < round_up(n, 64); j += 4) {
    __m512i line[4], out[4];
    for (int i = 0; i < 4; ++i)
      line[i] = j + i < n ? load_line(reinterpret_cast<const int8_t *>(walk.next()) + column, dim - column)
                          : _mm512_setzero_si512();
    interleave(line, out);
    char *const to = tiles + j / 64 * 4 * TILE_BYTES + j % 64 / 4 * LINE;
    for (int i = 0; i < 4; ++i) _mm512_store_si512(to + i * TILE_BYTES, out[i]);
    ahead.fetch(share);
  }
}

// Sums of 64 columns: P V over tiles of 16 keys, `step` bytes of weights each.
inline void add_products(const char *weights, int64_t step, const KvTile *v, int64_t tiles, KvAhead &ahead,
                         int64_t share) {
  for (int64_t i = 0; i < tiles; ++i, weights += step) {
    ahead.fetch(share);
    tile_load<5>(v[i].at, v[i].row);
    tile_load<6>(v[i].at + v[i].step, v[i].row);
    tile_load<4>(weights, 64);
    tile_dot_bf16<0, 4, 5>();
    tile_dot_bf16<1, 4, 6>();
    tile_load<4>(weights + TILE_BYTES, 64);
    tile_dot_bf16<2, 4, 5>();
    tile_dot_bf16<3, 4, 6>();
  }
}
inline void add_products(const char *weights, int64_t step, const char *v, int64_t tiles) {
  for (int64_t i = 0; i < tiles; ++i, weights += step, v += 4 * TILE_BYTES) {
    tile_load<4>(weights, 64);
    tile_load<5>(v, 64);
    tile_dot_u8s8<0, 4, 5>();
    tile_load<6>(v + TILE_BYTES, 64);
    tile_dot_u8s8<1, 4, 6>();
    tile_load<7>(v + 2 * TILE_BYTES, 64);
    tile_dot_u8s8<2, 4, 7>();
    tile_load<5>(v + 3 * TILE_BYTES, 64);
    tile_dot_u8s8<3, 4, 5>();
  }
}
// Which of the 64 columns stands in lane `lane` of tile `tile` of the sums.
template <class T>
inline int64_t column_of(int64_t tile, int64_t lane) {
  return sizeof(T) == 1 ? lane / 4 * 16 + tile * 4 + lane % 4 : tile % 2 * 32 + lane * 2 + tile / 2;
}

}  // namespace
}  // namespace FA_NAMESPACE
