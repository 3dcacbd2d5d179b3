// Attention of many queries on tensor cores, for every atom: one CTA takes WARPS * WARP_ROWS query rows of a
// head through the tiles of keys that any of them sees, with online softmax (reference/tiled.py).
//
// V is asked for before the scores are computed and K's next tile before softmax, so that each load has a
// product to hide behind.
#pragma once
#include "scores.cuh"
#include "tile_loads.cuh"

template <class Atom, class T, int DIM, int V_DIM, int WARPS, int KEYS, bool MODIFIED>
struct Attention {
  static constexpr int THREADS = WARPS * WARP, ROWS = WARPS * Atom::WARP_ROWS;
  static constexpr int STRIDE = row_chunks(DIM), V_STRIDE = row_chunks(V_DIM);
  static constexpr int BLOCKS = KEYS / Atom::N, OUT = V_DIM / Atom::N;
  static constexpr int R = Atom::LANE_ROWS, C = Atom::LANE_COLUMNS;
  static constexpr bool EARLY = FA_EARLY;  // loads are issued before the product they hide behind
  static constexpr int SHARED_BYTES = 16 * (ROWS * STRIDE + KEYS * STRIDE + KEYS * V_STRIDE);

  static DEVICE void run(const Problem &p, uint4 *shared) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Atom atom(lane);
    const Sequence s(p, blockIdx.z);
    const int head = blockIdx.y, kv_head = divide_by_group(p, head);
    // Late rows first: under causal they see the most keys.
    const int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS;
    if (first_row >= s.q_len) return;
    const int last_row = minimum(first_row + ROWS, static_cast<int>(s.q_len)) - 1;
    const Rows q_rows(p.q, p.q_strides, p.cu_seqlens_q ? 0 : s.batch, head, s.q_row, 2);
    const Rows k_rows(p.k, p.k_strides, p.cu_seqlens_k ? 0 : s.batch, kv_head, s.k_row, 2);
    const Rows v_rows(p.v, p.v_strides, p.cu_seqlens_k ? 0 : s.batch, kv_head, s.k_row, 2);
    uint4 *const q = shared, *const k = q + ROWS * STRIDE, *const v = k + KEYS * STRIDE;
    const int dim = static_cast<int>(p.head_dim), v_dim = static_cast<int>(p.v_dim);

    const Band all(p, s, first_row);
    const int begin = maximum(all.first, 0) / KEYS * KEYS, past = all.past_of(last_row - first_row);

    float o[OUT][R][C] = {};
    float m[R], l[R];
    const int warp_row = first_row + warp * Atom::WARP_ROWS;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      m[r] = -INFINITY;
      l[r] = 0;
    }
    const Band band(p, s, warp_row);
    // Where the warp's last row stops seeing keys; a warp without rows sees none.
    const int stop = warp_row > last_row ? 0 : band.past_of(minimum(Atom::WARP_ROWS - 1, last_row - warp_row));
    const Modifiers modifiers(p, s);
    const float factor = MODIFIED ? LOG2E : p.scale * LOG2E;  // from scores to powers of two

    const int keys = static_cast<int>(s.kv_length);
    Loads<KEYS, DIM, THREADS> k_loads;
    Loads<KEYS, V_DIM, THREADS> v_loads;
    if (begin < past) {
      Loads<ROWS, DIM, THREADS> q_loads;
      q_loads.issue(q_rows, first_row, static_cast<int>(s.q_len), dim, q);
      q_loads.land(q);
      k_loads.issue(k_rows, begin, keys, dim, k);
      k_loads.land(k);
      __syncthreads();
    }
    for (int key = begin; key < past; key += KEYS) {
      const bool skip = key >= stop || key + KEYS <= band.first;
      if (EARLY) v_loads.issue(v_rows, key, keys, v_dim, v);
      float w[BLOCKS][R][C] = {};
      if (!skip) atom.template scores<BLOCKS, DIM, STRIDE>(w, q + warp * Atom::WARP_ROWS * STRIDE, k);
      if (!EARLY) v_loads.issue(v_rows, key, keys, v_dim, v);
      v_loads.land(v);
      __syncthreads();
      if (EARLY && key + KEYS < past) k_loads.issue(k_rows, key + KEYS, keys, dim, k);
      if (!skip) {
        if (MODIFIED) modify(w, modifiers, atom, head, warp_row, key);
        const bool full = key >= band.first_of(Atom::WARP_ROWS - 1) && key + KEYS <= band.past_of(0);
        if (!full) hide(w, band, atom, key);
        soften(w, o, m, l, factor, atom);
        atom.template output<BLOCKS, OUT, V_STRIDE>(o, w, v);
      }
      if (!EARLY && key + KEYS < past) k_loads.issue(k_rows, key + KEYS, keys, dim, k);
      if (key + KEYS < past) k_loads.land(k);
      __syncthreads();
    }
    finish(p, s, o, m, l, factor, atom, head, warp_row);
  }

  static DEVICE void modify(float (&w)[BLOCKS][R][C], const Modifiers &modifiers, const Atom &atom, i64 head,
                            int warp_row, int key) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int query = warp_row + atom.row(r);
      const Interval seen = query < modifiers.s.q_len ? interval_of(modifiers.p, modifiers.s, query) : Interval{0, 0};
