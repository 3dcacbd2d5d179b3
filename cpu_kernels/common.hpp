// What every instruction set's kernels share: storage types and constants.
//
// Everything lives in an unnamed namespace of the including library (FA_NAMESPACE), so no function compiled
// for a newer machine can be merged by the linker into an older path.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef FA_NAMESPACE
#error "define FA_NAMESPACE before including kernel headers: one name for each instruction set"
#endif

// Before each loop over an array of vectors that is to live in registers. GCC splits an array into registers
// early, and only if every index is a constant by then: a single loop unrolled later keeps the whole array in
// memory as well, stored before and after the hot loop.
#define FA_UNROLL _Pragma("GCC unroll 32")

namespace FA_NAMESPACE {
namespace {

constexpr float LOG2E = 1.44269504088896340736f;
constexpr double LN2 = 0.69314718055994530942;

// 2^f on [0, 1): minimax polynomial of degree 5 among those with p(0) = 1 (Remez, relative error 9e-8; 1.5e-7
// with float32 rounding). So the weight of a row's largest key is 1 exactly, and a query that sees one key
// gets its value unchanged.
constexpr float EXP2_C0 = 1.0f;
constexpr float EXP2_C1 = 0x1.62e4c4p-1f;
constexpr float EXP2_C2 = 0x1.ebd9e4p-3f;
constexpr float EXP2_C3 = 0x1.c92f5ep-5f;
constexpr float EXP2_C4 = 0x1.271dc2p-7f;
constexpr float EXP2_C5 = 0x1.eaa3f2p-10f;

// Storage types: their bits only; arithmetic is always float32.
struct half {
  uint16_t bits;
};
struct bfloat {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float widen(float x) { return x; }
inline float widen(bfloat x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // inf, NaN
  if (magnitude < 0x400u) {  // subnormal: an integer multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return from_bits(sign | ((magnitude << 13) + 0x38000000u));
}

inline bfloat to_bfloat(float x) {
  const uint32_t bits = to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits | 0x400000u) >> 16)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
inline half to_half(float x) {
  const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Adding 1/2 lets the float adder round to a multiple of 2^-24, the spacing of subnormal halves.
    result = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | result)};
}

template <class T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline half narrow<half>(float x) {
  return to_half(x);
}
template <>
inline bfloat narrow<bfloat>(float x) {
  return to_bfloat(x);
}

template <class T>
inline T minimum(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T maximum(T a, T b) {
  return a > b ? a : b;
}
constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace
}  // namespace FA_NAMESPACE
