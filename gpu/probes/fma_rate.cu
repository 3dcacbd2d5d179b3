// How many float32 multiply-adds the card does in a second: sixteen chains a thread, all in registers.
//
// Chain i goes from i to i * factor^steps + addend * (1 + factor + ... + factor^(steps - 1)); a thread writes the
// sum of its chains.
constexpr int CHAINS = 16;

extern "C" __global__ void __launch_bounds__(256) fma_rate(float factor, float addend, float *sums, int steps) {
  float x[CHAINS];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) x[i] = static_cast<float>(i);
#pragma unroll 8
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) x[i] = fmaf(x[i], factor, addend);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum += x[i];
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
