// The operands of decode by AVX512-VNNI, and their products; decode_vnni.hpp says which and why.
//
// vpdpbusd adds four products of an unsigned and a signed byte to each 32-bit lane. Queries and weights, which
// have 24 bits, come as three digits of base 256, a product each; the three sums are put together as floats.
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

// Three sums, the lowest digit's first.
inline F join(const __m512i *sums) {
  F all = _mm512_cvtepi32_ps(sums[DIGITS - 1]);
  FA_UNROLL for (int i = DIGITS - 2; i >= 0; --i) all = fma(all, set1(256.0f), _mm512_cvtepi32_ps(sums[i]));
  return all;
}

// A query row, `dims` long, as an integer multiple of its largest element by 2^23. Elements 4 i to 4 i + 3 of
// its digits are written to digits[i step + digit], and to `start` what takes back the 128 that keys are
// raised by. Returns what the integers are to be multiplied by.
inline float put_query(const float *row, int64_t dims, int32_t *digits, int64_t step, int32_t *start) {
  constexpr float LARGEST = 127 * 65536 + 127 * 256 + 127;
  F top = zero(), odd = zero();
  for (int64_t d = 0; d < dims; d += W) {
    top = max(abs(load(row + d)), top);
    odd = add(odd, sub(load(row + d), load(row + d)));  // NaN where one is infinite or NaN
  }
  const float highest = reduce_max(top);
  const F factor = set1(highest > 0 ? LARGEST / highest : 0.0f), bound = set1(LARGEST);
  __m512i sums[DIGITS] = {};
  for (int64_t d = 0; d < dims; d += W) {
    const F x = max(min(mul(load(row + d), factor), bound), sub(zero(), bound));
    __m512i rest = _mm512_cvtps_epi32(x);
    FA_UNROLL for (int i = 0; i < DIGITS; ++i) {
      alignas(16) int32_t fours[4];
      const __m128i bytes = _mm512_cvtepi32_epi8(rest);
      _mm_store_si128(reinterpret_cast<__m128i *>(fours), bytes);
      for (int64_t f = 0; f < 4; ++f) digits[(d / 4 + f) * step + i] = fours[f];
      sums[i] = _mm512_add_epi32(sums[i], _mm512_cvtepi8_epi32(bytes));
      rest = _mm512_srai_epi32(_mm512_add_epi32(rest, _mm512_set1_epi32(128)), 8);
    }
  }
  for (int i = 0; i < DIGITS; ++i) start[i] = -128 * _mm512_reduce_add_epi32(sums[i]);
  return highest / LARGEST + reduce_add(odd);
}

// 16 bytes each of 16 keys: four vectors, one of each four bytes, with keys in the lanes. Keys are raised by
// 128, which makes them unsigned.
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
    t[i] = _mm512_xor_si512(t[i], _mm512_set1_epi8(-128));
  }
  const __m512i a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
  const __m512i c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

// Sixteen keys [key, key + n), n <= 16, into block `block` of the transposed ones. `copy` takes those that
// cannot be read as they lie: rows that end within 16 bytes, cross pages, or are missing.
inline void lay_keys(const KvRows &source, int64_t dim, int64_t key, int64_t n, int block, char *keys,
                     char *copy, PacedAhead &ahead) {
  const char *at = source.at(key);
  int64_t stride = source.row_bytes;
  if (n < W || dim % 16 != 0 || source.run(key, W) < W) {
    stride = round_up(dim, VALUE_COLUMNS);
    RowWalk walk = {source, key};
    for (int64_t j = 0; j < n; ++j) {
      const int8_t *const row = reinterpret_cast<const int8_t *>(walk.next());
      for (int64_t d = 0; d < dim; d += VALUE_COLUMNS)
        _mm512_store_si512(copy + j * stride + d, load_line(row + d, dim - d));
    }
    std::memset(copy + n * stride, 0, static_cast<size_t>((W - n) * stride));
    at = copy;
  }
  for (int64_t d = 0; d < dim; d += 16) {
    __m512i out[4];
    transpose_keys(at + d, stride, out);
    FA_UNROLL for (int i = 0; i < 4; ++i)
        _mm512_store_si512(keys + ((d / 4 + i) * KEY_BLOCKS + block) * 64, out[i]);
    ahead.spend(12);
  }
}

