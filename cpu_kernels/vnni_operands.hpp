// The operands of decode by AVX512-VNNI, and their products; decode_vnni.hpp says which and why.
//
// vpdpbusd adds four products of an unsigned and a signed byte to each 32-bit lane. Queries and weights,
// which have 24 bits, come as three unsigned digits of base 256, a product each; the sums are put together as
// floats.
#pragma once
#include "kv_lines.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int DIGITS = 3;
constexpr int KEY_BLOCKS = 4;  // of 16 keys each, transposed together
constexpr int BLOCK_KEYS = KEY_BLOCKS * W;
constexpr int VALUE_COLUMNS = 64;  // multiplied together: a cache line of each value
constexpr int64_t FOUR_VALUES = 4 * VALUE_COLUMNS;  // bytes of four values, interleaved

// acc += a b, unsigned times signed bytes. In place, as `accumulate` is.
inline void dot(__m512i &acc, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}

// Three sums, the lowest digit's first. By value: the address of a sum would keep it in memory.
inline F join(__m512i low, __m512i middle, __m512i high) {
  const F base = set1(256.0f);
  return fma(fma(_mm512_cvtepi32_ps(high), base, _mm512_cvtepi32_ps(middle)), base, _mm512_cvtepi32_ps(low));
}

// A query row, for the products with keys: for each four elements three words, a word for each digit, the
// lowest first. Elements are integers of 24 bits, relative to the largest; 2^23 is added, so that digits are
// unsigned. Returns what integers are to be multiplied by.
inline float put_query(const float *row, int64_t dims, int32_t *query) {
  constexpr float LARGEST = (1 << 23) - 1;
  F top = zero(), odd = zero();
  for (int64_t d = 0; d < dims; d += W) {
    top = max(abs(load(row + d)), top);
    odd = add(odd, sub(load(row + d), load(row + d)));  // NaN where one is infinite or NaN
  }
  const float highest = reduce_max(top);
  const F factor = set1(highest > 0 ? LARGEST / highest : 0.0f), bound = set1(LARGEST);
  for (int64_t d = 0; d < dims; d += W) {
    const F x = max(min(mul(load(row + d), factor), bound), sub(zero(), bound));
    __m512i number = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(1 << 23));
    for (int i = 0; i < DIGITS; ++i, number = _mm512_srli_epi32(number, 8)) {
      alignas(16) int32_t words[4];
      _mm_store_si128(reinterpret_cast<__m128i *>(words), _mm512_cvtepi32_epi8(number));
      for (int64_t w = 0; w < 4; ++w) query[(d / 4 + w) * DIGITS + i] = words[w];
    }
  }
  return highest / LARGEST + reduce_add(odd);
}

