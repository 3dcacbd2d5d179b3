// A vector of W floats in the compiler's own vector type: + - * and comparisons work lane by lane, and a
// scalar stands for a vector of copies. With -ffp-contract=fast, a * b + c becomes one fused multiply-add.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

// A register tile has R x NV accumulators: as many as leave room for NV more operands and a broadcast scalar.
#if defined(__AVX512F__)
constexpr int W = 16, R = 8, NV = 3;  // 24 + 3 + 1 of 32 registers
#elif defined(__AVX2__)
constexpr int W = 8, R = 4, NV = 3;  // 12 + 3 + 1 of 16
#else
constexpr int W = 4, R = 4, NV = 2;  // 8 + 2 + 1 of 16; without FMA a product takes a register too
#endif

typedef float F __attribute__((vector_size(W * sizeof(float))));
typedef int32_t I __attribute__((vector_size(W * sizeof(int32_t))));

inline F load(const float *at) {
  F a;
  std::memcpy(&a, at, sizeof a);
  return a;
}
inline void store(float *at, F a) { std::memcpy(at, &a, sizeof a); }
inline F all(float x) { return F{} + x; }
inline F larger(F a, F b) { return a > b ? a : b; }  // b where one is a NaN

// The horizontal sum: a shuffle and an addition for each halving, one after the other.
inline float sum(F a) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter part[W / 4];
  std::memcpy(part, &a, sizeof a);
  Quarter total = part[0];
  for (int i = 1; i < W / 4; ++i) total += part[i];
  return (total[0] + total[2]) + (total[1] + total[3]);
}

}  // namespace
