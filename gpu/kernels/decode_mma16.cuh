// Decode on the tensor cores of Turing and Ampere, for up to 16 query rows a KV head: the mathematics of
// decode_lanes.cuh, with products that cost next to nothing, so that memory is all that is left.
//
// Operands come from global memory as they are needed, past shared memory. That works because the order in which
// a product sums its 16 dimensions is free, as long as Q has it too: a lane's share of a key is one 16-byte load.
// Values are summed over keys, two neighbours to a register: a lane loads the same columns of two values and
// interleaves them; which columns make a block of eight is free again.
#pragma once
#include "atom_mma16.cuh"
#include "parts.cuh"
#include "scores.cuh"

struct Int8 {};

// A lane's 16 bytes of a key or value row as 16-bit operands.
template <class T>
struct Operand {
  static constexpr int ELEMENTS = 8, SIZE = 2;
  // Elements 2 i and 2 i + 1.
  static DEVICE u32 neighbours(const uint4 &x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }
  // Element i of two rows.
  static DEVICE u32 both(const uint4 &x, const uint4 &y, int i) {
    return __byte_perm(neighbours(x, i / 2), neighbours(y, i / 2), i % 2 ? 0x7632 : 0x5410);
  }
};
template <>
struct Operand<Int8> {
  static constexpr int ELEMENTS = 16, SIZE = 1;
  static DEVICE u32 word(const uint4 &x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }
  // Bytes 0 and 2 of a word, moved up by 128, as halves: the last digits of 1024, from which 1152 is taken.
  static DEVICE u32 halves(u32 bytes) {
    u32 x = (bytes & 0x00ff00ffu ^ 0x00800080u) | 0x64006400u;
    asm("sub.f16x2 %0, %0, %1;" : "+r"(x) : "r"(0x64806480u));
    return x;
  }
  static DEVICE u32 neighbours(const uint4 &x, int i) {
    return halves(__byte_perm(word(x, i / 2), 0, i % 2 ? 0x4342 : 0x4140));
  }
  static DEVICE u32 both(const uint4 &x, const uint4 &y, int i) {
    return halves(__byte_perm(word(x, i / 4), word(y, i / 4), (i % 4) | (i % 4 + 4) << 8));
  }
};

template <class Mma, class TQ, class T, int DIM, int V_DIM, int WARPS, bool MODIFIED, bool PAGED>
struct DecodeMma {
  static constexpr int ROWS = 16, KEYS = 16, THREADS = WARPS * WARP;
  static constexpr int E = Operand<T>::ELEMENTS, SIZE = Operand<T>::SIZE;
  static constexpr int CHUNKS = ceil_div(DIM, 4 * E), V_CHUNKS = ceil_div(V_DIM, 8 * E);
  static constexpr int STEPS = E / 4;  // products of 16 dimensions that a chunk gives
  static constexpr int COLUMNS = V_CHUNKS * 8 * E;
  typedef Parts<COLUMNS> P;

  const Problem &p;
  const Sequence s;
  const int g, t;  // lane / 4 and lane % 4
  const int warp, kv_head, heads, first_row, rows;
  uint4 *const q;  // left operands, in shared memory
  float o[V_CHUNKS * E][4];  // rows g, g, g + 8, g + 8; columns 2 t and 2 t + 1 of a block
  float m[2], l[2];
  Interval seen[2];

