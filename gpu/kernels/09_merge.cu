// Attention over parts of the keys, joined: each row's outputs weighted by exp(lse - largest), in float32
// (reference/online_softmax.py, merge_normalised). A part in which a query sees no key has lse = -inf and no weight,
// whatever its row holds; a query that sees none in any part gets 0 and -inf.
//
// One thread for 8 elements of a row; it weighs the parts itself, whose lse the threads of a row read together.
// Memory-bound: parts are read once, the result is written once, 16 bytes at a time where all rows allow it. The
// result may lie where one of the parts does: a thread has read all parts before it writes. Its lse may not.
// Grid: threads enough for all rows (x). Block: FA_THREADS.
#include "base.cuh"

constexpr int PARTS = 8, CHUNK = 8;

struct Rows {  // of one part, or of the result
  void *out;  // (B, H, S, D)
  i64 strides[3];  // batch, head, row
  float *lse;  // (B, H, S); of the result: may be null
  i64 lse_strides[3];
  i64 kind;  // 0: float32, 1: float16, 2: bfloat16
};

// gpu/merge.py holds the same list for NumPy; a test compares sizes and offsets.
struct MergeProblem {
  i64 batch, heads, rows, dim, parts;
  i64 aligned;  // whether all rows begin at multiples of 16 bytes, and dim is a multiple of 8
  Rows result;
  Rows part[PARTS];
};

DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
DEVICE void load_chunk(const void *base, i64 first, int count, bool aligned, float *x) {
  const typename T::Bits *const from = static_cast<const typename T::Bits *>(base) + first;
  if (aligned) {
    constexpr int VECTORS = CHUNK * sizeof(typename T::Bits) / 16;
    union {
      uint4 vectors[VECTORS];
      typename T::Bits elements[CHUNK];
    } whole;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) whole.vectors[i] = reinterpret_cast<const uint4 *>(from)[i];
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) x[i] = T::load(whole.elements[i]);
  } else {
    for (int i = 0; i < count; ++i) x[i] = T::load(from[i]);
  }
}

template <class T>
DEVICE void store_chunk(void *base, i64 first, int count, bool aligned, const float *x) {
  typename T::Bits *const to = static_cast<typename T::Bits *>(base) + first;
  if (aligned) {
    constexpr int VECTORS = CHUNK * sizeof(typename T::Bits) / 16;
    union {
      uint4 vectors[VECTORS];
      typename T::Bits elements[CHUNK];
    } whole;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) whole.elements[i] = T::store(x[i]);
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) reinterpret_cast<uint4 *>(to)[i] = whole.vectors[i];
  } else {
    for (int i = 0; i < count; ++i) to[i] = T::store(x[i]);
  }
}

extern "C" __global__ void __launch_bounds__(FA_THREADS) merge(const MergeProblem p) {
  const i64 chunks = (p.dim + CHUNK - 1) / CHUNK;
  const i64 thread = static_cast<i64>(blockIdx.x) * FA_THREADS + threadIdx.x;
  i64 item = thread / chunks;
  if (item >= p.batch * p.heads * p.rows) return;
  const i64 d = thread % chunks * CHUNK;
  const int count = static_cast<int>(minimum(static_cast<i64>(CHUNK), p.dim - d));
  const i64 row = item % p.rows;
  item /= p.rows;
  const i64 head = item % p.heads, b = item / p.heads;

  float lse[PARTS], largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    if (i >= p.parts) continue;
    const i64 *const step = p.part[i].lse_strides;
    lse[i] = p.part[i].lse[b * step[0] + head * step[1] + row * step[2]];
    largest = maximum(lse[i], largest);
  }
  const float shift = largest == -INFINITY ? 0.0f : largest;
  float sum[CHUNK] = {}, total = 0.0f;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    if (i >= p.parts) continue;
    const float weight = exp2_fast((lse[i] - shift) * LOG2E);  // NaN where lse is NaN or +inf, and then so is all
    if (weight == 0.0f) continue;
    total += weight;
    const i64 *const step = p.part[i].strides;
    const i64 first = b * step[0] + head * step[1] + row * step[2] + d;
    float x[CHUNK];
    if (p.part[i].kind == 0) load_chunk<Float>(p.part[i].out, first, count, p.aligned, x);
    if (p.part[i].kind == 1) load_chunk<Half>(p.part[i].out, first, count, p.aligned, x);
    if (p.part[i].kind == 2) load_chunk<Bfloat>(p.part[i].out, first, count, p.aligned, x);
#pragma unroll
    for (int k = 0; k < CHUNK; ++k)
      if (k < count) sum[k] += weight * x[k];
  }
  const float factor = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
  for (int k = 0; k < CHUNK; ++k) sum[k] *= factor;
  const i64 *const step = p.result.strides;
  const i64 first = b * step[0] + head * step[1] + row * step[2] + d;
  if (p.result.kind == 0) store_chunk<Float>(p.result.out, first, count, p.aligned, sum);
  if (p.result.kind == 1) store_chunk<Half>(p.result.out, first, count, p.aligned, sum);
  if (p.result.kind == 2) store_chunk<Bfloat>(p.result.out, first, count, p.aligned, sum);
  if (d == 0 && p.result.lse) {
    const i64 *const to = p.result.lse_strides;
    p.result.lse[b * to[0] + head * to[1] + row * to[2]] = shift + LN2 * log2_fast(total);  // log 0 is -inf
  }
}
