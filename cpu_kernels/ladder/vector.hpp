// A vector of W floats in the compiler's own vector type: + - * and comparisons work lane by lane, and a
// scalar stands for a vector of copies. With -ffp-contract=fast, a * b + c becomes one fused multiply-add.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
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
inline F larger(F a, F b) { return a > b ? a : b; }

// The horizontal sum: log2(W) times shuffle and add, where a vertical sum takes one instruction.
inline float sum(F a) {
  float lanes[W];
  store(lanes, a);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace
