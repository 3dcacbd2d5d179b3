// Layout: the values of a tile are copied into the order in which they will be read, once for 4 blocks of
// queries: panels of R columns, each with its part of every row.
//
// Why it is faster: a register tile of the output reads one panel from end to end, every byte of each cache
// line, one line after the other, as the prefetcher guesses; step 08 took a part of one line from each row,
// and rows whose distance is a power of two crowd into few sets of L1. The copy is a load and a store for R
// numbers, which 4 blocks use. Panels lie an odd number of lines apart: at exactly 4 KiB all would begin in
// the same set, and the copy would crowd in its turn.
//
// Not every copy pays. K was tried too, in rows an odd number of lines apart: no faster, since a register
// tile of scores reads only R rows at a time, each from end to end.
//
// What binds: the multiply-add units, with the softmax beside them. Further up it is details: fewer
// instructions in the softmax, the next tile fetched ahead, tiles sized for the caches.
#include "item.hpp"
#include "block.hpp"
#include "register_tile.hpp"

namespace {

constexpr int64_t LINE = 16;  // floats of a cache line
constexpr int64_t PANEL = KEYS * R + LINE;

void copy_values(const float *v, int64_t keys, int64_t D, float *panels) {
  for (int64_t j = 0; j < keys; ++j)
    for (int64_t d = 0; d < D; d += R)
      std::memcpy(panels + d / R * PANEL + j * R, v + j * D + d, R * sizeof(float));
}

void attend(Block &b, const float *k, const float *panels, int64_t key, int64_t keys, bool full, int64_t D,
            float *s) {
  int64_t j = 0;
  for (; j + R <= keys; j += R) score_rows<R>(b.qt, k + j * D, D, s + j * QUERIES);
  for (; j < keys; ++j) score_rows<1>(b.qt, k + j * D, D, s + j * QUERIES);
  softmax(b, s, key, keys, full, D);
  for (int64_t d = 0; d < D; d += R) output_columns(s, panels + d / R * PANEL, R, keys, b.ot + d * QUERIES);
}

}  // namespace

extern "C" void LADDER_SYMBOL(ladder_item_09)(const ladder_problem &p, int64_t h, int64_t row) {
  const Head head = head_of(p, h);
  const int64_t D = p.head_dim, last = smaller(row + ITEM_ROWS, p.queries);
  Block blocks[ITEM_ROWS / QUERIES];
  alignas(64) float s[KEYS * QUERIES], panels[PANEL * MAX_DIM / R];
  int64_t count = 0;
  for (; row < last; row += QUERIES) begin(blocks[count++], p, head.q, row, last);
  for (int64_t key = 0; key < visible(p, last - 1); key += KEYS) {
    const int64_t copied = smaller(KEYS, visible(p, last - 1) - key);
    copy_values(head.v + key * D, copied, D, panels);
    for (int64_t n = 0; n < count; ++n) {
      Block &b = blocks[n];
      const int64_t keys = smaller(copied, visible(p, b.row + b.rows - 1) - key);
      if (keys > 0) attend(b, head.k + key * D, panels, key, keys, key + keys <= visible(p, b.row), D, s);
    }
  }
  for (int64_t n = 0; n < count; ++n) end(blocks[n], head.out, D);
}

LADDER_STEP(09) {
  for (int64_t h = 0; h < p.heads; ++h)
    for (int64_t row = 0; row < p.queries; row += ITEM_ROWS) LADDER_SYMBOL(ladder_item_09)(p, h, row);
}