#pragma unroll
      for (int n = 0; n < BLOCKS; ++n)
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const int j = key + n * Atom::N + atom.score_column(c);
          if (seen.holds(j)) w[n][r][c] = modifiers.apply(w[n][r][c], head, query, j);
        }
    }
  }

  static DEVICE void hide(float (&w)[BLOCKS][R][C], const Band &band, const Atom &atom, int key) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) {
        // Of the keys n * N that are this lane's: compared with constants.
        const int first_key = key + atom.score_column(c), row = atom.row(r);
        const int first = band.first_of(row) - first_key, past = band.past_of(row) - first_key;
#pragma unroll
        for (int n = 0; n < BLOCKS; ++n)
          if (n * Atom::N < first || n * Atom::N >= past) w[n][r][c] = -INFINITY;
      }
  }

  // A weight from a score. Modified scores may be as low as float32 goes: the reference is subtracted before
  // they are multiplied. Others take one operation less: their reference is multiplied already.
  static DEVICE float power(float x, float reference, float factor) {
    return exp2_fast(MODIFIED ? (x - reference) * factor : fmaf(x, factor, -reference));
  }

  // Scores become weights; sums and outputs follow the maximum.
  static DEVICE void soften(float (&w)[BLOCKS][R][C], float (&o)[OUT][R][C], float (&m)[R], float (&l)[R],
                            float factor, const Atom &atom) {
    // Rows are the innermost loop: chains of several rows overlap, one alone would wait for each result.
    float top[R], reference[R], shrink[R], sum[R] = {};
    bool grew = false;
#pragma unroll
    for (int r = 0; r < R; ++r) top[r] = m[r];
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n)
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int r = 0; r < R; ++r) top[r] = fmaxf(top[r], w[n][r][c]);
    atom.across_rows(top, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
    for (int r = 0; r < R; ++r) {
      grew |= top[r] > m[r];
      // A row that has seen no key yet subtracts 0: -inf less -inf would be NaN.
      reference[r] = top[r] == -INFINITY ? 0.0f : MODIFIED ? top[r] : top[r] * factor;
      shrink[r] = power(m[r], reference[r], factor);
      m[r] = top[r];
    }
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n)
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int r = 0; r < R; ++r) {
          w[n][r][c] = power(w[n][r][c], reference[r], factor);
          sum[r] += w[n][r][c];
        }
#pragma unroll
    for (int r = 0; r < R; ++r) l[r] = l[r] * shrink[r] + sum[r];  // of this lane's columns; lanes add up at the end
    // Maxima settle soon: most tiles have nothing to rescale.
    if (!__any_sync(0xffffffffu, grew)) return;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int n = 0; n < OUT; ++n)
#pragma unroll
        for (int c = 0; c < C; ++c) o[n][r][c] *= shrink[r];
  }

  static DEVICE void finish(const Problem &p, const Sequence &s, float (&o)[OUT][R][C], float (&m)[R], float (&l)[R],
                            float factor, const Atom &atom, int head, int warp_row) {
    const Rows out(p.out, p.out_strides, p.cu_seqlens_q ? 0 : s.batch, head, s.q_row, 2);
    const int v_dim = static_cast<int>(p.v_dim);
    const bool pairs = v_dim % 2 == 0 && out.stride % 4 == 0 && reinterpret_cast<u64>(out.first) % 4 == 0;
    atom.across_rows(l, [](float a, float b) { return a + b; });
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int query = warp_row + atom.row(r);
      float sum = l[r];
      const bool nothing = sum == 0;  // no visible key: the largest alone adds 1
      float top = MODIFIED ? m[r] : m[r] * p.scale, inverse = nothing ? 0.0f : 1.0f / sum;
      if (p.sinks && !nothing) {
        const float sink = p.sinks[head], higher = fmaxf(top, sink), mine = exp2_fast((top - higher) * LOG2E);
        sum = sum * mine + exp2_fast((sink - higher) * LOG2E);
        inverse = mine / sum;
        top = higher;
      }
      if (query >= s.q_len) continue;
      char *const row = const_cast<char *>(out.row(query));
#pragma unroll
      for (int n = 0; n < OUT; ++n)
#pragma unroll
        for (int c = 0; c < C; c += 2) {
          const int column = atom.output_column(n, c);
          const float first = nothing ? 0.0f : o[n][r][c] * inverse, second = nothing ? 0.0f : o[n][r][c + 1] * inverse;
          if (pairs) {
            if (column < v_dim) *reinterpret_cast<u32 *>(row + column * 2) = T::pack(first, second);
          } else {
            if (column < v_dim) *reinterpret_cast<u16 *>(row + column * 2) = T::store(first);
            if (column + 1 < v_dim) *reinterpret_cast<u16 *>(row + column * 2 + 2) = T::store(second);
          }
        }
      if (p.lse && atom.output_column(0, 0) == 0)
        p.lse[(p.cu_seqlens_q ? 0 : s.batch) * p.lse_strides[0] + head * p.lse_strides[1] +
              (s.q_row + query) * p.lse_strides[2]] = nothing ? -INFINITY : top + logf(sum);
    }
  }
};
