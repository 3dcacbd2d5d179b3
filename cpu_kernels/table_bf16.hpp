// What a library offers whose products take pairs of bfloat16: prefill of bfloat16 alone (choose_kernels sees
// to that).
#pragma once
#include "decode.hpp"
#include "prefill_bf16.hpp"

namespace FA_NAMESPACE {
namespace {

size_t workspace_bytes(const fa_problem &p, const Tiles &tiles) {
  const size_t merge_row = static_cast<size_t>(round_up(p.v_dim, 64)) * sizeof(float);
  return maximum(prefill_bf16_bytes(p, tiles), merge_row);
}

}  // namespace
}  // namespace FA_NAMESPACE

#define FA_TABLE_BF16(isa)        \
  {isa,                           \
   FA_NAMESPACE::W,               \
   FA_NAMESPACE::PAIR_SUB_ROWS,   \
   0,                             \
   0,                             \
   FA_NAMESPACE::workspace_bytes, \
   FA_NAMESPACE::prefill_bf16,    \
   nullptr,                       \
   FA_NAMESPACE::merge_rows}
