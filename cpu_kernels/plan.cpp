#include "plan.hpp"

namespace fa {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Enough items to keep many cores busy to the end; below this, item rows shrink and keys are split.
constexpr int64_t ENOUGH_ITEMS = 64;
constexpr int64_t MAX_SUB_BLOCKS = 8;
constexpr int64_t PARTIAL_BYTES = 2 << 20;  // of partial results, all splits together

}  // namespace

Tiles plan_tiles(const fa_problem &p, const Kernels &kernels) {
  Tiles tiles = {};
  const int64_t rows = p.q_heads / p.kv_heads * p.q_len, heads = p.batch * p.kv_heads;
  tiles.decode = rows <= kernels.decode_rows;
  if (tiles.decode) {
    tiles.item_rows = rows;
    // 8 KiB of keys: scores are few, and K and V are read in turns short enough to stay in L1.
    const int64_t row_bytes = p.head_dim * (p.kv_dtype == FA_FLOAT32 ? 4 : 2);
    tiles.key_tile = at_most(64, at_least(16, (8 << 10) / row_bytes / 16 * 16));
  } else {
    int64_t blocks = at_most(ceil_div(rows, kernels.sub_rows), MAX_SUB_BLOCKS);
    while (blocks > 1 && heads * ceil_div(rows, kernels.sub_rows * blocks) < ENOUGH_ITEMS) --blocks;
    tiles.item_rows = kernels.sub_rows * blocks;
    tiles.key_tile = 96;
  }
  tiles.key_split = at_least(p.k_len, 1);
  const int64_t items = heads * ceil_div(rows, tiles.item_rows);
  if (items < ENOUGH_ITEMS) {
    const int64_t row_bytes = (p.v_dim + 1) * static_cast<int64_t>(sizeof(float));
    const int64_t affordable = at_least(1, PARTIAL_BYTES / (heads * rows * row_bytes));
    const int64_t splits = at_most(ceil_div(ENOUGH_ITEMS, items), affordable);
    const int64_t shortest = tiles.decode ? 512 : 1024;
    tiles.key_split = at_least(ceil_div(ceil_div(p.k_len, splits), tiles.key_tile) * tiles.key_tile, shortest);
  }
  tiles.key_tile = at_most(tiles.key_tile, at_least(p.k_len, 1));
  return tiles;
}

}  // namespace fa
