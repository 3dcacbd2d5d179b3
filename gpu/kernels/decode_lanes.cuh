// Attention of few query rows over many keys, split among CTAs (reference/decode.py): bound by reading K and V,
// so each byte is read once, in 16-byte loads, for all rows of a KV head (its query heads, times the queries).
//
// head_dim stands in the lanes: L lanes hold one key. A warp takes 32 / L * KEYS keys at a time. The dot
// products of all rows with a lane group's keys are added up over its lanes by halves: at each step a lane
// gives away half of its sums and keeps the other, so that in the end each lane holds one score (or few) whole
// and the exponential is computed once.
#pragma once
#include "parts.cuh"
#include "scores.cuh"

// 16 bytes as floats.
template <class T>
struct Lanes;
template <>
struct Lanes<Float> {
  static constexpr int ELEMENTS = 4, SIZE = 4;
  static DEVICE void widen(const uint4 &bits, float *x) {
    x[0] = __uint_as_float(bits.x), x[1] = __uint_as_float(bits.y);
    x[2] = __uint_as_float(bits.z), x[3] = __uint_as_float(bits.w);
  }
};
template <class T>
struct LanesOfPairs {
  static constexpr int ELEMENTS = 8, SIZE = 2;
  static DEVICE void widen(const uint4 &bits, float *x) {
    const u32 word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = T::load(static_cast<u16>(word[i]));
      x[2 * i + 1] = T::load(static_cast<u16>(word[i] >> 16));
    }
  }
};
template <>
struct Lanes<Half> : LanesOfPairs<Half> {};
template <>
struct Lanes<Bfloat> : LanesOfPairs<Bfloat> {};
struct Int8 {};
template <>
struct Lanes<Int8> {
  static constexpr int ELEMENTS = 16, SIZE = 1;
  // A byte, moved up by 128, as the last digits of 2^23: one byte permutation and one subtraction.
  static DEVICE void widen(const uint4 &bits, float *x) {
    const u32 word[4] = {bits.x ^ 0x80808080u, bits.y ^ 0x80808080u, bits.z ^ 0x80808080u, bits.w ^ 0x80808080u};
#pragma unroll
    for (int i = 0; i < 16; ++i)
      x[i] = __uint_as_float(__byte_perm(word[i / 4], 0x4b000000u, 0x7440 + i % 4)) - 8388736.0f;
  }
};

