// Decode. The launcher defines FA_ATOM (70: no tensor cores; 75, 80), FA_QUERY (Float, Half, Bfloat), FA_ELEMENT (also
// Int8), FA_HEAD_DIM, FA_V_DIM, FA_ROWS (of a block; on tensor cores 8 or 16), FA_KEYS (atom 70), FA_WHOLE (head_dim
// and v_dim are those, not rounded up), FA_WARPS, FA_MODIFIED, FA_PAGED, FA_ALIGNED, FA_MIN_BLOCKS.
//
// One CTA: the rows of a block of a KV head, over one part of the keys. Grid: parts, KV heads times row blocks,
// sequences. The last part to finish merges all of them, so that no second launch is needed.
#if FA_ATOM == 70
#include "decode_lanes.cuh"
typedef Decode<FA_QUERY, FA_ELEMENT, FA_HEAD_DIM, FA_V_DIM, FA_ROWS, FA_KEYS, FA_WARPS, FA_MODIFIED != 0, FA_PAGED != 0> Kernel;
#else
#include "decode_mma16.cuh"
#if FA_ATOM == 75
typedef TuringMma Mma;
#else
typedef AmpereMma Mma;
#endif
typedef DecodeMma<Mma, FA_QUERY, FA_ELEMENT, FA_HEAD_DIM, FA_V_DIM, FA_WARPS, FA_ROWS / 8, FA_MODIFIED != 0, FA_PAGED != 0,
                  FA_WHOLE != 0>
    Kernel;
#endif

extern "C" __global__ void __launch_bounds__(Kernel::THREADS, FA_MIN_BLOCKS)
    decode(const Problem p, u32 *counters, int row_blocks) {
  extern __shared__ float4 memory[];
  float *const shared = reinterpret_cast<float *>(memory);
  int kv_head = blockIdx.y, row_block = 0;
  if (row_blocks > 1) kv_head = blockIdx.y / row_blocks, row_block = blockIdx.y % row_blocks;
  const Sequence s(p, blockIdx.z);
  const int first = row_block * Kernel::ROWS, all = p.group * static_cast<int>(s.q_len);
  if (first >= all) return;
  const int rows = minimum(Kernel::ROWS, all - first);
  Kernel(p, s, kv_head, first, rows).run(shared, blockIdx.x);
  finish_decode<FA_QUERY, Kernel::COLUMNS, Kernel::ROWS, FA_WARPS, FA_MODIFIED != 0>(p, s, shared, kv_head, first, rows,
                                                                                     counters);
}
