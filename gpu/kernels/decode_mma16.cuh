// Decode on the tensor cores of Turing and Ampere, for 8 or 16 query rows of a KV head: the mathematics of
// decode_lanes.cuh, with products that cost next to nothing, so that memory is all that is left.
//
// Products are transposed: keys times queries, and values times weights. Left operands have 16 rows and right ones
// 8 columns, and it is the query rows that are few.
//
// Left operands come from global memory as they are needed, past shared memory. That works because the order in
// which a product sums its 16 dimensions is free, as long as Q has it too: a lane's share of a key is one 16-byte
// load. Values are summed over keys, two neighbours to a register: a lane loads the same columns of two values and
// interleaves them; which columns make a block of 16 is free again.
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

// Eight by eight 16-bit elements, a row in four lanes: rows become columns.
DEVICE u32 transpose(u32 x) {
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(x));
  return x;
}

// BLOCKS: of eight query rows.
template <class Mma, class TQ, class T, int DIM, int V_DIM, int WARPS, int BLOCKS, bool MODIFIED, bool PAGED,
          bool WHOLE>
struct DecodeMma {
  static constexpr int ROWS = 8 * BLOCKS, KEYS = 16, THREADS = WARPS * WARP, STRIDE = WARPS * KEYS;
  static constexpr int E = Operand<T>::ELEMENTS, SIZE = Operand<T>::SIZE;
  static constexpr int CHUNKS = ceil_div(DIM, 4 * E), V_CHUNKS = ceil_div(V_DIM, 8 * E);
  static constexpr bool K_WHOLE = WHOLE && DIM % (4 * E) == 0, V_WHOLE = WHOLE && V_DIM % (8 * E) == 0;
  static constexpr int COLUMNS = V_CHUNKS * 8 * E;
  static constexpr float UNIT = MODIFIED ? LOG2E : 1.0f;  // from scores to powers of two
  typedef Parts<COLUMNS> P;

  // What a lane holds of 16 keys: of rows g and g + 8, and their scales. Of values: of rows 2 t, 2 t + 1, and
  // these plus 8, and the scales of rows g and g + 8.
  struct Keys {
    uint4 row[2][CHUNKS];
    float scale[2], value_scale[2];
  };
  struct Values {
    uint4 row[4][V_CHUNKS];
  };

  // Where neighbouring rows lie from each other. One multiplication makes an address if that fits 32 bits, as it does
  // for what FA_ALIGNED stands for.
#if FA_ALIGNED
  typedef int Step;
#else
  typedef i64 Step;
#endif

  const Problem &p;
  const Sequence &s;
  const int g, t;  // lane / 4 and lane % 4
  const int warp, kv_head, first_row, rows;
  const char *const k_base, *const v_base;  // of this KV head, where there are no pages
  const Step k_step, v_step;  // bytes
  float o[V_CHUNKS * E / 2][BLOCKS][4];  // columns 2 i, 2 i, 2 i + 1, 2 i + 1 of a chunk; rows 2 t and 2 t + 1
  float m[BLOCKS][2], l[BLOCKS][2];
  float value_unit;  // int8: outputs are in units of the largest scale so far, so that weights fit 16 bits
  bool bounded;
  Interval seen[BLOCKS][2];

  DEVICE DecodeMma(const Problem &problem, const Sequence &sequence, int head, int first, int count)
      : p(problem),
        s(sequence),
        g(threadIdx.x % WARP / 4),
        t(threadIdx.x % 4),
        warp(threadIdx.x / WARP),
        kv_head(head),
        first_row(first),
        rows(count),
        k_base(PAGED ? nullptr : row_of(p.k, p.k_strides, 0, SIZE)),
        v_base(PAGED ? nullptr : row_of(p.v, p.v_strides, 0, SIZE)),
        k_step(static_cast<Step>(p.k_strides[2] * SIZE)),
        v_step(static_cast<Step>(p.v_strides[2] * SIZE)),
        o{},
        value_unit(0),
        bounded(p.window_left >= 0 || p.window_right >= 0) {
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
      for (int e = 0; e < 2; ++e) m[b][e] = -INFINITY, l[b][e] = 0;
  }

  // A row of the block: its query, and the query head. Rows that do not exist repeat the last.
  DEVICE void query_of(int r, int &query, int &head) const {
    const int row = first_row + minimum(r, rows - 1);
    query = divide_by_group(p, row);
    head = kv_head * p.group + row - query * p.group;
  }

