// The tensor-core atom of Volta (sm_70), m8n8k4, and how a warp is made of it: reference/volta/fragments.py
// has the maps, reference/volta/tile.py the dataflow, lane by lane.
//
// One instruction is four independent 8x8x4 products, each by a quad-pair of lanes ({0-3,16-19}, {4-7,20-23},
// ...). Each quad-pair takes eight query rows of its own, and all four the same keys. So no row crosses
// quad-pairs, and weights become an operand within one.
#pragma once
#include "base.cuh"

template <class T, int ROWS>
struct VoltaAtom {
  static_assert(ROWS == 32, "four quad-pairs of eight rows");
  static constexpr int WARP_ROWS = ROWS;  // query rows of a warp
  static constexpr int LANE_ROWS = 2;     // rows of which a lane holds results
  static constexpr int N = 8;             // keys, or value columns, of a block of results
  static constexpr int LANE_COLUMNS = 4;  // of them in each lane and row
  static constexpr int DEPTH = 8;         // of head_dim, taken by one pair of 16-byte loads
  static constexpr int KEY_DEPTH = 8;     // keys multiplied into the output at a time
  typedef float Block[LANE_ROWS][LANE_COLUMNS];

  const int lane;
  DEVICE explicit VoltaAtom(int lane_number) : lane(lane_number) {}

  // Rows and columns of the results that a lane holds.
  DEVICE int row(int r) const { return (lane >> 4) * 16 + (lane >> 2 & 3) * 4 + (lane & 1) + 2 * r; }
  DEVICE int score_column(int c) const { return (lane & 2) + (c & 1) + 4 * (c >> 1); }
  // Output columns come in twos of blocks, so that one 16-byte load holds operands of both.
  DEVICE int output_column(int block, int c) const {
    return (block >> 1) * 16 + (c >> 1) * 8 + (block & 1) * 4 + (lane & 2) + (c & 1);
  }
  // Over the lanes that share a row, for each of a lane's rows.
  template <class Combine>
  DEVICE void across_rows(float (&x)[LANE_ROWS], Combine combine) const {
#pragma unroll
    for (int r = 0; r < LANE_ROWS; ++r) x[r] = combine(x[r], __shfl_xor_sync(0xffffffffu, x[r], 2));
  }

  static DEVICE void multiply_rows_columns(float (&c)[LANE_ROWS][LANE_COLUMNS], const u32 (&a)[2], u32 b0, u32 b1) {
    // Register i of a result: row i & 2, columns (i & 1) + (i & 4).
    asm("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
        "{%0,%1,%2,%3,%4,%5,%6,%7};"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][2]),
          "+f"(c[1][3])
        : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(b1));
  }
  static DEVICE void multiply_rows_rows(float (&c)[LANE_ROWS][LANE_COLUMNS], const u32 (&a)[2], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
        "{%0,%1,%2,%3,%4,%5,%6,%7};"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][2]),
          "+f"(c[1][3])
        : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(b1));
  }

  // S (32 rows, BLOCKS * 8 keys) += Q K^T over DIM. q: the warp's first row; k: the tile's first key. Row
  // strides count 16-byte chunks and are odd, so that the rows of a quarter-warp lie in different banks.
  template <int BLOCKS, int DIM, int STRIDE>
  DEVICE void scores(float (&s)[BLOCKS][LANE_ROWS][LANE_COLUMNS], const uint4 *q, const uint4 *k) const {
    const int key = (lane & 3) + 4 * (lane >> 4);
#pragma unroll
    for (int d = 0; d < DIM / 8; ++d) {
      const uint4 a = q[lane * STRIDE + d];  // row `lane` of the warp: quad-pair (lane >> 2) & 3
      const u32 first[2] = {a.x, a.y}, second[2] = {a.z, a.w};
#pragma unroll
      for (int n = 0; n < BLOCKS; ++n) {
        const uint4 b = k[(n * 8 + key) * STRIDE + d];
        multiply_rows_columns(s[n], first, b.x, b.y);
        multiply_rows_columns(s[n], second, b.z, b.w);
      }
    }
  }

  // A block's weights as operands of two products of four keys each. A lane holds two columns of two rows; it
  // needs four columns of one row: two are its own, two come from the lane across.
  DEVICE void operand(const float (&w)[LANE_ROWS][LANE_COLUMNS], u32 (&a)[2][2]) const {
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

  // O (32 rows, OUT * 8 columns) += P V over BLOCKS * 8 keys; v: the tile's first value.
  template <int BLOCKS, int OUT, int STRIDE>
  DEVICE void output(float (&o)[OUT][LANE_ROWS][LANE_COLUMNS], const float (&w)[BLOCKS][LANE_ROWS][LANE_COLUMNS],
                     const uint4 *v) const {
    static_assert(OUT % 2 == 0, "value columns come in sixteens");
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
      u32 a[2][2];
      operand(w[n], a);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int c = 0; c < OUT / 2; ++c) {
          const uint4 b = v[(n * 8 + half * 4 + (lane & 3)) * STRIDE + c * 2 + (lane >> 4)];
          multiply_rows_rows(o[2 * c], a[half], b.x, b.y);
          multiply_rows_rows(o[2 * c + 1], a[half], b.z, b.w);
        }
    }
  }
};
