// The tensor-core atom of Volta (sm_70), m8n8k4, and how a warp is made of it: reference/volta/fragments.py
// has the maps, reference/volta/tile.py the dataflow, lane by lane.
//
// One instruction is four independent 8x8x4 products, each by a quad-pair of lanes ({0-3,16-19}, {4-7,20-23},
// ...). Either each quad-pair takes eight rows of its own, and all four the same keys: no row crosses quad-pairs,
// and weights become an operand within one. Or they stand two by two: two share rows and part keys and columns
// among them, which takes more shuffles and, for as many rows, half the loads of K and V. A warp has one or two
// such tiles of rows, which share each operand from K or V.
#pragma once
#include "base.cuh"

// ABREAST: quad-pairs side by side, 1 or 2.
template <class T, int ROWS, int ABREAST>
struct VoltaAtom {
  static constexpr int TILE_ROWS = 32 / ABREAST, TILES = ROWS / TILE_ROWS;
  static_assert(ROWS % TILE_ROWS == 0 && (ABREAST == 1 || ABREAST == 2), "whole tiles of quad-pairs");
  static constexpr int WARP_ROWS = ROWS;  // query rows of a warp
  static constexpr int LANE_ROWS = 2 * TILES;  // rows of which a lane holds results
  static constexpr int N = 8 * ABREAST;   // keys, or value columns, of a block of results
  static constexpr int LANE_COLUMNS = 4;  // of them in each lane and row

  const int lane;
  DEVICE explicit VoltaAtom(int lane_number) : lane(lane_number) {}

  // Which of the quad-pairs side by side: bit 3 of the lane.
  DEVICE int side() const { return ABREAST == 2 ? lane >> 3 & 1 : 0; }
  // Number `t` of a quad-pair's eight rows, as a row of the tile. Lanes 0-7, 8-15, ... of a load of rows fall on
  // eight neighbouring rows, or on four twice: in either case into different banks.
  DEVICE int row_of(int t) const {
    return ABREAST == 2 ? (t >> 2) * 8 + (lane >> 2 & 1) * 4 + (t & 3) : (t >> 2) * 16 + (lane >> 2 & 3) * 4 + (t & 3);
  }
  DEVICE int number() const { return (lane & 3) + 4 * (lane >> 4); }  // of a lane in its quad-pair

  // Rows and columns of the results that a lane holds.
  DEVICE int row(int r) const { return r / 2 * TILE_ROWS + row_of((lane & 1) + 2 * (r % 2) + 4 * (lane >> 4)); }
  DEVICE int score_column(int c) const { return side() * 8 + (lane & 2) + (c & 1) + 4 * (c >> 1); }
  // Output columns come in twos of blocks, so that one 16-byte load holds operands of both.
  DEVICE int output_column(int block, int c) const {
    return ((block >> 1) * ABREAST + side()) * 16 + (c >> 1) * 8 + (block & 1) * 4 + (lane & 2) + (c & 1);
  }
  // Over the lanes that share a row, for each of a lane's rows.
  template <class Combine>
  DEVICE void across_rows(float (&x)[LANE_ROWS], Combine combine) const {
#pragma unroll
    for (int r = 0; r < LANE_ROWS; ++r) {
      x[r] = combine(x[r], __shfl_xor_sync(0xffffffffu, x[r], 2));
      if (ABREAST == 2) x[r] = combine(x[r], __shfl_xor_sync(0xffffffffu, x[r], 8));
    }
  }