  // The rows of Q as right operands, their dimensions in the order of a key's, into shared memory: 16 bytes are two
  // operands. There they take none of the registers that hold keys and values on their way.
  DEVICE void load_queries(uint4 *q) const {
    for (int i = warp; i < CHUNKS * BLOCKS; i += WARPS) {
      const int c = i / BLOCKS, b = i % BLOCKS;
      int query, head;
      query_of(8 * b + g, query, head);
      const char *const from = Rows(p.q, p.q_strides, p.cu_seqlens_q ? 0 : s.batch, head, s.q_row, 2).row(query);
#pragma unroll
      for (int part = 0; part < E / 8; ++part)
        q[((c * (E / 8) + part) * BLOCKS + b) * WARP + g * 4 + t] = load_line<2, WHOLE && DIM % (4 * E) == 0>(
            from, (c * 4 + t) * E + part * 8, static_cast<int>(p.head_dim));
    }
  }

  DEVICE const char *row_of(const void *base, const i64 (&strides)[3], int key, int size) const {
    if (PAGED) {
      const int page = divide_by_page(p, key);
      const i64 at = p.block_table[s.batch * p.block_table_stride + page];
      return static_cast<const char *>(base) +
             (at * strides[0] + kv_head * strides[1] + (key - page * static_cast<int>(p.page_size)) * strides[2]) * size;
    }
    return static_cast<const char *>(base) +
           ((p.cu_seqlens_k ? 0 : s.batch) * strides[0] + kv_head * strides[1] + (s.k_row + key) * strides[2]) * size;
  }
  // 16 bytes of a row from element `first` on, each of BYTES; zeros behind the row's end.
  template <int BYTES, bool INSIDE>
  static DEVICE uint4 load_line(const char *row, int first, int dim) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (!INSIDE && first >= dim) return x;
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
  // Keys from `past` on repeat the last one: they are not read, and their scores are hidden.
  DEVICE void load(Keys &k, int key, int past) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = minimum(key + 8 * j + g, past - 1);
      const char *const row = PAGED ? row_of(p.k, p.k_strides, at, SIZE) : k_base + i64(at) * k_step;
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c)
        k.row[j][c] = load_line<SIZE, K_WHOLE>(row, (c * 4 + t) * E, static_cast<int>(p.head_dim));
      if (SIZE == 1) {
        k.scale[j] = *reinterpret_cast<const float *>(row_of(p.k_scales, p.k_scale_strides, at, 4));
        k.value_scale[j] = *reinterpret_cast<const float *>(row_of(p.v_scales, p.v_scale_strides, at, 4));
      }
    }
  }
  DEVICE void load(Values &v, int key, int past) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = minimum(key + 8 * (j / 2) + 2 * t + j % 2, past - 1);
      const char *const row = PAGED ? row_of(p.v, p.v_strides, at, SIZE) : v_base + i64(at) * v_step;
