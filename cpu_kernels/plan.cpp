#include "plan.hpp"

namespace fa {
namespace {

int64_t element_size(int32_t dtype) { return dtype == FA_FLOAT32 ? 4 : dtype == FA_INT8 ? 1 : 2; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Below this many pieces of work keys are split too, so that many cores find something to do.
constexpr int64_t ENOUGH_PIECES = 64;
// Likewise of decode, whose items cost nothing beside reading their keys: a core that finishes early leaves
// memory idle until the last one does. With 64 pieces on 15 cores one waits for a fourteenth of its time and
// more; 256 are read 5 to 12 % faster there, and as fast on two.
constexpr int64_t ENOUGH_DECODE_PIECES = 256;
// Likewise where an item is of several KV heads: partial results of all of them cost more than a small item
// saves.
constexpr int64_t ENOUGH_LONG_PIECES = 32;
constexpr int64_t CONTIGUOUS_BYTES = 256 << 10;  // of a page's keys: more is not read faster
constexpr int64_t HEAD_BLOCK_BYTES = 16 << 10;  // of one head's keys, for which its state is brought into L1,
constexpr int64_t HEAD_BLOCK_PAGES = 4;  // but from few pages at a time
constexpr int64_t PARTIAL_BYTES = 2 << 20;  // of partial results, all splits together
constexpr int64_t SHORTEST_SPLIT = 512;  // keys
// Items a thread, so that the last ones to finish do not leave the others idle for long.
constexpr int64_t ITEMS_A_THREAD = 8;

// Sub-blocks of an item share each tile of K and V, which is brought from memory and laid out once for all of
// them. Their Q^T and O^T take at most a third of L2; the tile, the next tile and the scores lie beside them.
int64_t sub_blocks(const fa_problem &p, const Kernels &kernels, int64_t heads, int64_t rows) {
  const int64_t l2 = cache_or_default(2);
  const int64_t block_bytes = kernels.sub_rows * (p.head_dim + p.v_dim) * static_cast<int64_t>(sizeof(float));
  int64_t most = at_most(at_least(l2 / 3 / block_bytes, 1), MAX_SUB_BLOCKS);
  const int64_t all = ceil_div(rows, kernels.sub_rows);
  if (p.num_threads > 1) most = at_least(1, at_most(most, heads * all / (p.num_threads * ITEMS_A_THREAD)));
  return ceil_div(all, ceil_div(all, most));  // as even as can be
}

// Keys of a prefill tile. Its keys and values, as they are laid out, take a sixteenth of L2, which they share
// with the next tile and the rows of the item. Its scores take half of L1, but for kernels that go through a
// tile slice by slice.
int64_t prefill_keys(const fa_problem &p, const Kernels &kernels) {
  const bool pairs = kernels.isa == FA_ISA_AVX512_BF16 || kernels.isa == FA_ISA_AMX;
  const int64_t size = pairs ? 2 : 4, dims = p.head_dim + p.v_dim;
  const int64_t in_l2 = cache_or_default(2) / 16 / (dims * size);
  const int64_t in_l1 = cache_or_default(1) / 2 / (kernels.sub_rows * static_cast<int64_t>(sizeof(float)));
  const int64_t keys = pairs ? in_l2 : at_most(in_l1, in_l2);
  return at_most(512, at_least(64, keys / 32 * 32));
}

int64_t decode_keys(const fa_problem &p, const Kernels &kernels) {
  const int64_t size = element_size(p.kv_dtype);
  if (kernels.isa == FA_ISA_AMX) {
    // Keys and values are laid out as tiles, each of which takes a third of L1.
    const int64_t dim = at_least(p.head_dim, p.v_dim);
    return at_most(256, at_least(64, cache_or_default(1) / 3 / (dim * size) / 64 * 64));
  }
  // Keys and values wait in a third of L1 until they are laid out; what is laid out takes as much.
  if (kernels.isa == FA_ISA_AVX512_VNNI)
    return at_most(256, at_least(64, cache_or_default(1) / 3 / (p.head_dim + p.v_dim) / 64 * 64));
  // 4 KiB of keys: K and V are read in turns so short that what streams from memory is of both. int8 takes
  // more work than time to read, of which there is less in longer tiles.
  const int64_t bytes = p.kv_dtype == FA_INT8 ? 8 << 10 : 4 << 10;
  return at_most(64, at_least(16, bytes / (p.head_dim * size) / 16 * 16));
}

// Decode over pages reads faster what lies one after the other: the rows of neighbouring KV heads in each
// page (decode_order.hpp). Their queries, outputs and states take at most an eighth of L2.
void plan_heads(const fa_problem &p, const Kernels &kernels, Tiles &tiles) {
  tiles.item_heads = 1;
  tiles.key_block = tiles.key_tile;
  if (!tiles.decode || tiles.item_rows > kernels.heads_rows || !p.block_table) return;
  const int64_t row_bytes = p.head_dim * element_size(p.kv_dtype);
  const int64_t head_bytes = tiles.item_rows * (p.head_dim + p.v_dim) * static_cast<int64_t>(sizeof(float));
  const int64_t held = at_least(1, cache_or_default(2) / 8 / head_bytes);
  // As many items as a short cache gives with one head each must not become too few.
  const int64_t parts = p.batch * at_least(1, p.k_len / SHORTEST_SPLIT);
  const int64_t spared = at_least(1, parts * p.kv_heads / ENOUGH_LONG_PIECES);
  const int64_t wanted = ceil_div(CONTIGUOUS_BYTES, p.page_size * row_bytes);
  const int64_t most = at_most(p.kv_heads, at_most(wanted, at_most(held, spared)));
  tiles.item_heads = ceil_div(p.kv_heads, ceil_div(p.kv_heads, most));  // as even as can be
  if (tiles.item_heads == 1) return;
  const int64_t block = at_most(HEAD_BLOCK_BYTES / row_bytes, HEAD_BLOCK_PAGES * p.page_size);
  tiles.key_block = round_up(at_least(tiles.key_tile, block), p.page_size);
}

}  // namespace

int64_t cache_or_default(int level) {
  const int64_t usual[] = {0, 32 << 10, 1 << 20, 8 << 20}, bytes = fa_cache_bytes(level);
  return bytes > 0 ? bytes : usual[level];
}

Tiles plan_tiles(const fa_problem &p, const Kernels &kernels) {
  Tiles tiles = {};
  const int64_t rows = p.q_heads / p.kv_heads * p.q_len, heads = p.batch * p.kv_heads;
  tiles.decode = rows <= kernels.decode_rows;
  if (tiles.decode) {
    tiles.item_rows = rows;
    tiles.key_tile = decode_keys(p, kernels);
  } else {
    tiles.item_rows = kernels.sub_rows * sub_blocks(p, kernels, heads, rows);
    tiles.key_tile = prefill_keys(p, kernels);
  }
  plan_heads(p, kernels, tiles);
  tiles.key_split = at_least(p.k_len, 1);
  const int64_t enough = tiles.item_heads > 1 ? ENOUGH_LONG_PIECES
                         : tiles.decode       ? ENOUGH_DECODE_PIECES
                                              : ENOUGH_PIECES;
  const int64_t pieces = p.batch * ceil_div(p.kv_heads, tiles.item_heads) *
                         (tiles.decode ? 1 : ceil_div(rows, kernels.sub_rows));
  if (pieces < enough) {
    const int64_t row_bytes = (p.v_dim + 1) * static_cast<int64_t>(sizeof(float));
    const int64_t affordable = at_least(1, PARTIAL_BYTES / (heads * rows * row_bytes));
    const int64_t splits = at_most(ceil_div(enough, pieces), affordable);
    tiles.key_split = round_up(at_least(ceil_div(p.k_len, splits), SHORTEST_SPLIT), tiles.key_block);
  }
  tiles.key_tile = at_most(tiles.key_tile, at_least(p.k_len, 1));
  return tiles;
}

}  // namespace fa
