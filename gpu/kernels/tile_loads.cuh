// Tiles of rows from global to shared memory, 16 bytes a thread at a time: through registers (sm_70, sm_75:
// loads are issued early and stored late), or by the copy engine of sm_80. Rows behind the last and elements
// behind head_dim become zeros, so that no product meets what lies there.
#pragma once
#include "problem.cuh"

// Chunks of a row in shared memory: an odd number, so that eight rows fall into all 32 banks.
constexpr int row_chunks(int dim) { return FA_ODD_ROWS ? dim / 8 | 1 : dim / 8; }

// A chunk of a row: elements from `from` on, zeros instead of those that are not there. Loads are predicated: what
// does not exist is not read, and branches around loads would cost more instructions than these and keep the
// compiler from issuing them together.

// All eight elements, or none; `from` is a multiple of 16 bytes.
DEVICE uint4 load_whole_chunk(const char *from, bool exists) {
  uint4 x;
  asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
      "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];}"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(from), "r"(static_cast<u32>(exists)));
  return x;
}

// The first `count` elements, one at a time.
DEVICE uint4 load_partial_chunk(const char *from, int count) {
  u32 word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm("{.reg .pred p, q; .reg .b16 a, b; setp.gt.s32 p, %2, 0; setp.gt.s32 q, %2, 1; mov.b16 a, 0; mov.b16 b, 0;"
        "@p ld.global.nc.u16 a, [%1]; @q ld.global.nc.u16 b, [%1 + 2]; mov.b32 %0, {a, b};}"
        : "=r"(word[i])
        : "l"(from + 4 * i), "r"(count - 2 * i));
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// ROWS rows of DIM (rounded up) elements by THREADS threads: each takes one column of chunks and every
// STEP-th row, so that all it keeps is one address. A few threads are left over where CHUNKS does not divide
// THREADS.
template <int ROWS, int DIM, int THREADS>
struct TileShape {
  static constexpr int CHUNKS = DIM / 8, STRIDE = row_chunks(DIM);
  static constexpr int STEP = THREADS / CHUNKS, EACH = (ROWS + STEP - 1) / STEP;
  static DEVICE int column() { return static_cast<int>(threadIdx.x) % CHUNKS; }
  static DEVICE int row() { return static_cast<int>(threadIdx.x) / CHUNKS; }
  static DEVICE bool takes(int i) {  // whether this thread has an i-th chunk
    return (STEP * CHUNKS == THREADS || row() < STEP) && (ROWS % STEP == 0 || row() + i * STEP < ROWS);
  }
};

template <int ROWS, int DIM, int THREADS, bool ALIGNED>
struct RegisterLoads {
  typedef TileShape<ROWS, DIM, THREADS> Shape;
  uint4 held[Shape::EACH];

  // The tile begins at row `first`; rows from `past` on do not exist.
  DEVICE void issue(const Rows &rows, int first, int past, int dim, uint4 *) {
    const char *const from = rows.row(first + Shape::row()) + Shape::column() * 16;
    const int count = dim - Shape::column() * 8, left = count > 0 ? past - first - Shape::row() : 0;
#pragma unroll
    for (int i = 0; i < Shape::EACH; ++i) {
      // Addresses by products: a running one would take two registers more, and those are all taken.
      const char *const at = from + i * Shape::STEP * rows.stride;
      const bool exists = Shape::takes(i) && i * Shape::STEP < left;
      held[i] = ALIGNED ? load_whole_chunk(at, exists) : load_partial_chunk(at, exists ? count : 0);
    }
  }
  DEVICE void land(uint4 *tile) {
    uint4 *const to = tile + Shape::row() * Shape::STRIDE + Shape::column();
#pragma unroll
    for (int i = 0; i < Shape::EACH; ++i)
      if (Shape::takes(i)) to[i * Shape::STEP * Shape::STRIDE] = held[i];
  }
};

#if __CUDA_ARCH__ >= 800
template <int ROWS, int DIM, int THREADS>
struct AsyncLoads {
  typedef TileShape<ROWS, DIM, THREADS> Shape;

  DEVICE void issue(const Rows &rows, int first, int past, int dim, uint4 *tile) {
    const char *from = rows.row(first + Shape::row()) + Shape::column() * 16;
    const u32 to = static_cast<u32>(__cvta_generic_to_shared(tile + Shape::row() * Shape::STRIDE + Shape::column()));
    const int left = Shape::column() * 8 < dim ? past - first - Shape::row() : 0;
#pragma unroll
    for (int i = 0; i < Shape::EACH; ++i, from += Shape::STEP * rows.stride) {
      const bool exists = i * Shape::STEP < left;
      if (Shape::takes(i))  // what does not exist is not read, and becomes zeros
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                     :
                     : "r"(to + i * Shape::STEP * Shape::STRIDE * 16), "l"(exists ? from : rows.first),
                       "r"(exists ? 16 : 0)
                     : "memory");
    }
    asm volatile("cp.async.commit_group;" : : : "memory");
  }
  DEVICE void land(uint4 *) { asm volatile("cp.async.wait_group 0;" : : : "memory"); }
};
#endif

// How this kernel loads: by the copy engine where there is one and rows lie right for it.
#if FA_ASYNC
template <int ROWS, int DIM, int THREADS>
using Loads = AsyncLoads<ROWS, DIM, THREADS>;
#else
template <int ROWS, int DIM, int THREADS>
using Loads = RegisterLoads<ROWS, DIM, THREADS, FA_ALIGNED != 0>;
#endif
