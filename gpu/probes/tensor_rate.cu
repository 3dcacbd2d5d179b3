// How many products the tensor cores do in a second, by one instruction: operands stay in registers, each of
// eight results is added to again and again, and nothing touches memory in between.
//
// FA_ATOM: 80 (m16n8k16), 75 (m16n8k8) or 70 (m8n8k4, which newer cards only emulate). FA_BFLOAT: bfloat16.
// Two operands of rows and four of columns stay, as in a tile of attention; the results are eight different
// sums, so that none can be left out. What a lane writes at the end is the sum of all it holds.
typedef unsigned int u32;

constexpr int ROWS = 2, COLUMNS = 4;

#if FA_ATOM == 80
constexpr int A = 4, B = 2, C = 4;
#if FA_BFLOAT
#define TYPES "f32.bf16.bf16.f32"
#else
#define TYPES "f32.f16.f16.f32"
#endif
static __device__ __forceinline__ void multiply(float (&c)[C], const u32 (&a)[A], const u32 (&b)[B]) {
  asm("mma.sync.aligned.m16n8k16.row.col." TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#elif FA_ATOM == 75
constexpr int A = 2, B = 1, C = 4;
static __device__ __forceinline__ void multiply(float (&c)[C], const u32 (&a)[A], const u32 (&b)[B]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
#else
constexpr int A = 2, B = 2, C = 8;
static __device__ __forceinline__ void multiply(float (&c)[C], const u32 (&a)[A], const u32 (&b)[B]) {
  asm("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
      "{%0,%1,%2,%3,%4,%5,%6,%7};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
}
#endif

// operands: for each register, first of the rows and then of the columns, one word a lane; of all warps alike.
extern "C" __global__ void __launch_bounds__(256) tensor_rate(const u32 *operands, float *sums, int steps) {
  const int lane = threadIdx.x & 31;
  u32 a[ROWS][A], b[COLUMNS][B];
  float c[ROWS][COLUMNS][C];
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int i = 0; i < A; ++i) a[r][i] = operands[(r * A + i) * 32 + lane];
#pragma unroll
  for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
    for (int i = 0; i < B; ++i) b[n][i] = operands[(ROWS * A + n * B + i) * 32 + lane];
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
      for (int i = 0; i < C; ++i) c[r][n][i] = 0.0f;

#pragma unroll 4
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) multiply(c[r][n], a[r], b[n]);

  float sum = 0.0f;
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
      for (int i = 0; i < C; ++i) sum += c[r][n][i];
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
