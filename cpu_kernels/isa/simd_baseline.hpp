// Vectors of 4 floats in the compiler's own vector type: SSE2 on x86-64, NEON on Arm, anything elsewhere.
//
// The three simd_*.hpp files define the same names, and everything above them is written once:
//   W lanes; MAX_NV vectors of queries in a sub-block; KR rows of a register tile; F the vector type;
//   arithmetic; hide() for visibility; exp2(); load_kv()/store_as() which widen and narrow the storage types;
//   transpose() of a W x W block; reduce_add4(). DECODE_ACC is how many accumulators decode may keep in
//   registers.
#pragma once
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../common.hpp"

// Clang has one name for it, GCC before 12 the other.
#if defined(__clang__)
#define FA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

namespace FA_NAMESPACE {
namespace {

constexpr int W = 4;
constexpr int MAX_NV = 2;
constexpr int KR = 4;  // 4 x 2 accumulators; a multiply without FMA needs registers for its products
constexpr int DECODE_ACC = 8;

typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));

inline F zero() { return F{0, 0, 0, 0}; }
inline F set1(float x) { return F{x, x, x, x}; }
inline F load(const float *p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float *p, F v) { std::memcpy(p, &v, sizeof v); }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F select(I yes_where, F yes, F no) { return (F)((yes_where & (I)yes) | (~yes_where & (I)no)); }
inline void accumulate(F &c, F a, F b) { c = fma(a, b, c); }
// As maxps and minps do: the second operand where one is a NaN.
inline F max(F a, F b) { return select((I)(a > b), a, b); }
inline F min(F a, F b) { return select((I)(a < b), a, b); }
inline F abs(F a) { return (F)((I)a & I{0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff}); }
inline bool any_gt(F a, F b) {
  const I gt = (I)(a > b);
  return (gt[0] | gt[1] | gt[2] | gt[3]) != 0;
}
inline F select_gt(F a, F b, F yes, F no) { return select((I)(a > b), yes, no); }
inline float reduce_add(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline float reduce_max(F a) {
  const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}

inline F hide(F s, int32_t j, const int32_t *first, const int32_t *last) {
  I a, b;
  std::memcpy(&a, first, sizeof a);
  std::memcpy(&b, last, sizeof b);
  const I key = I{j, j, j, j};
  return select((a <= key) & (key <= b), s, set1(-INFINITY));
}

inline F load_allowed(const uint8_t *p) {
  return select(I{p[0], p[1], p[2], p[3]} == I{0, 0, 0, 0}, set1(-INFINITY), zero());
}

inline F exp2(F x) {
  const F clamped = min(set1(127.0f), max(set1(-126.0f), x));
  const I truncated = __builtin_convertvector(clamped, I);
  const I whole =
      truncated + (I)(__builtin_convertvector(truncated, F) > clamped);  // a true lane is -1: floor
  const F f = clamped - __builtin_convertvector(whole, F);
  F p = set1(EXP2_C5);
  p = fma(p, f, set1(EXP2_C4));
  p = fma(p, f, set1(EXP2_C3));
  p = fma(p, f, set1(EXP2_C2));
  p = fma(p, f, set1(EXP2_C1));
  p = fma(p, f, set1(EXP2_C0));
  const F power = (F)((whole + 127) << 23);
  return select((I)(x < set1(-126.0f)), zero(), p * power);
}

inline F load_kv(const float *p) { return load(p); }
inline F load_kv(const half *p) { return F{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
inline F load_kv(const bfloat *p) { return F{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
inline F load_kv(const int8_t *p) { return __builtin_convertvector(I{p[0], p[1], p[2], p[3]}, F); }
template <class T>
inline F load_kv(const T *p, int n) {
  T padded[W] = {};
  for (int i = 0; i < n; ++i) padded[i] = p[i];
  return load_kv(padded);
}

inline void store_as(float *p, F v) { store(p, v); }
inline void store_as(half *p, F v) {
  for (int i = 0; i < W; ++i) p[i] = to_half(v[i]);
}
inline void store_as(bfloat *p, F v) {
  for (int i = 0; i < W; ++i) p[i] = to_bfloat(v[i]);
}

inline void transpose(F (&r)[W]) {
  const F a = FA_SHUFFLE(r[0], r[1], 0, 4, 1, 5), b = FA_SHUFFLE(r[0], r[1], 2, 6, 3, 7);
  const F c = FA_SHUFFLE(r[2], r[3], 0, 4, 1, 5), d = FA_SHUFFLE(r[2], r[3], 2, 6, 3, 7);
  r[0] = FA_SHUFFLE(a, c, 0, 1, 4, 5);
  r[1] = FA_SHUFFLE(a, c, 2, 3, 6, 7);
  r[2] = FA_SHUFFLE(b, d, 0, 1, 4, 5);
  r[3] = FA_SHUFFLE(b, d, 2, 3, 6, 7);
}
#undef FA_SHUFFLE

inline void reduce_add4(float *dst, F a, F b, F c, F d) {
  F r[W] = {a, b, c, d};
  transpose(r);
  store(dst, (r[0] + r[2]) + (r[1] + r[3]));
}

// Quads; here a vector is one: see simd_avx512.hpp.
inline F spread4(const float *p) { return load(p); }
template <int N>
inline F repeat(F a) {
  return F{a[N], a[N], a[N], a[N]};
}
inline F sum_quads(F a, F b, F c, F d) {
  F r[W] = {a, b, c, d};
  transpose(r);
  return (r[0] + r[2]) + (r[1] + r[3]);
}

#if defined(__SSE2__)
inline unsigned flush_denormals() {
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);
  return saved;
}
inline void restore_denormals(unsigned saved) { _mm_setcsr(saved); }
#else
inline unsigned flush_denormals() { return 0; }
inline void restore_denormals(unsigned) {}
#endif

}  // namespace
}  // namespace FA_NAMESPACE
