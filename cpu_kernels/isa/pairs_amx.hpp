// C = A B or C += A B for bfloat16 pairs, by AMX tiles: 16 x 16 sums, each of 32 products, an instruction.
// One of two files with the same names; see pairs_dot.hpp for what they compute.
//
// Four tiles of sums share two of A and two of B, so that each tile loaded (8 cycles) is used twice (16
// cycles a product). Each tile of A lies in 1 KiB of its own, in the order of use.
#pragma once
#include "tiles.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int PAIR_NV = 2;     // vectors of queries in a sub-block
constexpr int PAIR_STEP = 16;  // pairs come in multiples of this

// How A lies in memory, in elements: 16 rows make a block, 32 columns a step.
struct PairLayout {
  int64_t row, step, block;
  explicit PairLayout(int64_t columns) : row(32), step(512), block(round_up(columns, 32) * 16) {}
};

struct PairUnit : TileUnit {  // while it lives, this thread may compute products
  PairUnit() : TileUnit(16) {}
};

template <int NV, bool ADD>
void pair_product(const uint16_t *a, const PairLayout &layout, const uint32_t *b, int64_t pairs, float *c,
                  int64_t rows) {
  static_assert(NV == 1 || NV == 2, "one case for each number of vectors");
  const int64_t line = NV * W * 4, below = 16 * NV * W;
  for (; rows >= 32; rows -= 32, a += 2 * layout.block, c += 2 * below) {
    if constexpr (ADD) {
      tile_load<0>(c, line);
      if constexpr (NV == 2) tile_load<1>(c + W, line);
      tile_load<2>(c + below, line);
      if constexpr (NV == 2) tile_load<3>(c + below + W, line);
    } else {
      tile_zero<0>();
      if constexpr (NV == 2) tile_zero<1>();
      tile_zero<2>();
      if constexpr (NV == 2) tile_zero<3>();
    }
    const uint16_t *at = a;
    for (int64_t p = 0; p < pairs; p += PAIR_STEP, at += layout.step) {
      tile_load<4>(at, 64);
      tile_load<6>(b + p * NV * W, line);
      tile_dot_bf16<0, 4, 6>();
      if constexpr (NV == 2) {
        tile_load<7>(b + p * NV * W + W, line);
        tile_dot_bf16<1, 4, 7>();
      }
      tile_load<5>(at + layout.block, 64);
      tile_dot_bf16<2, 5, 6>();
      if constexpr (NV == 2) tile_dot_bf16<3, 5, 7>();
    }
    tile_store<0>(c, line);
    if constexpr (NV == 2) tile_store<1>(c + W, line);
    tile_store<2>(c + below, line);
    if constexpr (NV == 2) tile_store<3>(c + below + W, line);
  }
  if (rows > 0) {
    if constexpr (ADD) {
      tile_load<0>(c, line);
      if constexpr (NV == 2) tile_load<1>(c + W, line);
    } else {
      tile_zero<0>();
      if constexpr (NV == 2) tile_zero<1>();
    }
    for (int64_t p = 0; p < pairs; p += PAIR_STEP, a += layout.step) {
      tile_load<4>(a, 64);
      tile_load<6>(b + p * NV * W, line);
      tile_dot_bf16<0, 4, 6>();
      if constexpr (NV == 2) {
        tile_load<7>(b + p * NV * W + W, line);
        tile_dot_bf16<1, 4, 7>();
      }
    }
    tile_store<0>(c, line);
    if constexpr (NV == 2) tile_store<1>(c + W, line);
  }
}

}  // namespace
}  // namespace FA_NAMESPACE
