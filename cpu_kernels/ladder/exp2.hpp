// 2^x for a vector, to some 4 units in the last place.
//
// x = n + f, n the nearest integer, |f| <= 1/2. Adding 1.5 * 2^23 leaves a float no bits for a fraction, so
// the adder itself rounds x, and n stands in the low bits of the sum. 2^f is a polynomial of degree 5, fitted
// to the smallest largest relative error (Remez). Adding n to the exponent bits multiplies by 2^n.
//
// Below -100 it is 2^-100: nothing in float32 beside the row's largest weight, which is 1, and yet no
// subnormal number, on which many processors are slow. So -inf, a hidden key, needs no branch.
#pragma once
#include "vector.hpp"

namespace {

constexpr float LOG2E = 1.44269504f;

inline F exp2(F x) {
  x = x < -100.0f ? all(-100.0f) : x;
  const float shift = 0x1.8p23f;
  const F shifted = x + shift, f = x - (shifted - shift);
  F power = f * 0x1.5c08e6p-10f + 0x1.3d0c52p-7f;
  power = power * f + 0x1.c6b6e4p-5f;
  power = power * f + 0x1.ebf918p-3f;
  power = power * f + 0x1.62e428p-1f;
  power = power * f + 0x1.000002p+0f;
  return (F)((I)power + ((I)shifted << 23));
}

}  // namespace
