// Vectors of 16 floats for AVX-512 (F, BW, DQ, VL). One of three files with the same names; see
// simd_baseline.hpp.
//
// exp2: vreduceps takes the fraction x - floor(x) in one instruction and is 0 for -inf, vscalefps multiplies
// by 2^floor(x); so hidden scores of -inf come out as exactly 0 without a branch.
#pragma once
#include <immintrin.h>

#include "../common.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int W = 16;        // float lanes
constexpr int MAX_NV = 3;    // vectors of queries in one sub-block
constexpr int KR = 8;  // keys (or value columns) per register tile: 8 x 3 accumulators of 32 registers
constexpr int DECODE_ACC = 24;

using F = __m512;

inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float *p) { return _mm512_loadu_ps(p); }
inline void store(float *p, F v) { _mm512_storeu_ps(p, v); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// c += a b, in place: left to itself, GCC 12 lets the accumulators of a product change registers and moves
// them back in every round.
inline void accumulate(F &c, F a, F b) { asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b)); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline bool any_gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
inline F select_gt(F a, F b, F yes, F no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
inline float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
inline float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

// s where first <= j <= last, elsewhere -inf.
inline F hide(F s, int32_t j, const int32_t *first, const int32_t *last) {
  const __m512i key = _mm512_set1_epi32(j);
  const __mmask16 seen = _mm512_cmple_epi32_mask(_mm512_loadu_si512(first), key) &
                         _mm512_cmple_epi32_mask(key, _mm512_loadu_si512(last));
  return _mm512_mask_blend_ps(seen, set1(-INFINITY), s);
}

// W booleans as an additive mask: 0 where true, -inf where false.
inline F load_allowed(const uint8_t *p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  return _mm512_mask_blend_ps(_mm_test_epi8_mask(bytes, bytes), set1(-INFINITY), zero());
}

inline F exp2(F x) {
  const F f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  F p = set1(EXP2_C5);
  p = fma(p, f, set1(EXP2_C4));
  p = fma(p, f, set1(EXP2_C3));
  p = fma(p, f, set1(EXP2_C2));
  p = fma(p, f, set1(EXP2_C1));
  p = fma(p, f, set1(EXP2_C0));
  return _mm512_scalef_ps(p, x);
}

inline F load_kv(const float *p) { return _mm512_loadu_ps(p); }
inline F load_kv(const half *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline F load_kv(const bfloat *p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline F load_kv(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}

// The first n < W elements, zeros behind them; nothing past the n-th is read.
inline F load_kv(const float *p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
inline F load_kv(const half *p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
}
inline F load_kv(const bfloat *p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline F load_kv(const int8_t *p, int n) {
  const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << n) - 1), p);
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

inline void store_as(float *p, F v) { _mm512_storeu_ps(p, v); }
inline void store_as(half *p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_as(bfloat *p, F v) {
  // Round to nearest even by hand: vcvtneps2bf16 needs AVX512-BF16. A NaN keeps its top bits and gets the
  // quiet bit.
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i chosen = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), rounded, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}

// Transpose a W x W block held in registers.
inline void transpose(F (&r)[W]) {
  F t[W];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  F u[W];
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const F a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88),
            b = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    const F c = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd),
            d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    r[i] = _mm512_shuffle_f32x4(a, b, 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(c, d, 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
}

// The sums of four vectors, written to dst[0..3].
inline void reduce_add4(float *dst, F a, F b, F c, F d) {
  const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const F abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half8 = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(dst, _mm_add_ps(_mm256_castps256_ps128(half8), _mm256_extractf128_ps(half8, 1)));
}

// Quads, the quarters of a vector. Four floats in every quad:
inline F spread4(const float *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
// element I of a quad in its four lanes;
template <int I>
inline F repeat(F a) {
  return _mm512_permute_ps(a, I * 0x55);
}
// and the sums over the quads of four vectors, side by side.
inline F sum_quads(F a, F b, F c, F d) {
  const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}

inline unsigned flush_denormals() {
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);
  return saved;
}
inline void restore_denormals(unsigned saved) { _mm_setcsr(saved); }

}  // namespace
}  // namespace FA_NAMESPACE
