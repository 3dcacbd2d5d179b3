// One attention problem, as the launcher passes it by value: the same fields, in meaning and name, as the CPU
// kernels' fa_problem. gpu/problem.py holds the same list for NumPy; a test compares sizes and offsets.
#pragma once
#include "base.cuh"

enum MaskKind { MASK_NONE, MASK_BOOL, MASK_FLOAT32 };

struct Problem {
  // Sizes. With cu_seqlens, batch is the number of sequences, q_len and k_len the longest of them.
  i64 batch, q_heads, kv_heads, q_len, k_len, head_dim, v_dim;

  // q (B, Hq, Sq, D); k (B, Hkv, Sk, D); v (B, Hkv, Sk, Dv); out (B, Hq, Sq, Dv); lse (B, Hq, Sq) or null.
  const void *q, *k, *v;
  void *out;
  float *lse;
  i64 q_strides[3], k_strides[3], v_strides[3], out_strides[3], lse_strides[3];  // batch, head, row

  const float *k_scales, *v_scales;  // of int8 keys and values, one a token and KV head
  i64 k_scale_strides[3], v_scale_strides[3];

  const int *block_table;  // null: contiguous; else key j lies in page block_table[b][j / page_size]
  i64 block_table_stride, page_size;

  const i64 *cu_seqlens_q, *cu_seqlens_k;
  const i64 *kv_lengths;  // (B) or null: all k_len keys
  const i64 *q_offsets;  // (B) or null: kv_length - q_len
  i64 window_left, window_right;  // -1: unbounded; causal is window_right = 0

  const void *mask;  // broadcast axes have stride 0
  i64 mask_strides[4];  // batch, head, query, key
  i64 mask_kind;

  const float *alibi_slopes;  // per head or null
  i64 alibi_batch_stride;
  const float *sinks;  // (Hq) or null

  float *parts;  // decode: partial results of splits, else null
  i64 splits, key_split;  // parts that a row's keys are split into, and keys of a part

  float scale, softcap;  // softcap 0: none

  // Query heads of a KV head, and what divides by them and by page_size (gpu/problem.py, `divider`): a division is
  // dozens of instructions, and each kernel begins with some.
  int group, group_shift, page_shift;
  u32 group_multiplier, page_multiplier;
};

// n / p.group and n / p.page_size, for n from 0 up.
DEVICE int divide(int n, i64 by, u32 multiplier, int shift) {
  return by == 1 ? n : static_cast<int>(__umulhi(static_cast<u32>(n), multiplier) >> shift);
}
DEVICE int divide_by_group(const Problem &p, int n) { return divide(n, p.group, p.group_multiplier, p.group_shift); }
DEVICE int divide_by_page(const Problem &p, int n) { return divide(n, p.page_size, p.page_multiplier, p.page_shift); }

// One sequence of the batch with every default filled in. Positions and key numbers count within it.
struct Sequence {
  i64 batch, q_row, k_row, q_len, kv_length, q_offset;

  DEVICE Sequence(const Problem &p, i64 b) : batch(b), q_row(0), k_row(0), q_len(p.q_len), kv_length(p.k_len) {
    if (p.cu_seqlens_q) {
      q_row = p.cu_seqlens_q[b];
      k_row = p.cu_seqlens_k[b];
      q_len = p.cu_seqlens_q[b + 1] - q_row;
      kv_length = p.cu_seqlens_k[b + 1] - k_row;
    }
    if (p.kv_lengths) kv_length = p.kv_lengths[b];
    q_offset = p.q_offsets ? p.q_offsets[b] : kv_length - q_len;
  }
};

// Where the rows of one head of one sequence lie.
struct Rows {
  const char *first;
  i64 stride;  // bytes

  DEVICE Rows(const void *base, const i64 (&strides)[3], i64 batch, i64 head, i64 row, int size)
      : first(static_cast<const char *>(base) + (batch * strides[0] + head * strides[1] + row * strides[2]) * size),
        stride(strides[2] * size) {}
  DEVICE const char *row(i64 i) const { return first + i * stride; }
};
