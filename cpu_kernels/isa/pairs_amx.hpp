// C = A B or C += A B for bfloat16 pairs, by AMX tiles: 16 x 16 sums, each of 32 products, an instruction.
// One of two files with the same names; see pairs_dot.hpp for what they compute.
//
// Four tiles of sums share two of A and two of B, so that each tile loaded (8 cycles) is used twice (16
// cycles a product). Each tile of A lies in 1 KiB of its own, in the order of use. The intrinsics of GCC 12
// do not tell the compiler which memory a tile load reads; the fences do.
#pragma once
#include "simd.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int PAIR_NV = 2;     // vectors of queries in a sub-block
constexpr int PAIR_STEP = 16;  // pairs come in multiples of this

// How A lies in memory, in elements: 16 rows make a block, 32 columns a step.
struct PairLayout {
  int64_t row, step, block;
  explicit PairLayout(int64_t columns) : row(32), step(512), block(round_up(columns, 32) * 16) {}
};

struct PairUnit {  // while it lives, this thread may compute products
  PairUnit() {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~PairUnit() { _tile_release(); }
};

inline void compiler_fence() { asm volatile("" : : : "memory"); }

template <int NV, bool ADD>
void pair_product(const uint16_t *a, const PairLayout &layout, const uint32_t *b, int64_t pairs, float *c,
                  int64_t rows) {
  static_assert(NV == 1 || NV == 2, "one case for each number of vectors");
  compiler_fence();
  const int64_t line = NV * W * 4, below = 16 * NV * W;
  for (; rows >= 32; rows -= 32, a += 2 * layout.block, c += 2 * below) {
    if constexpr (ADD) {
      _tile_loadd(0, c, line);
      if constexpr (NV == 2) _tile_loadd(1, c + W, line);
      _tile_loadd(2, c + below, line);
      if constexpr (NV == 2) _tile_loadd(3, c + below + W, line);
    } else {
      _tile_zero(0);
      if constexpr (NV == 2) _tile_zero(1);
      _tile_zero(2);
      if constexpr (NV == 2) _tile_zero(3);
    }
    const uint16_t *at = a;
    for (int64_t p = 0; p < pairs; p += PAIR_STEP, at += layout.step) {
      _tile_loadd(4, at, 64);
      _tile_loadd(6, b + p * NV * W, line);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (NV == 2) {
        _tile_loadd(7, b + p * NV * W + W, line);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_loadd(5, at + layout.block, 64);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (NV == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, line);
    if constexpr (NV == 2) _tile_stored(1, c + W, line);
    _tile_stored(2, c + below, line);
    if constexpr (NV == 2) _tile_stored(3, c + below + W, line);
  }
  if (rows > 0) {
    if constexpr (ADD) {
      _tile_loadd(0, c, line);
      if constexpr (NV == 2) _tile_loadd(1, c + W, line);
    } else {
      _tile_zero(0);
      if constexpr (NV == 2) _tile_zero(1);
    }
    for (int64_t p = 0; p < pairs; p += PAIR_STEP, a += layout.step) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b + p * NV * W, line);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (NV == 2) {
        _tile_loadd(7, b + p * NV * W + W, line);
        _tile_dpbf16ps(1, 4, 7);
      }
    }
    _tile_stored(0, c, line);
    if constexpr (NV == 2) _tile_stored(1, c + W, line);
  }
  compiler_fence();
}

}  // namespace
}  // namespace FA_NAMESPACE