constexpr int power_of_two_from(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// ROWS: query rows, a power of two. TQ: of q and out; T: of k and v.
template <class TQ, class T, int DIM, int V_DIM, int ROW_COUNT, int KEYS, int WARPS, bool MODIFIED, bool PAGED>
struct Decode {
  static constexpr int ROWS = ROW_COUNT;
  static constexpr int E = Lanes<T>::ELEMENTS, SIZE = Lanes<T>::SIZE;
  static constexpr int WIDER = DIM > V_DIM ? DIM : V_DIM;
  static constexpr int L = power_of_two_from((WIDER + E - 1) / E) > WARP ? WARP : power_of_two_from((WIDER + E - 1) / E);
  static constexpr int CHUNKS = (DIM + L * E - 1) / (L * E), V_CHUNKS = (V_DIM + L * E - 1) / (L * E);
  static constexpr int GROUPS = WARP / L;  // of lanes: keys side by side
  static constexpr int SCORES = ROWS * KEYS, HELD = SCORES > L ? SCORES / L : 1, COPIES = SCORES > L ? 1 : L / SCORES;
  static constexpr int STEP = GROUPS * KEYS;  // keys of a warp's step
  static constexpr int THREADS = WARPS * WARP;
  static constexpr float LAZY = 8 / LOG2E;  // the reference follows the maximum when it is left this far behind

  const Problem &p;
  const Sequence &s;
  const int lane, warp, kv_head, group, within;
  const int first_row, rows;
  float q[ROWS][CHUNKS * E], o[ROWS][V_CHUNKS * E] = {};
  float reference[ROWS];  // of each row: about its maximum
  float l[HELD] = {};  // sums of this lane's scores
  float highest[HELD];  // and their maximum, in the units of scores

  DEVICE Decode(const Problem &problem, const Sequence &sequence, int head, int first, int count)
      : p(problem),
        s(sequence),
        lane(threadIdx.x % WARP),
        warp(threadIdx.x / WARP),
        kv_head(head),
        group(lane / L),
        within(lane % L),
        first_row(first),
        rows(count) {
    const float factor = MODIFIED ? 1.0f : p.scale * LOG2E;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      reference[r] = -INFINITY;
      const int row = first_row + minimum(r, rows - 1), query = divide_by_group(p, row);
      const Rows at(p.q, p.q_strides, p.cu_seqlens_q ? 0 : s.batch, kv_head * p.group + row - query * p.group, s.q_row,
                    sizeof(typename TQ::Bits));
      const typename TQ::Bits *const from = reinterpret_cast<const typename TQ::Bits *>(at.row(query));
#pragma unroll
      for (int i = 0; i < CHUNKS * E; ++i) {
        const int d = element(i);
        q[r][i] = d < p.head_dim ? TQ::load(from[d]) * factor : 0.0f;
      }
    }
  }

  // Which element of a row a lane's i-th is.
  DEVICE int element(int i) const { return (i / E * L + within) * E + i % E; }

  // Which score a lane's h-th is: row and key (of its group).
  DEVICE int score_of(int h) const { return SCORES > L ? within * HELD + h : within / COPIES; }

  DEVICE const char *key_row(const void *base, const i64 (&strides)[3], int key, int size) const {
    if (PAGED) {
      const int page = divide_by_page(p, key);
      const i64 at = p.block_table[s.batch * p.block_table_stride + page];
      return static_cast<const char *>(base) +
             (at * strides[0] + kv_head * strides[1] + (key - page * static_cast<int>(p.page_size)) * strides[2]) * size;
    }
    const i64 batch = p.cu_seqlens_k ? 0 : s.batch;
    return static_cast<const char *>(base) + (batch * strides[0] + kv_head * strides[1] + (s.k_row + key) * strides[2]) * size;
  }

  template <int N>
  DEVICE void fetch(uint4 (&line)[KEYS][N], const void *base, const i64 (&strides)[3], int dim, int key, int past) const {
#pragma unroll
    for (int j = 0; j < KEYS; ++j) {
      const int at = key + j * GROUPS + group;
      const char *const row = key_row(base, strides, minimum(at, past - 1), SIZE);
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const int first = (c * L + within) * E;
        line[j][c] = make_uint4(0, 0, 0, 0);
        if (at < past && first < dim) line[j][c] = load_line(row, first, dim);
      }
    }
  }
  static DEVICE uint4 load_line(const char *row, int first, int dim) {
#if FA_ALIGNED
    return __ldg(reinterpret_cast<const uint4 *>(row + first * SIZE));
#else
    u8 bytes[16] = {};
    for (int i = 0; i < 16; ++i)
      if (first * SIZE + i < dim * SIZE) bytes[i] = static_cast<u8>(row[first * SIZE + i]);
    return *reinterpret_cast<uint4 *>(bytes);
#endif
  }

  // Sums over a group's lanes: scores[0 .. HELD) become those of `score_of`.
  static DEVICE void add_up(float (&x)[SCORES], int within_group) {
    int n = SCORES;
#pragma unroll
    for (int mask = L / 2; mask > 0; mask /= 2) {
      if (n > 1) {
        n /= 2;
        const bool upper = within_group & mask;
#pragma unroll
        for (int i = 0; i < SCORES / 2; ++i)
          if (i < n) {
            const float gift = upper ? x[i] : x[i + n], mine = upper ? x[i + n] : x[i];
            x[i] = mine + __shfl_xor_sync(0xffffffffu, gift, mask);
          }
      } else {
        x[0] += __shfl_xor_sync(0xffffffffu, x[0], mask);
      }
    }
  }

  DEVICE void step(const uint4 (&k)[KEYS][CHUNKS], const uint4 (&v)[KEYS][V_CHUNKS], int key, int past) {
    float x[SCORES];
#pragma unroll
    for (int j = 0; j < KEYS; ++j) {
      float wide[CHUNKS * E];
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) Lanes<T>::widen(k[j][c], wide + c * E);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS * E; ++i) sum = fmaf(q[r][i], wide[i], sum);
        x[r * KEYS + j] = sum;
      }
    }
    add_up(x, within);

    // Natural scores where they are modified, otherwise already in powers of two.
    constexpr float UNIT = MODIFIED ? LOG2E : 1.0f, STEP_BEHIND = MODIFIED ? LAZY : 8.0f;
    float weight[HELD];
    bool behind = false;
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const int r = score_of(h) / KEYS, at = key + score_of(h) % KEYS * GROUPS + group;
      const int row = first_row + r, query = divide_by_group(p, row);
      const bool visible = at < past && r < rows && interval_of(p, s, query).holds(at);
      if (sizeof(T) == sizeof(Int8) && p.k_scales && at < past)
        x[h] *= *reinterpret_cast<const float *>(key_row(p.k_scales, p.k_scale_strides, at, 4));
      if (MODIFIED && visible) x[h] = Modifiers(p, s).apply(x[h], kv_head * p.group + row - query * p.group, query, at);
      if (!visible) x[h] = -INFINITY;
      behind |= x[h] > own(reference, r) + STEP_BEHIND;
    }
    if (__any_sync(0xffffffffu, behind)) follow(x, UNIT);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const int r = score_of(h) / KEYS, at = key + score_of(h) % KEYS * GROUPS + group;
      const float zero = own(reference, r);
      weight[h] = x[h] == -INFINITY ? 0.0f : exp2_fast((x[h] - zero) * UNIT);
      l[h] += weight[h];
      if (sizeof(T) == sizeof(Int8) && p.v_scales && at < past)
        weight[h] *= *reinterpret_cast<const float *>(key_row(p.v_scales, p.v_scale_strides, at, 4));
    }
