// Rows as 8-bit integers with a scale each, for the KV cache. Mirrors reference/quantize.py, bit for bit.
//
// Plain C++ that the compiler vectorises for any x86-64: a token is quantised once and then read at every
// step, so this is never what a decoder waits for.
#include <cstring>

#include "fastattention.h"

namespace {

constexpr uint32_t MAGNITUDE = 0x7fffffffu, INFINITE = 0x7f800000u;
constexpr float SMALLEST_SCALE = 0x1p-126f;  // smallest normal number

// Bits of the largest magnitude. Magnitudes of floats order as their bits do, inf and NaN above all the
// others.
int32_t largest_bits(const float *x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    const int32_t magnitude = static_cast<int32_t>(bits & MAGNITUDE);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

void round_row(const float *x, int64_t n, float scale, int8_t *integers) {
  // Adding 1.5 * 2^52 leaves no bit for a fraction: the adder rounds to an integer, half to even. The
  // quotient is taken in double so that it is not rounded across a half before.
  constexpr double SHIFT = 0x1.8p52;
  for (int64_t i = 0; i < n; ++i) {
    const double quotient = static_cast<double>(x[i]) / static_cast<double>(scale);
    integers[i] = static_cast<int8_t>(static_cast<int32_t>((quotient + SHIFT) - SHIFT));
  }
}

}  // namespace

extern "C" int fa_quantize(const float *x, const int64_t *shape, const int64_t *strides, int8_t *integers,
                           float *scales) {
  const int64_t width = shape[3];
  for (int64_t a = 0; a < shape[0]; ++a) {
    for (int64_t b = 0; b < shape[1]; ++b) {
      for (int64_t c = 0; c < shape[2]; ++c, ++scales, integers += width) {
        const float *const row = x + a * strides[0] + b * strides[1] + c * strides[2];
        const int32_t bits = largest_bits(row, width);
        if (bits >= static_cast<int32_t>(INFINITE)) return FA_NOT_FINITE;
        float largest;
        std::memcpy(&largest, &bits, sizeof largest);
        const float scale = largest / 127.0f;
        if (bits == 0) {
          *scales = 0.0f;
          std::memset(integers, 0, static_cast<size_t>(width));
          continue;
        }
        *scales = scale < SMALLEST_SCALE ? SMALLEST_SCALE : scale;
        round_row(row, width, *scales, integers);
      }
    }
  }
  return FA_OK;
}
