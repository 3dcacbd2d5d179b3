// Tiles of rows from global to shared memory, 16 bytes a thread at a time: through registers (sm_70, sm_75:
// loads are issued early and stored late), or by the copy engine of sm_80. Rows behind the last and elements
// behind head_dim become zeros, so that no product meets what lies there.
#pragma once
#include "problem.cuh"

// Chunks of a row in shared memory: an odd number, so that eight rows fall into all 32 banks.
constexpr int row_chunks(int dim) { return FA_ODD_ROWS ? dim / 8 | 1 : dim / 8; }

// The 16 bytes of a row of `dim` elements from `element` on. ALIGNED: rows begin at multiples of 16 bytes, and
// dim is one of 8.
template <bool ALIGNED>
DEVICE uint4 load_chunk(const char *row, int element, int dim) {
  if (ALIGNED)
    return element < dim ? __ldg(reinterpret_cast<const uint4 *>(row + element * 2)) : make_uint4(0, 0, 0, 0);
  u32 word[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (element + i < dim) word[i >> 1] |= static_cast<u32>(*at<u16>(row, element + i)) << (i & 1) * 16;
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
    const char *from = rows.row(first + Shape::row());
    const int left = past - first - Shape::row();
#pragma unroll
    for (int i = 0; i < Shape::EACH; ++i, from += Shape::STEP * rows.stride) {
      held[i] = make_uint4(0, 0, 0, 0);
      if (Shape::takes(i) && i * Shape::STEP < left) held[i] = load_chunk<ALIGNED>(from, Shape::column() * 8, dim);
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
