// What the AVX512-VNNI library offers: decode of int8 caches alone (choose_kernels sees to that).
#pragma once
#include "decode_vnni.hpp"

namespace FA_NAMESPACE {
namespace {

size_t workspace_bytes(const fa_problem &p, const Tiles &tiles) {
  const size_t merge_row = static_cast<size_t>(round_up(p.v_dim, 64)) * sizeof(float);
  return maximum(decode_vnni_bytes(p, tiles), merge_row);
}

}  // namespace
}  // namespace FA_NAMESPACE
