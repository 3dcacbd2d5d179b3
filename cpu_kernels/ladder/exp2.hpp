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