  DEVICE DecodeMma(const Problem &problem, int batch, int head, int row_block, float *shared)
      : p(problem),
        s(problem, batch),
        g(threadIdx.x % WARP / 4),
        t(threadIdx.x % 4),
        warp(threadIdx.x / WARP),
        kv_head(head),
        heads(static_cast<int>(p.q_heads / p.kv_heads)),
        first_row(row_block * ROWS),
        rows(minimum(ROWS, static_cast<int>(heads * s.q_len) - first_row)),
        q(reinterpret_cast<uint4 *>(shared)),
        o{} {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + minimum(g + 8 * half, rows - 1);
      m[half] = -INFINITY;
      l[half] = 0;
      seen[half] = g + 8 * half < rows ? interval_of(p, s, row / heads) : Interval{0, 0};
    }
  }

  // The rows of Q as left operands, their dimensions in the order of a key's, into shared memory: four registers of
  // a lane side by side. There they take none of the registers that hold keys and values on their way.
  DEVICE void load_queries() {
    for (int c = warp; c < CHUNKS; c += WARPS) {
      u32 operand[STEPS][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + minimum(g + 8 * half, rows - 1);
        const Rows at(p.q, p.q_strides, p.cu_seqlens_q ? 0 : s.batch, kv_head * heads + row % heads, s.q_row, 2);
        const char *const from = at.row(row / heads);
#pragma unroll
        for (int part = 0; part < E / 8; ++part) {
          const uint4 eight = load_line<2>(from, c * 4 * E + t * E + part * 8, static_cast<int>(p.head_dim), true);
          const u32 word[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) operand[part * 2 + i / 2][half + 2 * (i % 2)] = word[i];
        }
      }
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        q[(c * STEPS + step) * WARP + g * 4 + t] =
            make_uint4(operand[step][0], operand[step][1], operand[step][2], operand[step][3]);
    }
  }

  DEVICE const char *row_of(const void *base, const i64 (&strides)[3], int key, int size) const {
    if (PAGED) {
      const u32 page_size = static_cast<u32>(p.page_size), page = static_cast<u32>(key) / page_size;
      const i64 at = p.block_table[s.batch * p.block_table_stride + page];
      return static_cast<const char *>(base) +
             (at * strides[0] + kv_head * strides[1] + (key - static_cast<int>(page * page_size)) * strides[2]) * size;
    }
    const i64 batch = p.cu_seqlens_k ? 0 : s.batch;
    return static_cast<const char *>(base) +
           (batch * strides[0] + kv_head * strides[1] + (s.k_row + key) * strides[2]) * size;
  }
  // 16 bytes of a row from element `first` on, each of BYTES; zeros behind the row's end.
  template <int BYTES>
  static DEVICE uint4 load_line(const char *row, int first, int dim, bool exists) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (!exists || first >= dim) return x;
#if FA_ALIGNED
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(row + first * BYTES));
#else
    u32 word[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (first * BYTES + i < dim * BYTES)
        word[i / 4] |= static_cast<u32>(static_cast<u8>(row[first * BYTES + i])) << i % 4 * 8;
    x = make_uint4(word[0], word[1], word[2], word[3]);
#endif
    return x;
  }
  DEVICE void load_keys(uint4 (&k)[2][CHUNKS], int key, int past) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = key + 8 * j + g;
      const char *const row = row_of(p.k, p.k_strides, minimum(at, past - 1), SIZE);
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) k[j][c] = load_line<SIZE>(row, (c * 4 + t) * E, static_cast<int>(p.head_dim), at < past);
    }
  }
  DEVICE void load_values(uint4 (&v)[4][V_CHUNKS], int key, int past) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = key + 8 * (j / 2) + 2 * t + j % 2;
      const char *const row = row_of(p.v, p.v_strides, minimum(at, past - 1), SIZE);
