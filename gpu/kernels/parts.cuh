// Parts of a row's softmax: of the warps of a CTA in shared memory, of the CTAs that share a row's keys in global
// memory. A part is its sum, its reference and its outputs before division. They are merged as in
// reference/online_softmax.py: each times 2^((its reference - the largest) * unit). References stay in the units of
// scores: modified ones may be as low as float32 goes, and times log2(e) they would be -inf.
#pragma once
#include "problem.cuh"

// COLUMNS outputs, their number a multiple of 4; parts of the same row lie `stride` floats apart.
template <int COLUMNS>
struct Parts {
  static constexpr int SIZE = COLUMNS + 4;  // floats: sum, reference, two unused, outputs

  // Merged part of `count` parts, by all THREADS of a CTA, for `rows` rows that lie SIZE apart. `factors` is
  // shared memory for count floats a row. Calls store(row, column, four outputs, sum, reference).
  template <int THREADS, bool GLOBAL, class Store>
  static DEVICE void merge(const float *parts, int count, i64 stride, int rows, float *factors, float unit,
                           Store store) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    constexpr int WARPS = THREADS / WARP;
    // A warp a row: its largest reference, its sum, and each part's factor.
    for (int r = warp; r < rows; r += WARPS) {
      const float *const row = parts + r * SIZE;
      float sum = 0;
      const float2 own = lane < count ? read2<GLOBAL>(row + lane * stride) : make_float2(0, -INFINITY);
      float top = own.y;
      for (int i = lane + WARP; i < count; i += WARP) top = fmaxf(top, read2<GLOBAL>(row + i * stride).y);
#pragma unroll
      for (int mask = WARP / 2; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
      float *const factor = factors + r * (count + 2);
      for (int i = lane; i < count; i += WARP) {
        const float2 part = i == lane ? own : read2<GLOBAL>(row + i * stride);
        const float f = part.y == -INFINITY ? 0.0f : exp2_fast((part.y - top) * unit);
        factor[2 + i] = f;
        if (f != 0) sum += f * part.x;
      }
#pragma unroll
      for (int mask = WARP / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      if (lane == 0) factor[0] = sum, factor[1] = top;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * (COLUMNS / 4); i += THREADS) {
      const int r = i / (COLUMNS / 4), c = i % (COLUMNS / 4) * 4;
      const float *const factor = factors + r * (count + 2), *const from = parts + r * SIZE + 4 + c;
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 16
      for (int part = 0; part < count; ++part) {
        const float f = factor[2 + part];
        const float4 x = read4<GLOBAL>(from + part * stride);
        // What an empty part holds does not count, not even as 0 times it.
        if (f != 0) total.x += f * x.x, total.y += f * x.y, total.z += f * x.z, total.w += f * x.w;
      }
      store(r, c, total, factor[0], factor[1]);
    }
  }

  // What other CTAs wrote comes from L2.
  template <bool GLOBAL>
  static DEVICE float2 read2(const float *at) {
    return GLOBAL ? __ldcg(reinterpret_cast<const float2 *>(at)) : *reinterpret_cast<const float2 *>(at);
  }
  template <bool GLOBAL>
  static DEVICE float4 read4(const float *at) {
    return GLOBAL ? __ldcg(reinterpret_cast<const float4 *>(at)) : *reinterpret_cast<const float4 *>(at);
  }
};

// The last steps of a decode kernel, once each warp has put its part into shared memory: one part for the CTA,
// and, by the last CTA of a row, the result. `rows` rows of KERNEL_ROWS from first_row on (row = query * heads of
// the KV head + head).
template <class TQ, int COLUMNS, int KERNEL_ROWS, int WARPS, bool MODIFIED>
DEVICE void finish_decode(const Problem &p, const Sequence &s, float *shared, int kv_head, int first_row, int rows,
                          u32 *counters) {
  typedef Parts<COLUMNS> P;
  constexpr int THREADS = WARPS * WARP;
  constexpr float UNIT = MODIFIED ? LOG2E : 1.0f;  // scores that are not modified are powers of two already
  const int splits = gridDim.x;
  float *const factors = shared + WARPS * KERNEL_ROWS * P::SIZE;
  const auto write = [&](int r, int c, const float4 &four, float sum, float top) {
    const int row = first_row + r, query = divide_by_group(p, row), head = kv_head * p.group + row - query * p.group;
    const i64 batch = p.cu_seqlens_q ? 0 : s.batch;
    const bool nothing = sum == 0;
    if (!MODIFIED) top *= LN2;  // natural from here on
    float inverse = nothing ? 0.0f : 1.0f / sum;
    if (p.sinks && !nothing) {
      const float sink = p.sinks[head], higher = fmaxf(top, sink), mine = exp2_fast((top - higher) * LOG2E);
      sum = sum * mine + exp2_fast((sink - higher) * LOG2E);
      inverse = mine / sum;
      top = higher;
    }
    const Rows out(p.out, p.out_strides, batch, head, s.q_row, sizeof(typename TQ::Bits));
    typename TQ::Bits *const to = reinterpret_cast<typename TQ::Bits *>(const_cast<char *>(out.row(query)));
    const float x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c + i < p.v_dim) to[c + i] = TQ::store(nothing ? 0.0f : x[i] * inverse);
    if (p.lse && c == 0)
      p.lse[batch * p.lse_strides[0] + head * p.lse_strides[1] + (s.q_row + query) * p.lse_strides[2]] =
          nothing ? -INFINITY : top + logf(sum);
  };
  __syncthreads();
  if (splits == 1) {
    P::template merge<THREADS, false>(shared, WARPS, KERNEL_ROWS * P::SIZE, rows, factors, UNIT, write);
    return;
  }
  const i64 set = static_cast<i64>(blockIdx.z) * gridDim.y + blockIdx.y;
  float *const parts = p.parts + set * splits * KERNEL_ROWS * P::SIZE;
  float *const mine = parts + blockIdx.x * KERNEL_ROWS * P::SIZE;
  P::template merge<THREADS, false>(shared, WARPS, KERNEL_ROWS * P::SIZE, rows, factors, UNIT,
                                    [&](int r, int c, const float4 &four, float sum, float top) {
                                      *reinterpret_cast<float4 *>(mine + r * P::SIZE + 4 + c) = four;
                                      if (c == 0) mine[r * P::SIZE] = sum, mine[r * P::SIZE + 1] = top;
                                    });
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    // Releases what this CTA wrote, and acquires what those before it did: the barriers carry both to all threads.
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counters + set) : "memory");
    last = before == static_cast<u32>(splits - 1);
    if (last) counters[set] = 0;  // for the next launch
  }
  __syncthreads();
  if (!last) return;
  P::template merge<THREADS, true>(parts, splits, KERNEL_ROWS * P::SIZE, rows, shared, UNIT, write);
}
