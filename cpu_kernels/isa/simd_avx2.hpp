// Vectors of 8 floats for AVX2 with FMA and F16C. One of three files with the same names; see
// simd_baseline.hpp.
#pragma once
#include <immintrin.h>

#include "../common.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int W = 8;
constexpr int MAX_NV = 3;
constexpr int KR = 4;  // 4 x 3 accumulators, 3 queries, 1 broadcast: all 16 registers
constexpr int DECODE_ACC = 8;

using F = __m256;

inline F zero() { return _mm256_setzero_ps(); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float *p) { return _mm256_loadu_ps(p); }
inline void store(float *p, F v) { _mm256_storeu_ps(p, v); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
// c += a b, in place; see simd_avx512.hpp.
inline void accumulate(F &c, F a, F b) { asm("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b)); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline bool any_gt(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
inline F select_gt(F a, F b, F yes, F no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

inline float reduce_add(F a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_max(F a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline F hide(F s, int32_t j, const int32_t *first, const int32_t *last) {
  const __m256i key = _mm256_set1_epi32(j);
  const __m256i early = _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(first)), key);
  const __m256i late = _mm256_cmpgt_epi32(key, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(last)));
  return _mm256_blendv_ps(s, set1(-INFINITY), _mm256_castsi256_ps(_mm256_or_si256(early, late)));
}

inline F load_allowed(const uint8_t *p) {
  const __m256i words = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
  const __m256i hidden = _mm256_cmpeq_epi32(words, _mm256_setzero_si256());
  return _mm256_and_ps(_mm256_castsi256_ps(hidden), set1(-INFINITY));
}

inline F exp2(F x) {
  // Below 2^-126 the result is 0 (also for -inf); the clamp keeps the integer part in range. A NaN passes
  // through, because max and min return their second operand when one is NaN.
  const F clamped = _mm256_min_ps(set1(127.0f), _mm256_max_ps(set1(-126.0f), x));
  const F whole = _mm256_floor_ps(clamped);
  const F f = sub(clamped, whole);
  F p = set1(EXP2_C5);
  p = fma(p, f, set1(EXP2_C4));
  p = fma(p, f, set1(EXP2_C3));
  p = fma(p, f, set1(EXP2_C2));
  p = fma(p, f, set1(EXP2_C1));
  p = fma(p, f, set1(EXP2_C0));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  p = mul(p, _mm256_castsi256_ps(power));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, set1(-126.0f), _CMP_LT_OQ), p);
}

inline F load_kv(const float *p) { return _mm256_loadu_ps(p); }
inline F load_kv(const half *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
inline F load_kv(const bfloat *p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline F load_kv(const int8_t *p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
template <class T>
inline F load_kv(const T *p, int n) {
  T padded[W] = {};
  for (int i = 0; i < n; ++i) padded[i] = p[i];
  return load_kv(padded);
}

inline void store_as(float *p, F v) { _mm256_storeu_ps(p, v); }
inline void store_as(half *p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_as(bfloat *p, F v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1)));
}

inline void transpose(F (&r)[W]) {
  F t[W];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  F u[W];
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

inline void reduce_add4(float *dst, F a, F b, F c, F d) {
  const F abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(dst, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

// Quads, the halves of a vector: see simd_avx512.hpp.
inline F spread4(const float *p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128 *>(p)); }
template <int I>
inline F repeat(F a) {
  return _mm256_permute_ps(a, I * 0x55);
}
inline F sum_quads(F a, F b, F c, F d) { return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)); }

inline unsigned flush_denormals() {
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);
  return saved;
}
inline void restore_denormals(unsigned saved) { _mm_setcsr(saved); }

}  // namespace
}  // namespace FA_NAMESPACE