#pragma unroll
      for (int c = 0; c < V_CHUNKS; ++c) v[j][c] = load_line<SIZE>(row, (c * 8 + g) * E, static_cast<int>(p.v_dim), at < past);
    }
  }

  // Scores of 16 keys: x[j][i] is row g + 8 (i / 2), key 8 j + 2 t + i % 2.
  DEVICE void score(const uint4 (&k)[2][CHUNKS], float (&x)[2][4]) const {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        const uint4 four = q[(c * STEPS + step) * WARP + g * 4 + t];
        const u32 a[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 2; ++j)
          Mma::template multiply<TQ>(x[j], a, Operand<T>::neighbours(k[j][c], 2 * step),
                                     Operand<T>::neighbours(k[j][c], 2 * step + 1));
      }
  }

  DEVICE void weigh(float (&x)[2][4], int key, int past) {
    const float factor = MODIFIED ? 1.0f : p.scale * LOG2E;
    constexpr float UNIT = MODIFIED ? LOG2E : 1.0f, FAR = 8 / UNIT;
    float value_scale[2][2];
    bool behind = false;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = key + 8 * j + 2 * t + i % 2, half = i / 2, row = first_row + g + 8 * half;
        if (SIZE == 1 && i < 2) {
          const bool exists = at < past;
          const int safe = minimum(at, past - 1);
          const float scale = *reinterpret_cast<const float *>(row_of(p.k_scales, p.k_scale_strides, safe, 4));
          const float v = *reinterpret_cast<const float *>(row_of(p.v_scales, p.v_scale_strides, safe, 4));
          value_scale[j][i] = exists ? v : 0.0f;
          x[j][i] *= scale;
          x[j][i + 2] *= scale;
        }
        x[j][i] *= factor;
        const bool visible = at < past && seen[half].holds(at);
        if (MODIFIED && visible) x[j][i] = Modifiers(p, s).apply(x[j][i], kv_head * heads + row % heads, row / heads, at);
        if (!visible) x[j][i] = -INFINITY;
        behind |= x[j][i] > m[half] + FAR;
      }
    if (__any_sync(0xffffffffu, behind)) follow(x, UNIT);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2;
        x[j][i] = exp2_fast((x[j][i] - (m[half] == -INFINITY ? 0.0f : m[half])) * UNIT);
        l[half] += x[j][i];
        if (SIZE == 1) x[j][i] *= value_scale[j][i % 2];
      }
  }

  // References move up to the maxima of this step.
  DEVICE void follow(const float (&x)[2][4], float unit) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = fmaxf(fmaxf(x[0][2 * half], x[0][2 * half + 1]), fmaxf(x[1][2 * half], x[1][2 * half + 1]));
#pragma unroll
      for (int mask = 1; mask <= 2; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
      top = fmaxf(top, m[half]);
      const float shrink = m[half] == -INFINITY ? 0.0f : exp2_fast((m[half] - top) * unit);
      m[half] = top;
      l[half] *= shrink;
#pragma unroll
      for (int n = 0; n < V_CHUNKS * E; ++n) o[n][2 * half] *= shrink, o[n][2 * half + 1] *= shrink;
    }
  }

  DEVICE void add(const float (&w)[2][4], const uint4 (&v)[4][V_CHUNKS]) {
    u32 a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = TQ::pack(w[i / 2][i % 2 * 2], w[i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int c = 0; c < V_CHUNKS; ++c)
#pragma unroll
      for (int i = 0; i < E; ++i)
        Mma::template multiply<TQ>(o[c * E + i], a, Operand<T>::both(v[0][c], v[1][c], i),
                                   Operand<T>::both(v[2][c], v[3][c], i));
  }

  DEVICE void run(float *shared, int split) {
    const int each = static_cast<int>(p.key_split);
    const Interval low = interval_of(p, s, first_row / heads), high = interval_of(p, s, (first_row + rows - 1) / heads);
    const int begin = maximum(low.first, split * each), past = minimum(high.past, (split + 1) * each);
    int key = begin + warp * KEYS;
    uint4 k[2][CHUNKS], v[4][V_CHUNKS];
    // The first keys are on their way before the queries: they do not wait for one another.
    if (key < past) load_keys(k, key, past);
    load_queries();
    __syncthreads();
    for (; key < past; key += WARPS * KEYS) {
      load_values(v, key, past);
      float x[2][4] = {};
      score(k, x);
      if (key + WARPS * KEYS < past) load_keys(k, key + WARPS * KEYS, past);
      weigh(x, key, past);
      add(x, v);
    }
    __syncthreads();  // the queries lie where parts will
    put(shared);
  }

  DEVICE void put(float *shared) {
    constexpr float UNIT = MODIFIED ? LOG2E : 1.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = l[half];
#pragma unroll
      for (int mask = 1; mask <= 2; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      if (g + 8 * half >= rows) continue;
      float *const part = shared + (warp * ROWS + g + 8 * half) * P::SIZE;
      if (t == 0) part[0] = sum, part[1] = m[half] * UNIT;
#pragma unroll
      for (int c = 0; c < V_CHUNKS; ++c)
#pragma unroll
        for (int i = 0; i < E; ++i)
#pragma unroll
          for (int e = 0; e < 2; ++e) part[4 + (c * 8 + 2 * t + e) * E + i] = o[c * E + i][2 * half + e];
    }
  }
};