#pragma unroll
    for (int j = 0; j < KEYS; ++j) {
      float wide[V_CHUNKS * E];
#pragma unroll
      for (int c = 0; c < V_CHUNKS; ++c) Lanes<T>::widen(v[j][c], wide + c * E);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        constexpr int EACH = SCORES > L ? HELD : 1;
        const int index = r * KEYS + j, from = SCORES > L ? index / EACH : index * COPIES;
        const float w = __shfl_sync(0xffffffffu, weight[SCORES > L ? index % EACH : 0], from, L);
#pragma unroll
        for (int i = 0; i < V_CHUNKS * E; ++i) o[r][i] = fmaf(w, wide[i], o[r][i]);
      }
    }
  }

  // An element of a small array by a number known at run time, without sending the array to memory.
  static DEVICE float own(const float (&x)[ROWS], int r) {
    float found = x[0];
#pragma unroll
    for (int i = 1; i < ROWS; ++i) found = r == i ? x[i] : found;
    return found;
  }

  // References move up to the maxima of this step; what was added up so far shrinks accordingly.
  DEVICE void follow(const float (&x)[SCORES], float unit) {
    float shrink[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int h = 0; h < HELD; ++h)
        if (score_of(h) / KEYS == r) top = fmaxf(top, x[h]);
#pragma unroll
      for (int mask = WARP / 2; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
      top = fmaxf(top, reference[r]);
      shrink[r] = reference[r] == -INFINITY ? 0.0f : exp2_fast((reference[r] - top) * unit);
      reference[r] = top;
#pragma unroll
      for (int i = 0; i < V_CHUNKS * E; ++i) o[r][i] *= shrink[r];
    }
#pragma unroll
    for (int h = 0; h < HELD; ++h) l[h] *= own(shrink, score_of(h) / KEYS);
  }

  static constexpr int COLUMNS = V_CHUNKS * L * E;
  typedef Parts<COLUMNS> P;

  DEVICE void run(float *shared, int split) {
    const int rows_of = static_cast<int>(p.key_split);
    const Interval low = interval_of(p, s, divide_by_group(p, first_row)),
                   high = interval_of(p, s, divide_by_group(p, first_row + rows - 1));
    const int begin = maximum(low.first, split * rows_of), past = minimum(high.past, (split + 1) * rows_of);
    const int first = begin + warp * STEP;
    uint4 k[KEYS][CHUNKS], v[KEYS][V_CHUNKS];
    for (int key = first; key < past; key += WARPS * STEP) {
      fetch(k, p.k, p.k_strides, static_cast<int>(p.head_dim), key, past);
      fetch(v, p.v, p.v_strides, static_cast<int>(p.v_dim), key, past);
      step(k, v, key, past);
    }
    gather(shared);
  }

  // All lanes of a warp, then all warps.
  DEVICE void gather(float *shared) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float sum = 0;
#pragma unroll
      for (int h = 0; h < HELD; ++h)
        if (score_of(h) / KEYS == r && within % COPIES == 0) sum += l[h];
#pragma unroll
      for (int mask = WARP / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      float *const part = shared + (warp * ROWS + r) * P::SIZE;
#pragma unroll
      for (int i = 0; i < V_CHUNKS * E; ++i) {
#pragma unroll
        for (int mask = WARP / 2; mask >= L; mask /= 2) o[r][i] += __shfl_xor_sync(0xffffffffu, o[r][i], mask);
        if (group == 0) part[4 + element(i)] = o[r][i];
      }
      if (lane == 0) part[0] = sum, part[1] = reference[r];
    }
  }
};
