// What the AMX library offers: prefill of bfloat16, decode of bfloat16 and int8 caches (choose_kernels sees
// to that).
#pragma once
#include "decode_amx.hpp"
#include "prefill_bf16.hpp"

namespace FA_NAMESPACE {
namespace {

size_t workspace_bytes(const fa_problem &p, const Tiles &tiles) {
  const size_t merge_row = static_cast<size_t>(round_up(p.v_dim, 64)) * sizeof(float);
  return maximum(tiles.decode ? decode_amx_bytes(p, tiles) : prefill_bf16_bytes(p, tiles), merge_row);
}

}  // namespace
}  // namespace FA_NAMESPACE
