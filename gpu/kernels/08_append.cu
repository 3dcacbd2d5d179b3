// Appends rows to a KV cache in the GPU's memory, keys and values in one launch: each is rounded to the type that
// the cache keeps, to int8 as reference/quantize.py says, and goes where its sequence ends, through the block table
// where rows lie in pages (reference/paged.py).
//
// One warp a row, that is a token's key or value in one KV head. The launcher defines FA_K_SOURCE and FA_V_SOURCE (what
// comes: Float, Half, Bfloat), FA_ELEMENT (what is kept: also Int8) and FA_WARPS. Grid: warps enough for all rows (x).
// Block: 32 * FA_WARPS.
#include "base.cuh"

// gpu/cache_rows.py holds the same list for NumPy; a test compares sizes and offsets. Of pairs, keys come first.
struct AppendProblem {
  i64 batch, kv_heads, tokens;  // that came, for every sequence
  i64 dims[2];

  const void *rows[2];  // (B, Hkv, tokens, D)
  i64 k_row_strides[3], v_row_strides[3];  // sequence, head, token

  void *planes[2];  // (B, Hkv, capacity, D), or with a block table (pages, Hkv, page_size, D)
  i64 k_plane_strides[3], v_plane_strides[3];  // sequence or page, head, row
  float *scales[2];  // of int8 rows: planes without their last axis; else null
  i64 scale_strides[3];  // of both

  const int *block_table;  // null: contiguous
  i64 block_table_stride, page_size;

  const i64 *starts;  // (B): where each sequence ends, or null: all at `start`
  const i64 *counts;  // (B): how many of the tokens each takes, from the front, or null: all
  i64 start;
};

struct Int8 {};

// CuPy compiles with -ftz=true, which turns denormal numbers into 0 where they are converted, too.
DEVICE double widen(float x) {
  const u32 bits = static_cast<u32>(__float_as_int(x));
  if (bits & 0x7f800000u) return static_cast<double>(x);
  const double magnitude = static_cast<double>(static_cast<int>(bits & 0x7fffffu)) * 1.401298464324817e-45;  // 2^-149
  return bits >> 31 ? -magnitude : magnitude;
}

// A row of type From, kept as type To. Of the same type, bits are copied: a NaN stays the NaN it was.
template <class From, class To>
struct Keep {
  static DEVICE void row(const typename From::Bits *from, void *base, i64 to, float *, int dim, int lane) {
    typename To::Bits *const kept = static_cast<typename To::Bits *>(base) + to;
    for (int d = lane; d < dim; d += WARP) kept[d] = To::store(From::load(from[d]));
  }
};
template <class Same>
struct Keep<Same, Same> {
  static DEVICE void row(const typename Same::Bits *from, void *base, i64 to, float *, int dim, int lane) {
    typename Same::Bits *const kept = static_cast<typename Same::Bits *>(base) + to;
    for (int d = lane; d < dim; d += WARP) kept[d] = from[d];
  }
};

// Integers of at most 127 and a scale. The quotient is one of float64: in float32 it could be rounded to the middle
// between two integers first, and then to the wrong one. A row with inf or NaN has no scale: its own is NaN, so that
// whatever attends to it is NaN, too. (The CPU's cache refuses such rows; here nobody waits to be told.)
template <class From>
struct Keep<From, Int8> {
  static constexpr int MOST = 256 / WARP;  // elements of a row that a lane holds, at most

  static DEVICE void row(const typename From::Bits *from, void *base, i64 to, float *scale, int dim, int lane) {
    float x[MOST];
    u32 largest = 0;  // magnitudes are ordered as their bits are, with inf and NaN beyond all numbers
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      const int d = lane + i * WARP;
      x[i] = d < dim ? From::load(from[d]) : 0.0f;
      largest = maximum(largest, static_cast<u32>(__float_as_int(x[i])) & 0x7fffffffu);
    }
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2)
      largest = maximum(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
    const bool finite = largest < 0x7f800000u;
    const double exact = widen(__int_as_float(static_cast<int>(largest))) / 127.0;
    const double smallest = 1.1754943508222875e-38;  // the smallest normal float32
    float kept = static_cast<float>(exact > smallest ? exact : smallest);
    if (largest == 0) kept = 0.0f;
    if (!finite) kept = __int_as_float(0x7fc00000);
    signed char *const integers = static_cast<signed char *>(base) + to;
    const bool zeros = largest == 0 || !finite;
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      const int d = lane + i * WARP;
      if (d >= dim) continue;
      const double quotient = zeros ? 0.0 : widen(x[i]) / static_cast<double>(kept);
      integers[d] = static_cast<signed char>(__double2int_rn(quotient));
    }
    if (lane == 0) *scale = kept;
  }
};

extern "C" __global__ void __launch_bounds__(32 * FA_WARPS) append(const AppendProblem p) {
  const int lane = threadIdx.x % WARP;
  i64 item = static_cast<i64>(blockIdx.x) * FA_WARPS + threadIdx.x / WARP;
  const i64 rows = p.batch * p.kv_heads * p.tokens;
  if (item >= 2 * rows) return;
  const bool value = item >= rows;
  if (value) item -= rows;
  const i64 token = item % p.tokens, head = item / p.tokens % p.kv_heads, b = item / p.tokens / p.kv_heads;
  if (p.counts && token >= p.counts[b]) return;

  i64 block = b, row = (p.starts ? p.starts[b] : p.start) + token;
  if (p.block_table) {
    block = p.block_table[b * p.block_table_stride + row / p.page_size];
    row %= p.page_size;
  }
  const i64 *const from = value ? p.v_row_strides : p.k_row_strides;
  const i64 *const to = value ? p.v_plane_strides : p.k_plane_strides;
  const i64 first = b * from[0] + head * from[1] + token * from[2], at = block * to[0] + head * to[1] + row * to[2];
  float *scale = p.scales[value];
  if (scale) scale += block * p.scale_strides[0] + head * p.scale_strides[1] + row * p.scale_strides[2];
  const int dim = static_cast<int>(p.dims[value]);
  if (value) {
    const FA_V_SOURCE::Bits *const source = static_cast<const FA_V_SOURCE::Bits *>(p.rows[1]) + first;
    Keep<FA_V_SOURCE, FA_ELEMENT>::row(source, p.planes[1], at, scale, dim, lane);
  } else {
    const FA_K_SOURCE::Bits *const source = static_cast<const FA_K_SOURCE::Bits *>(p.rows[0]) + first;
    Keep<FA_K_SOURCE, FA_ELEMENT>::row(source, p.planes[0], at, scale, dim, lane);
  }
}