#pragma unroll
      for (int c = 0; c < V_CHUNKS; ++c)
        v.row[j][c] = load_line<SIZE, V_WHOLE>(row, (c * 8 + g) * E, static_cast<int>(p.v_dim));
    }
  }

  // Scores of 16 keys: x[b][i] is key g + 8 (i / 2), row 8 b + 2 t + i % 2.
  DEVICE void score(const uint4 *q, const Keys &k, float (&x)[BLOCKS][4]) const {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int part = 0; part < E / 8; ++part) {
        u32 a[2][4];
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            a[step][i] = Operand<T>::neighbours(k.row[i % 2][c], (part * 2 + step) * 2 + i / 2);
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
          const uint4 two = q[((c * (E / 8) + part) * BLOCKS + b) * WARP + g * 4 + t];
          Mma::template multiply<TQ>(x[b], a[0], two.x, two.y);
          Mma::template multiply<TQ>(x[b], a[1], two.z, two.w);
        }
      }
  }

  // Scores become weights. `own` are the 16 keys' scales.
  DEVICE void weigh(float (&x)[BLOCKS][4], const float (&key_scale)[2], const float (&scale)[2], int key, int past) {
    const float factor = MODIFIED ? 1.0f : p.scale * LOG2E;
    const bool partial = bounded || key + KEYS > past;
    bool behind = false;
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[b][i] *= SIZE == 1 ? key_scale[i / 2] * factor : factor;
        if (MODIFIED || partial) {
          const int at = key + 8 * (i / 2) + g;
          const bool visible = at < past && seen[b][i % 2].holds(at);
          if (MODIFIED && visible) {
            int query, head;
            query_of(8 * b + 2 * t + i % 2, query, head);
            x[b][i] = Modifiers(p, s).apply(x[b][i], head, query, at);
          }
          if (!visible) x[b][i] = -INFINITY;
        }
        behind |= x[b][i] > m[b][i % 2] + 8 / UNIT;
      }
    if (__any_sync(0xffffffffu, behind)) follow(x);
    float in_units[2] = {1, 1};
    if (SIZE == 1) scale_values(scale, in_units);
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float reference = m[b][i % 2];
        // Keys that a row does not see have weight 0, also in rows that have seen none.
        x[b][i] = exp2_fast((x[b][i] - (reference == -INFINITY ? 0.0f : reference)) * UNIT);
        l[b][i % 2] += x[b][i];
        if (SIZE == 1) x[b][i] *= in_units[i / 2];
      }
  }

  // Scales of this step's values, in units of the largest so far.
  DEVICE void scale_values(const float (&scale)[2], float (&in_units)[2]) {
    float top = fmaxf(scale[0], scale[1]);
#pragma unroll
    for (int mask = 4; mask < WARP; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
    if (top > value_unit) {
      const float shrink = value_unit / top;
      value_unit = top;
#pragma unroll
      for (int n = 0; n < V_CHUNKS * E / 2; ++n)
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
          for (int i = 0; i < 4; ++i) o[n][b][i] *= shrink;
    }
    const float inverse = value_unit > 0 ? 1.0f / value_unit : 0.0f;
    in_units[0] = scale[0] * inverse, in_units[1] = scale[1] * inverse;
  }

  // References move up to the maxima of this step.
  DEVICE void follow(const float (&x)[BLOCKS][4]) {
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float top = fmaxf(x[b][e], x[b][2 + e]);
#pragma unroll
        for (int mask = 4; mask < WARP; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
        top = fmaxf(top, m[b][e]);
        const float shrink = m[b][e] == -INFINITY ? 0.0f : exp2_fast((m[b][e] - top) * UNIT);
        m[b][e] = top;
        l[b][e] *= shrink;
#pragma unroll
        for (int n = 0; n < V_CHUNKS * E / 2; ++n) o[n][b][e] *= shrink, o[n][b][2 + e] *= shrink;
      }
  }

  DEVICE void add(const float (&w)[BLOCKS][4], const Values &v) {
    u32 weights[BLOCKS][2];
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) weights[b][half] = transpose(TQ::pack(w[b][2 * half], w[b][2 * half + 1]));
#pragma unroll
    for (int c = 0; c < V_CHUNKS; ++c)
#pragma unroll
      for (int i = 0; i < E / 2; ++i) {
        u32 a[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          a[j] = Operand<T>::both(v.row[j / 2 * 2][c], v.row[j / 2 * 2 + 1][c], 2 * i + j % 2);
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b)
          Mma::template multiply<TQ>(o[c * (E / 2) + i][b], a, weights[b][0], weights[b][1]);
      }
  }

  DEVICE void run(float *shared, int split) {
    const int each = static_cast<int>(p.key_split);
    int begin = split * each, past = minimum(s.kv_length, begin + each);
    if (bounded) {
      begin = maximum(interval_of(p, s, divide_by_group(p, first_row)).first, begin);
      past = minimum(interval_of(p, s, divide_by_group(p, first_row + rows - 1)).past, past);
    }
    int key = begin + warp * KEYS;
    Keys k;
    Values v;
    // The first keys are on their way before anything else: a short context is mostly waiting for them.
    if (key < past) load(k, key, past);
    uint4 *const q = reinterpret_cast<uint4 *>(shared);
    load_queries(q);
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        seen[b][e] = {0, static_cast<int>(s.kv_length)};
        if (bounded) {
          int query, head;
          query_of(8 * b + 2 * t + e, query, head);
          seen[b][e] = interval_of(p, s, query);
        }
      }
    __syncthreads();
    for (; key < past; key += STRIDE) {
      load(v, key, past);
      float x[BLOCKS][4] = {};
      score(q, k, x);
      const float key_scale[2] = {k.scale[0], k.scale[1]}, value_scale[2] = {k.value_scale[0], k.value_scale[1]};
      if (key + STRIDE < past) load(k, key + STRIDE, past);
      weigh(x, key_scale, value_scale, key, past);
      add(x, v);
    }
    __syncthreads();  // the queries lie where parts will
    put(shared);
  }

  DEVICE void put(float *shared) {
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float sum = l[b][e];
#pragma unroll
        for (int mask = 4; mask < WARP; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
        const int row = 8 * b + 2 * t + e;
        if (row >= rows) continue;
        float *const part = shared + (warp * ROWS + row) * P::SIZE;
        if (g == 0) part[0] = sum, part[1] = m[b][e];
        const float unit = SIZE == 1 ? value_unit : 1.0f;
#pragma unroll
        for (int c = 0; c < V_CHUNKS; ++c)
#pragma unroll
          for (int i = 0; i < E / 2; ++i) {
            const float(&four)[4] = o[c * (E / 2) + i][b];
            *reinterpret_cast<float2 *>(part + 4 + (c * 8 + g) * E + 2 * i) = make_float2(four[e] * unit, four[2 + e] * unit);
          }
      }
  }
};