// Scores of R rows and 16 B keys, transposed: sums of `steps` times four products, times the factor of the row
// and the scale of the key.
template <int R, int B>
inline void score_rows(const char *keys, int64_t steps, const int32_t *q, int64_t step, const int32_t *start,
                       const float *factors, const float *scales, float *scores, int64_t stride,
                       PacedAhead &ahead) {
  __m512i acc[B][R * DIGITS];
  FA_UNROLL for (int i = 0; i < R * DIGITS; ++i) {
    FA_UNROLL for (int b = 0; b < B; ++b) acc[b][i] = _mm512_set1_epi32(start[i]);
  }
  for (int64_t s = 0; s < steps; ++s, keys += KEY_BLOCKS * 64, q += step) {
    __m512i key[B];
    FA_UNROLL for (int b = 0; b < B; ++b) key[b] = _mm512_load_si512(keys + b * 64);
    FA_UNROLL for (int i = 0; i < R * DIGITS; ++i) {
      const __m512i digit = _mm512_set1_epi32(q[i]);
      FA_UNROLL for (int b = 0; b < B; ++b) dot(acc[b][i], key[b], digit);
    }
    ahead.spend(R * DIGITS * B / 2);
  }
  FA_UNROLL for (int r = 0; r < R; ++r) {
    FA_UNROLL for (int b = 0; b < B; ++b)
        store(scores + r * stride + b * W,
              mul(mul(join(acc[b] + r * DIGITS), set1(factors[r])), load(scales + b * W)));
  }
}

// Weights times the scales of their values, as integers of 24 bits, in place: for each four keys four words,
// a word for each digit, the lowest first, and one that is 0. What they stand for is to be multiplied by
// 2^-e, where e, which is returned, brings the largest between 2^23 and 2^24.
inline float put_weights(const float *scales, int64_t keys, float *weights) {
  F top = zero();
  for (int64_t j = 0; j < keys; j += W) {
    const F weight = mul(load(weights + j), load(scales + j));
    store(weights + j, weight);
    top = max(weight, top);
  }
  const float highest = reduce_max(top);
  const float exponent = highest > 0 ? 23.0f - static_cast<float>(std::ilogb(highest)) : 0.0f;
  const __m512i digits_together = _mm512_broadcast_i32x4(
      _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
  for (int64_t j = 0; j < keys; j += W) {
    const __m512i number = _mm512_cvtps_epi32(_mm512_scalef_ps(load(weights + j), set1(exponent)));
    _mm512_store_si512(weights + j, _mm512_shuffle_epi8(number, digits_together));
  }
  return exponent;
}

// 64 columns of the values [key, key + n), from `column` on: fours of keys, interleaved; zeros behind the last
// value and the last column.
inline void lay_values(const KvRows &source, int64_t dim, int64_t column, int64_t key, int64_t n,
                       char *values, PacedAhead &ahead) {
  RowWalk walk = {source, key};
  for (int64_t j = 0; j < n; j += 4, values += FOUR_VALUES) {
    __m512i line[4], out[4];
    FA_UNROLL for (int i = 0; i < 4; ++i)
        line[i] = j + i < n ? load_line(reinterpret_cast<const int8_t *>(walk.next()) + column, dim - column)
                            : _mm512_setzero_si512();
    interleave(line, out);
    FA_UNROLL for (int i = 0; i < 4; ++i) _mm512_store_si512(values + i * 64, out[i]);
    ahead.spend(8);
  }
}

// Adds to 64 columns of the output of R rows their weights times the values, `fours` times four of them.
template <int R>
inline void add_values(const char *values, int64_t fours, const int32_t *weights, int64_t stride,
                       const float *exponents, float *output, int64_t output_stride, PacedAhead &ahead) {
  __m512i acc[4][R * DIGITS];
  FA_UNROLL for (int i = 0; i < R * DIGITS; ++i) {
    FA_UNROLL for (int c = 0; c < 4; ++c) acc[c][i] = _mm512_setzero_si512();
  }
  for (int64_t f = 0; f < fours; ++f, values += FOUR_VALUES, weights += 4) {
    __m512i value[4];
    FA_UNROLL for (int c = 0; c < 4; ++c) value[c] = _mm512_load_si512(values + c * 64);
    FA_UNROLL for (int r = 0; r < R; ++r) {
      FA_UNROLL for (int i = 0; i < DIGITS; ++i) {
        const __m512i weight = _mm512_set1_epi32(weights[r * stride + i]);
        FA_UNROLL for (int c = 0; c < 4; ++c) dot(acc[c][r * DIGITS + i], weight, value[c]);
      }
    }
    ahead.spend(R * DIGITS * 2);
  }
  FA_UNROLL for (int r = 0; r < R; ++r) {
    FA_UNROLL for (int c = 0; c < 4; ++c) {
      float *const at = output + r * output_stride + c * W;
      store(at, add(load(at), _mm512_scalef_ps(join(acc[c] + r * DIGITS), set1(-exponents[r]))));
    }
  }
}

// Which of the 64 columns stands in lane `lane` of vector `vector` of the sums.
inline int64_t column_of(int64_t vector, int64_t lane) { return lane / 4 * 16 + vector * 4 + lane % 4; }

}  // namespace
}  // namespace FA_NAMESPACE
