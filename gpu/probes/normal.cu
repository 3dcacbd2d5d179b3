// Standard normal numbers, the same on every card for the same seed, and without a library: a number's place is
// hashed (the finaliser of SplitMix64) and two uniform numbers become two normal ones (Box and Muller).
//
// FA_TYPE: 0 float32, 1 float16, 2 bfloat16. `count` is even.
typedef unsigned int u32;
typedef unsigned long long u64;

#if FA_TYPE == 0
typedef float Element;
static __device__ __forceinline__ Element rounded(float x) { return x; }
#else
typedef unsigned short Element;
static __device__ __forceinline__ Element rounded(float x) {
#if FA_TYPE == 1
  Element bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const u32 bits = __float_as_uint(x);  // finite: round half to even by hand
  return static_cast<Element>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}
#endif

static __device__ __forceinline__ u64 hash(u64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

extern "C" __global__ void __launch_bounds__(256) normal(Element *out, u64 count, u64 seed) {
  const u64 start = hash(seed), threads = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 pair = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; 2 * pair < count; pair += threads) {
    const u64 bits = hash(start + pair);
    const float uniform = (static_cast<float>(static_cast<u32>(bits >> 40)) + 0.5f) * (1.0f / 16777216.0f);
    const float angle = static_cast<float>(static_cast<u32>(bits) >> 8) * (2.0f / 16777216.0f);
    float sine, cosine;
    sincospif(angle, &sine, &cosine);
    const float radius = sqrtf(-2.0f * logf(uniform));
    out[2 * pair] = rounded(radius * cosine);
    out[2 * pair + 1] = rounded(radius * sine);
  }
}
