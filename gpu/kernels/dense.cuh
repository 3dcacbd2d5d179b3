// What the kernels on CUDA cores share: any element type, any alignment, scores of one query and one key at a time.
#pragma once
#include "scores.cuh"

template <class T>
DEVICE float element(const char *row, int i) {
  return T::load(at<typename T::Bits>(row, i)[0]);
}

// Rows of q, k, v and out of one head of one sequence.
template <class T>
struct Head {
  const Rows q, k, v, out;

  DEVICE Head(const Problem &p, const Sequence &s, int head)
      : q(p.q, p.q_strides, p.cu_seqlens_q ? 0 : s.batch, head, s.q_row, sizeof(typename T::Bits)),
        k(p.k, p.k_strides, p.cu_seqlens_k ? 0 : s.batch, divide_by_group(p, head), s.k_row, sizeof(typename T::Bits)),
        v(p.v, p.v_strides, p.cu_seqlens_k ? 0 : s.batch, divide_by_group(p, head), s.k_row, sizeof(typename T::Bits)),
        out(p.out, p.out_strides, p.cu_seqlens_q ? 0 : s.batch, head, s.q_row, sizeof(typename T::Bits)) {}
};

// What a finished row's outputs are multiplied by; writes its log-sum-exp. top: natural.
DEVICE float finish_row(const Problem &p, const Sequence &s, int head, int query, float top, float sum, bool writes) {
  const bool nothing = sum == 0;  // no visible key: the largest alone adds 1
  float inverse = nothing ? 0.0f : 1.0f / sum;
  if (p.sinks && !nothing) {
    const float sink = p.sinks[head], higher = fmaxf(top, sink), mine = exp2_fast((top - higher) * LOG2E);
    sum = sum * mine + exp2_fast((sink - higher) * LOG2E);
    inverse = mine / sum;
    top = higher;
  }
  if (p.lse && writes)
    p.lse[(p.cu_seqlens_q ? 0 : s.batch) * p.lse_strides[0] + head * p.lse_strides[1] + (s.q_row + query) * p.lse_strides[2]] =
        nothing ? -INFINITY : top + logf(sum);
  return inverse;
}