  static DEVICE void multiply_rows_columns(float (*c)[LANE_COLUMNS], const u32 (&a)[2], u32 b0, u32 b1) {
    // Register i of a result: row i & 2, columns (i & 1) + (i & 4).
    asm("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
        "{%0,%1,%2,%3,%4,%5,%6,%7};"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][2]),
          "+f"(c[1][3])
        : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(b1));
  }
  static DEVICE void multiply_rows_rows(float (*c)[LANE_COLUMNS], const u32 (&a)[2], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
        "{%0,%1,%2,%3,%4,%5,%6,%7};"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][2]),
          "+f"(c[1][3])
        : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(b1));
  }

  // S (BLOCKS * N keys) += Q K^T over DIM. q: the warp's first row; k: the tile's first key. Row strides count
  // 16-byte chunks and are odd, so that the rows of a quarter-warp lie in different banks.
  template <int BLOCKS, int DIM, int STRIDE>
  DEVICE void scores(float (&s)[BLOCKS][LANE_ROWS][LANE_COLUMNS], const uint4 *q, const uint4 *k) const {
    const uint4 *const q_at = q + row_of(number()) * STRIDE, *const k_at = k + (side() * 8 + number()) * STRIDE;
#pragma unroll
    for (int d = 0; d < DIM / 8; ++d) {
      u32 first[TILES][2], second[TILES][2];
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const uint4 a = q_at[t * TILE_ROWS * STRIDE + d];
        first[t][0] = a.x, first[t][1] = a.y, second[t][0] = a.z, second[t][1] = a.w;
      }
#pragma unroll
      for (int n = 0; n < BLOCKS; ++n) {
        const uint4 b = k_at[n * N * STRIDE + d];
#pragma unroll
        for (int t = 0; t < TILES; ++t) multiply_rows_columns(&s[n][2 * t], first[t], b.x, b.y);
#pragma unroll
        for (int t = 0; t < TILES; ++t) multiply_rows_columns(&s[n][2 * t], second[t], b.z, b.w);
      }
    }
  }

  // A block's weights as operands of two products of four keys each. A lane holds two columns of two rows; it
  // needs four columns of one row: two are its own, two come from the lane across.
  DEVICE void operand(const float (*w)[LANE_COLUMNS], u32 (&a)[2][2]) const {
    const bool upper = lane & 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 low_row = T::pack(w[0][2 * half], w[0][2 * half + 1]);
      const u32 high_row = T::pack(w[1][2 * half], w[1][2 * half + 1]);
      const u32 mine = upper ? high_row : low_row;
      const u32 theirs = __shfl_xor_sync(0xffffffffu, upper ? low_row : high_row, 2);
      a[half][0] = upper ? theirs : mine;
      a[half][1] = upper ? mine : theirs;
    }
  }

  // O (OUT * N columns) += P V over BLOCKS * N keys; v: the tile's first value.
  template <int BLOCKS, int OUT, int STRIDE>
  DEVICE void output(float (&o)[OUT][LANE_ROWS][LANE_COLUMNS], const float (&w)[BLOCKS][LANE_ROWS][LANE_COLUMNS],
                     const uint4 *v) const {
    static_assert(OUT % 2 == 0, "value columns come in twos of blocks");
    const uint4 *const v_at = v + (lane & 3) * STRIDE + side() * 2 + (lane >> 4);
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
      u32 a[TILES][2 * ABREAST][2];
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        u32 mine[2][2];
        operand(&w[n][2 * t], mine);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            a[t][half][i] = mine[half][i];
            if (ABREAST == 2) {  // the other quad-pair of these rows has the other eight keys
              const u32 theirs = __shfl_xor_sync(0xffffffffu, mine[half][i], 8);
              a[t][half][i] = side() ? theirs : mine[half][i];
              a[t][2 * ABREAST - 2 + half][i] = side() ? mine[half][i] : theirs;
            }
          }
      }
#pragma unroll
      for (int four = 0; four < 2 * ABREAST; ++four)
#pragma unroll
        for (int c = 0; c < OUT / 2; ++c) {
          const uint4 b = v_at[(n * N + four * 4) * STRIDE + c * 2 * ABREAST];
#pragma unroll
          for (int t = 0; t < TILES; ++t) multiply_rows_rows(&o[2 * c][2 * t], a[t][four], b.x, b.y);
#pragma unroll
          for (int t = 0; t < TILES; ++t) multiply_rows_rows(&o[2 * c + 1][2 * t], a[t][four], b.z, b.w);
        }
    }
  }
};
