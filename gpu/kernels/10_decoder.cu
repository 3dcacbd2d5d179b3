// What a decoder of the LLaMA family does between its matrix products and its attention, each in one launch:
// take the tokens' rows of the embedding, RMSNorm with the residual's addition before it, RoPE, SwiGLU.
// Everything is computed in float32; the residual stream stays in it, and what matrices multiply is rounded
// to their own type, FA_ELEMENT (Float or Half).  A block works on one row, a token of a sequence:
// blockIdx.x; blockIdx.y, where there is one, on a piece of it.
#include "base.cuh"

typedef FA_ELEMENT::Bits Bits;

// Sums over a block, for every thread of it: at most 32 warps.
DEVICE float block_sum(float x) {
  __shared__ float warps[WARP];
#pragma unroll
  for (int mask = WARP / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = x;
  __syncthreads();
  x = threadIdx.x % WARP < blockDim.x / WARP ? warps[threadIdx.x % WARP] : 0.0f;
#pragma unroll
  for (int mask = WARP / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

// x[row] = embedding[tokens[row]].
extern "C" __global__ void embed(const int *tokens, const Bits *embedding, float *x, const int hidden) {
  const Bits *const from = embedding + static_cast<i64>(tokens[blockIdx.x]) * hidden;
  float *const to = x + static_cast<i64>(blockIdx.x) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) to[i] = FA_ELEMENT::load(from[i]);
}

// x += delta (unless null); out = x / sqrt(mean(x^2) + epsilon), times gain (unless null). Strides are from
// row to row, of x and of delta; out has none between rows, and may be delta. Whole warps.
extern "C" __global__ void normalise(float *x, const i64 x_stride, const Bits *delta, const i64 delta_stride,
                                     const float *gain, Bits *out, const int hidden, const float epsilon) {
  x += blockIdx.x * x_stride;
  out += static_cast<i64>(blockIdx.x) * hidden;
  float squares = 0.0f;
  if (delta) {
    delta += blockIdx.x * delta_stride;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
      const float sum = x[i] + FA_ELEMENT::load(delta[i]);
      x[i] = sum;
      squares += sum * sum;
    }
  } else {
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) squares += x[i] * x[i];
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(hidden) + epsilon);
  // A thread reads back what it wrote itself.
  for (int i = threadIdx.x; i < hidden; i += blockDim.x)
    out[i] = FA_ELEMENT::store(x[i] * scale * (gain ? gain[i] : 1.0f));
}

// Turns the pairs of neighbouring dimensions (2i, 2i + 1), i < pairs, of the first `turned` of `heads` heads
// in each row, by what `rotation` says for the row's token: cosine and sine, (tokens, pairs, 2). Rows are
// sequences of `tokens`.
extern "C" __global__ void rotate(Bits *qkv, const float *rotation, const int tokens, const int heads,
                                  const int turned, const int dim, const int pairs) {
  const int item = blockIdx.y * blockDim.x + threadIdx.x;
  if (item >= turned * pairs) return;
  const int head = item / pairs, pair = item % pairs;
  Bits *const at = qkv + (static_cast<i64>(blockIdx.x) * heads + head) * dim + 2 * pair;
  const float *const by = rotation + (static_cast<i64>(blockIdx.x % tokens) * pairs + pair) * 2;
  const float a = FA_ELEMENT::load(at[0]), b = FA_ELEMENT::load(at[1]), cosine = by[0], sine = by[1];
  at[0] = FA_ELEMENT::store(a * cosine - b * sine);
  at[1] = FA_ELEMENT::store(a * sine + b * cosine);
}

// out = silu(gate) * up of rows (half the gate, up): silu(g) = g / (1 + exp(-g)) = h (1 + tanh(h)) with h = g
// / 2.
extern "C" __global__ void gate(const Bits *both, Bits *out, const int width) {
  both += static_cast<i64>(blockIdx.x) * 2 * width;
  out += static_cast<i64>(blockIdx.x) * width;
  const int step = gridDim.y * blockDim.x;
#pragma unroll 4
  for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < width; i += step) {
    const float half = FA_ELEMENT::load(both[i]), up = FA_ELEMENT::load(both[width + i]);
    out[i] = FA_ELEMENT::store(half * (1.0f + tanhf(half)) * up);
  }
}
