// The one list of what an instruction set's library offers.
#pragma once
#include "decode_quads.hpp"
#include "prefill.hpp"

namespace FA_NAMESPACE {
namespace {

size_t workspace_bytes(const fa_problem &p, const Tiles &tiles) {
  const size_t bytes = !tiles.decode                    ? prefill_bytes(p, tiles)
                       : tiles.item_rows <= DECODE_ROWS ? decode_bytes(p, tiles)
                                                        : decode_quads_bytes(p, tiles);
  const size_t merge_row = static_cast<size_t>(round_up(p.v_dim, 64)) * sizeof(float);
  return bytes > merge_row ? bytes : merge_row;
}

inline void decode_rows(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                        void *workspace) {
  (tiles.item_rows <= DECODE_ROWS ? decode : decode_quads)(p, seq, item, tiles, workspace);
}

}  // namespace
}  // namespace FA_NAMESPACE

#define FA_TABLE(isa)              \
  {isa,                            \
   FA_NAMESPACE::W,                \
   FA_NAMESPACE::SUB_ROWS,         \
   FA_NAMESPACE::QUAD_DECODE_ROWS, \
   FA_NAMESPACE::DECODE_ROWS,      \
   FA_NAMESPACE::workspace_bytes,  \
   FA_NAMESPACE::prefill,          \
   FA_NAMESPACE::decode_rows,      \
   FA_NAMESPACE::merge_rows}