// 16 bytes each of 16 keys: four vectors, one of each four bytes, with keys in the lanes.
inline void transpose_keys(const char *at, int64_t stride, __m512i (&out)[4]) {
  __m512i t[4];
  FA_UNROLL for (int i = 0; i < 4; ++i) {
    const char *const row = at + i * stride;
    const auto piece = [&](int64_t j) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + j * stride));
    };
    t[i] = _mm512_castsi128_si512(piece(0));
    t[i] = _mm512_inserti32x4(t[i], piece(4), 1);
    t[i] = _mm512_inserti32x4(t[i], piece(8), 2);
    t[i] = _mm512_inserti32x4(t[i], piece(12), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
  const __m512i c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

// Keys [key, key + n), n <= BLOCK_KEYS, transposed; in `raised` what a score is raised by by its highest
// digit, negated. `copy` takes sixteen keys that cannot be read as they lie: where they end within 16 bytes,
// cross pages or are fewer; zeros stand for what is missing.
[[gnu::noinline]] void lay_keys(const KvRows &source, int64_t dim, int64_t key, int64_t n, char *keys,
                                int32_t *raised, char *copy, LinesAhead ahead) {
  for (int64_t j = 0; j < n; j += W, keys += 64) {
    const char *at;
    int64_t stride = source.row_bytes;
    if (n - j >= W && dim % 16 == 0 && source.run(key + j, W) == W) {
      at = source.at(key + j);
    } else {
      stride = round_up(dim, VALUE_COLUMNS);
      RowWalk walk = {source, key + j};
      const int64_t here = minimum<int64_t>(W, n - j);
      for (int64_t i = 0; i < here; ++i) {
        const int8_t *const row = reinterpret_cast<const int8_t *>(walk.next());
        for (int64_t d = 0; d < dim; d += VALUE_COLUMNS)
          _mm512_store_si512(copy + i * stride + d, load_line(row + d, dim - d));
      }
      std::memset(copy + here * stride, 0, static_cast<size_t>((W - here) * stride));
      at = copy;
    }
    __m512i sums[4] = {};
    for (int64_t d = 0; d < dim; d += 16) {
      __m512i out[4];
      transpose_keys(at + d, stride, out);
      FA_UNROLL for (int i = 0; i < 4; ++i) {
        _mm512_store_si512(keys + (d / 4 + i) * KEY_BLOCKS * 64, out[i]);
        dot(sums[i], _mm512_set1_epi8(1), out[i]);
      }
      ahead.fetch();
    }
    const __m512i sum =
        _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
    _mm512_store_si512(raised + j, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
  }
}

// Scores of R rows and 16 B keys, times the factor of the row and the scale of the key. One row alone has two
// sets of sums, in turns, since a sum takes part in every fifth cycle at most.
template <int R, int B>
[[gnu::noinline]] void score_keys(const char *keys, const int32_t *raised, int64_t words,
                                  const int32_t *query, const float *factors, const float *scales,
                                  float *scores, int64_t stride, LinesAhead ahead) {
  constexpr int TURNS = R == 1 ? 2 : 1, SUMS = R * DIGITS;
  __m512i acc[B][TURNS * SUMS];
  FA_UNROLL for (int b = 0; b < B; ++b) {
    const __m512i start = _mm512_load_si512(raised + b * W);
    FA_UNROLL for (int i = 0; i < TURNS * SUMS; ++i) acc[b][i] =
        i < SUMS && i % DIGITS == DIGITS - 1 ? start : _mm512_setzero_si512();
  }
  const int64_t query_words = words * DIGITS;
  for (int64_t word = 0; word < words; word += TURNS) {
    FA_UNROLL for (int t = 0; t < TURNS; ++t, keys += KEY_BLOCKS * 64, query += DIGITS) {
      __m512i key[B];
      FA_UNROLL for (int b = 0; b < B; ++b) key[b] = _mm512_load_si512(keys + b * 64);
      FA_UNROLL for (int i = 0; i < SUMS; ++i) {
        const __m512i digit = _mm512_set1_epi32(query[i / DIGITS * query_words + i % DIGITS]);
        FA_UNROLL for (int b = 0; b < B; ++b) dot(acc[b][t * SUMS + i], digit, key[b]);
      }
    }
    ahead.fetch();
  }
  FA_UNROLL for (int b = 0; b < B; ++b) {
    const F scale = load(scales + b * W);
    if constexpr (TURNS == 2)
      FA_UNROLL for (int i = 0; i < SUMS; ++i) acc[b][i] = _mm512_add_epi32(acc[b][i], acc[b][SUMS + i]);
    FA_UNROLL for (int r = 0; r < R; ++r) {
      const F score = join(acc[b][r * DIGITS], acc[b][r * DIGITS + 1], acc[b][r * DIGITS + 2]);
      store(scores + r * stride + b * W, mul(mul(score, set1(factors[r])), scale));
    }
  }
}

// Scores of a row become weights times the scales of their values; `sum` takes up the weights alone. Returns
// the largest of what is written.
inline F weigh(float reference, const float *scales, int64_t keys, float *s, F &sum) {
  const F lowered = set1(reference);
  F all = zero(), top = zero();
  for (int64_t j = 0; j < keys; j += W) {
    const F weight = exp2(mul(sub(load(s + j), lowered), set1(LOG2E)));
    const F scaled_weight = mul(weight, load(scales + j));
    all = add(all, weight);
    top = max(scaled_weight, top);
    store(s + j, scaled_weight);
  }
  sum = add(sum, all);
  return top;
}

// By which power of two weights are multiplied to be integers of 24 bits.
inline float exponent_of(F top) {
  const float highest = reduce_max(top);
  return highest > 0 ? 23.0f - static_cast<float>(static_cast<int>(to_bits(highest) >> 23) - 127) : 0.0f;
}

// Such integers, in place: for each four keys four words, a word for each digit, the lowest first, and one
// that is 0.
inline void put_weights(float exponent, int64_t keys, float *weights) {
  const __m512i digits_together =
      _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
  for (int64_t j = 0; j < keys; j += W) {
    const __m512i number = _mm512_cvtps_epi32(_mm512_scalef_ps(load(weights + j), set1(exponent)));
    _mm512_store_si512(weights + j, _mm512_shuffle_epi8(number, digits_together));
  }
}

// 64 columns of the values [key, key + n), from `column` on: fours of keys, interleaved, an even number of
// them; zeros behind the last value and the last column.
[[gnu::noinline]] void lay_values(const KvRows &source, int64_t dim, int64_t column, int64_t key, int64_t n,
                                  char *values, LinesAhead ahead) {
  RowWalk walk = {source, key};
  for (int64_t j = 0; j < round_up(n, 8); j += 4, values += FOUR_VALUES) {
    __m512i line[4], out[4];
    FA_UNROLL for (int i = 0; i < 4; ++i) line[i] =
        j + i < n ? load_line(reinterpret_cast<const int8_t *>(walk.next()) + column, dim - column)
                  : _mm512_setzero_si512();
    interleave(line, out);
    FA_UNROLL for (int i = 0; i < 4; ++i) _mm512_store_si512(values + i * 64, out[i]);
    ahead.fetch();
  }
}

// Adds to 64 columns of the output of R rows their weights times the values, `fours` times four of them. One
// row alone has two sets of sums, in turns, since a sum takes part in every fifth cycle at most.
template <int R>
[[gnu::noinline]] void add_values(const char *values, int64_t fours, const int32_t *weights, int64_t stride,
                                  const float *exponents, float *output, int64_t output_stride,
                                  LinesAhead ahead) {
  constexpr int TURNS = R == 1 ? 2 : 1, SUMS = R * DIGITS;
  __m512i acc[4][TURNS * SUMS];
  FA_UNROLL for (int i = 0; i < TURNS * SUMS; ++i) {
    FA_UNROLL for (int c = 0; c < 4; ++c) acc[c][i] = _mm512_setzero_si512();
  }
  for (int64_t f = 0; f < fours; f += TURNS, values += TURNS * FOUR_VALUES, weights += TURNS * 4) {
    FA_UNROLL for (int t = 0; t < TURNS; ++t) {
      __m512i value[4];
      FA_UNROLL for (int c = 0; c < 4; ++c) value[c] = _mm512_load_si512(values + t * FOUR_VALUES + c * 64);
      FA_UNROLL for (int i = 0; i < SUMS; ++i) {
        const __m512i weight = _mm512_set1_epi32(weights[t * 4 + i / DIGITS * stride + i % DIGITS]);
        FA_UNROLL for (int c = 0; c < 4; ++c) dot(acc[c][t * SUMS + i], weight, value[c]);
      }
    }
    ahead.fetch();
  }
  if constexpr (TURNS == 2) {
    FA_UNROLL for (int i = 0; i < SUMS; ++i) {
      FA_UNROLL for (int c = 0; c < 4; ++c) acc[c][i] = _mm512_add_epi32(acc[c][i], acc[c][SUMS + i]);
    }
  }
  FA_UNROLL for (int r = 0; r < R; ++r) {
    FA_UNROLL for (int c = 0; c < 4; ++c) {
      float *const at = output + r * output_stride + c * W;
      const F sum = join(acc[c][r * DIGITS], acc[c][r * DIGITS + 1], acc[c][r * DIGITS + 2]);
      store(at, add(load(at), _mm512_scalef_ps(sum, set1(-exponents[r]))));
    }
  }
}

// Interleaving exchanges fours of columns: which stand at place `c` of the sums, a multiple of 4.
inline int64_t column_of(int64_t c) {
  return c / VALUE_COLUMNS * VALUE_COLUMNS + c / 4 % 4 * 16 + c / 16 % 4 * 4;
}

}  // namespace
}  // namespace FA_NAMESPACE
