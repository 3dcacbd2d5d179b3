// The tensor-core atoms of Turing (sm_75, m16n8k8) and of Ampere and later (sm_80, m16n8k16). Their fragments
// are the same, 16 rows by 8 columns with two neighbours in a lane; one step of Ampere's is two of Turing's.
// ldmatrix loads them; results are the next product's operand as they lie.
#pragma once
#include "base.cuh"

DEVICE u32 shared_address(const void *at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

DEVICE void load_matrices(u32 (&m)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address));
}
DEVICE void load_matrices_transposed(u32 (&m)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address));
}

struct TuringMma {
  static constexpr int SM = 75;
  template <class T>
  static DEVICE void multiply(float *c, const u32 (&a)[4], u32 b0, u32 b1) {
    step(c, a[0], a[1], b0);
    step(c, a[2], a[3], b1);
  }
  static DEVICE void step(float *c, u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
};

#if __CUDA_ARCH__ >= 800
template <class T>
struct AmpereStep;
template <>
struct AmpereStep<Half> {
  static DEVICE void run(float *c, const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct AmpereStep<Bfloat> {
  static DEVICE void run(float *c, const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
struct AmpereMma {
  static constexpr int SM = 80;
  template <class T>
  static DEVICE void multiply(float *c, const u32 (&a)[4], u32 b0, u32 b1) {
    AmpereStep<T>::run(c, a, b0, b1);
  }
};
#endif

// A warp's 16 or 32 rows as one or two fragments that share each fragment of keys or values.
template <class Mma, class T, int ROWS>
struct WideAtom {
  static constexpr int TILES = ROWS / 16;
  static constexpr int WARP_ROWS = ROWS;
  static constexpr int LANE_ROWS = 2 * TILES;
  static constexpr int N = 8;
  static constexpr int LANE_COLUMNS = 2;
  static constexpr int DEPTH = 16;
  static constexpr int KEY_DEPTH = 16;

  const int lane;
  DEVICE explicit WideAtom(int lane_number) : lane(lane_number) {}

  DEVICE int row(int r) const { return (lane >> 2) + 8 * r; }
  DEVICE int score_column(int c) const { return (lane & 3) * 2 + c; }
  DEVICE int output_column(int block, int c) const { return block * 8 + (lane & 3) * 2 + c; }
  // Over the lanes that share a row, for each of a lane's rows.
  template <class Combine>
  DEVICE void across_rows(float (&x)[LANE_ROWS], Combine combine) const {
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2)
#pragma unroll
      for (int r = 0; r < LANE_ROWS; ++r) x[r] = combine(x[r], __shfl_xor_sync(0xffffffffu, x[r], lanes));
  }

  template <int BLOCKS, int DIM, int STRIDE>
  DEVICE void scores(float (&s)[BLOCKS][LANE_ROWS][2], const uint4 *q, const uint4 *k) const {
    static_assert(BLOCKS % 2 == 0 && DIM % 16 == 0, "a load brings 16 keys, 16 dimensions");
    // Lane i gives the address of row i % 8 of matrix i / 8.
    const u32 q_at = shared_address(q + (lane & 15) * STRIDE + (lane >> 4));
    const u32 k_at = shared_address(k + ((lane & 7) + (lane >> 4) * 8) * STRIDE + (lane >> 3 & 1));
#pragma unroll
    for (int d = 0; d < DIM / 16; ++d) {
      u32 a[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; ++t) load_matrices(a[t], q_at + (t * 16 * STRIDE + d * 2) * 16);
#pragma unroll
      for (int n = 0; n < BLOCKS / 2; ++n) {
        u32 b[4];
        load_matrices(b, k_at + (n * 16 * STRIDE + d * 2) * 16);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          Mma::template multiply<T>(&s[2 * n][2 * t][0], a[t], b[0], b[1]);
          Mma::template multiply<T>(&s[2 * n + 1][2 * t][0], a[t], b[2], b[3]);
        }
      }
    }
  }

  template <int BLOCKS, int OUT, int STRIDE>
  DEVICE void output(float (&o)[OUT][LANE_ROWS][2], const float (&w)[BLOCKS][LANE_ROWS][2], const uint4 *v) const {
    static_assert(BLOCKS % 2 == 0 && OUT % 2 == 0, "a load brings 16 keys, 16 columns");
    const u32 v_at = shared_address(v + (lane & 15) * STRIDE + (lane >> 4));
#pragma unroll
    for (int n = 0; n < BLOCKS / 2; ++n) {
      u32 a[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&pair)[2] = w[2 * n + (i >> 1)][2 * t + (i & 1)];
          a[t][i] = T::pack(pair[0], pair[1]);
        }
#pragma unroll
      for (int c = 0; c < OUT / 2; ++c) {
        u32 b[4];
        load_matrices_transposed(b, v_at + (n * 16 * STRIDE + c * 2) * 16);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          Mma::template multiply<T>(&o[2 * c][2 * t][0], a[t], b[0], b[1]);
          Mma::template multiply<T>(&o[2 * c + 1][2 * t][0], a[t], b[2], b[3]);
        }
      }
    }
  }
};
