// Attention on CUDA cores, in float32 whatever the elements are: online softmax over tiles in shared memory.
//
// A CTA of 16 x 16 threads takes 64 query rows. Each thread holds a 4 x 4 block of the scores of 64 rows and 64
// keys, and of the output four rows and every 16th column: two loads of four floats feed 16 multiply-adds. Tiles of
// Q and K lie transposed, [d][row], so that such a load is one instruction without bank conflicts.
//
// The launcher defines FA_ELEMENT, FA_HEAD_DIM and FA_V_DIM (rounded up to 16), FA_MODIFIED. Grid: row blocks of 64,
// query heads, sequences. Block: 256. Dynamic shared memory: SHARED_BYTES.
#pragma once
#include "dense.cuh"

constexpr int ROWS = 64, KEYS = 64, SIDE = 16, BLOCK = 4, THREADS = SIDE * SIDE;
constexpr int SLICE = 32;  // dimensions of Q and K in shared memory at a time
constexpr int PADDED = ROWS + 4, COLUMNS = FA_V_DIM / SIDE;
constexpr int SHARED_BYTES = 4 * (2 * SLICE * PADDED + KEYS * PADDED + SIDE * FA_V_DIM);

// [d][row] <- rows [first, first + 64), dimensions [d, d + SLICE); zeros for what does not exist.
DEVICE void load_transposed(float *tile, const Rows &rows, int first, int past, int d, int dim) {
  for (int i = threadIdx.x; i < ROWS * SLICE; i += THREADS) {
    const int row = i / SLICE, column = i % SLICE;
    tile[column * PADDED + row] =
        first + row < past && d + column < dim ? element<FA_ELEMENT>(rows.row(first + row), d + column) : 0.0f;
  }
}

DEVICE void load4(float (&x)[4], const float *at) {
  const float4 four = *reinterpret_cast<const float4 *>(at);
  x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}

extern "C" __global__ void __launch_bounds__(THREADS) attention(const Problem p) {
  extern __shared__ float4 memory[];
  float *const q = reinterpret_cast<float *>(memory), *const k = q + SLICE * PADDED, *const w = k + SLICE * PADDED,
               *const v = w + KEYS * PADDED;
  const Sequence s(p, blockIdx.z);
  const int head = blockIdx.y, first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS;
  if (first_row >= s.q_len) return;
  const int q_len = static_cast<int>(s.q_len), keys = static_cast<int>(s.kv_length);
  const int last_row = minimum(first_row + ROWS, q_len) - 1, dim = static_cast<int>(p.head_dim), v_dim = static_cast<int>(p.v_dim);
  // Thread (y, x): rows 4 y .. 4 y + 3; keys 4 x .. 4 x + 3; output columns x, x + 16, ...
  const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
  const Head<FA_ELEMENT> rows(p, s, head);
  const Modifiers modifiers(p, s);
  const Span span(interval_of(p, s, first_row), interval_of(p, s, last_row));
  const float factor = FA_MODIFIED ? LOG2E : p.scale * LOG2E;  // from scores to powers of two

  float o[BLOCK][COLUMNS] = {}, m[BLOCK], l[BLOCK] = {};
#pragma unroll
  for (int r = 0; r < BLOCK; ++r) m[r] = -INFINITY;
  const int begin = FA_SKIP_EMPTY ? span.any.first / KEYS * KEYS : 0, past = FA_SKIP_EMPTY ? span.any.past : keys;
  for (int key = begin; key < past; key += KEYS) {
    float score[BLOCK][BLOCK] = {};
    for (int d = 0; d < dim; d += SLICE) {
      __syncthreads();
      load_transposed(q, rows.q, first_row, q_len, d, dim);
      load_transposed(k, rows.k, key, keys, d, dim);
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < SLICE; ++i) {
        float a[4], b[4];
        load4(a, q + i * PADDED + y * 4);
        load4(b, k + i * PADDED + x * 4);
#pragma unroll
        for (int r = 0; r < BLOCK; ++r)
#pragma unroll
          for (int c = 0; c < BLOCK; ++c) score[r][c] = fmaf(a[r], b[c], score[r][c]);
      }
    }
    const bool full = FA_SKIP_EMPTY && span.full(key, key + KEYS);
    float shrink[BLOCK];
#pragma unroll
    for (int r = 0; r < BLOCK; ++r) {
      const int query = first_row + y * 4 + r;
      const Interval seen = query < q_len ? interval_of(p, s, query) : Interval{0, 0};
      float top = m[r];
#pragma unroll
      for (int c = 0; c < BLOCK; ++c) {
        const int j = key + x * 4 + c;
        const bool visible = full || seen.holds(j);
        if (FA_MODIFIED && query < q_len && seen.holds(j)) score[r][c] = modifiers.apply(score[r][c], head, query, j);
        if (!visible) score[r][c] = -INFINITY;
        top = fmaxf(top, score[r][c]);
      }
#pragma unroll
      for (int mask = 1; mask < SIDE; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
      // A row that has seen no key yet subtracts 0: -inf less -inf would be NaN.
      const float reference = top == -INFINITY ? 0.0f : top;
      shrink[r] = exp2_fast((m[r] - reference) * factor);
      m[r] = top;
      float sum = 0;
#pragma unroll
      for (int c = 0; c < BLOCK; ++c) {
        score[r][c] = exp2_fast((score[r][c] - reference) * factor);
        sum += score[r][c];
      }
      l[r] = l[r] * shrink[r] + sum;  // of this thread's keys; added up at the end
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) o[r][c] *= shrink[r];
    }
    // Weights go through shared memory as [key][row]: who multiplies them holds other keys.
#pragma unroll
    for (int c = 0; c < BLOCK; ++c)
      *reinterpret_cast<float4 *>(w + (x * 4 + c) * PADDED + y * 4) = make_float4(score[0][c], score[1][c], score[2][c], score[3][c]);
    for (int j = 0; j < KEYS; j += SIDE) {
      __syncthreads();
      for (int i = threadIdx.x; i < SIDE * FA_V_DIM; i += THREADS) {
        const int row = i / FA_V_DIM, column = i % FA_V_DIM;
        v[i] = key + j + row < keys && column < v_dim ? element<FA_ELEMENT>(rows.v.row(key + j + row), column) : 0.0f;
      }
      __syncthreads();
#pragma unroll 4
      for (int i = 0; i < SIDE; ++i) {
        float a[4];
        load4(a, w + (j + i) * PADDED + y * 4);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
          const float b = v[i * FA_V_DIM + c * SIDE + x];
#pragma unroll
          for (int r = 0; r < BLOCK; ++r) o[r][c] = fmaf(a[r], b, o[r][c]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < BLOCK; ++r) {
    const int query = first_row + y * 4 + r;
    float sum = l[r];
#pragma unroll
    for (int mask = 1; mask < SIDE; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (query >= q_len) continue;
    const float inverse = finish_row(p, s, head, query, FA_MODIFIED ? m[r] : m[r] * p.scale, sum, x == 0);
    FA_ELEMENT::Bits *const out = reinterpret_cast<FA_ELEMENT::Bits *>(const_cast<char *>(rows.out.row(query)));
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      if (c * SIDE + x < v_dim) out[c * SIDE + x] = FA_ELEMENT::store(sum == 0 ? 0.0f : o[r][c] * inverse);
  }
}
