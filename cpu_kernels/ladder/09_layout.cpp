// Layout: each tile is copied into the order in which it will be read, once for 4 blocks of queries.
//
// K goes to rows an odd number of cache lines apart, so that the rows of a tile spread over all sets of L1.
// V goes to panels of R columns: a register tile of the output then reads one panel from end to end, every
// byte of each line, in the order that the prefetcher guesses. The panels, too, lie an odd number of lines
// apart: at exactly 4 KiB all of them would begin in the same set, and the copy itself would be slow.
//
// Why it is faster: the copy is one load and one store for an element that 4 blocks use, and it makes both
// products read from L1 what they read from L2 before. It gains where rows are long, D = 128 and more; at
// D = 64 rows are so short that step 08 hardly missed, and the copy can even cost a little.
//
// What binds: the multiply-add units, with the softmax beside them.
#include "item.hpp"
#include "block.hpp"

namespace {

constexpr int64_t LINE = 16;  // floats of a cache line
constexpr int64_t PANEL = KEYS * R + LINE;

struct Tile {
  alignas(64) float k[KEYS * (MAX_DIM + LINE)];
  alignas(64) float v[PANEL * MAX_DIM / R];
  alignas(64) float s[KEYS * QUERIES];
  int64_t stride;  // from one row of k to the next
};

template <int N>
inline void score_rows(const float *qt, const float *k, int64_t stride, int64_t D, float *s) {
  F acc[N][NV] = {};
  for (int64_t d = 0; d < D; ++d) {
    F q[NV];
    for (int n = 0; n < NV; ++n) q[n] = load(qt + (d * NV + n) * W);
    for (int r = 0; r < N; ++r)
      for (int n = 0; n < NV; ++n) acc[r][n] += q[n] * k[r * stride + d];
  }
  for (int r = 0; r < N; ++r)
    for (int n = 0; n < NV; ++n) store(s + (r * NV + n) * W, acc[r][n]);
}

inline void output_columns(const float *s, const float *panel, int64_t keys, float *ot) {
  F acc[R][NV];
  for (int c = 0; c < R; ++c)
    for (int n = 0; n < NV; ++n) acc[c][n] = load(ot + (c * NV + n) * W);
  for (int64_t j = 0; j < keys; ++j) {
    F weight[NV];
    for (int n = 0; n < NV; ++n) weight[n] = load(s + (j * NV + n) * W);
    for (int c = 0; c < R; ++c)
      for (int n = 0; n < NV; ++n) acc[c][n] += weight[n] * panel[j * R + c];
  }
  for (int c = 0; c < R; ++c)
    for (int n = 0; n < NV; ++n) store(ot + (c * NV + n) * W, acc[c][n]);
}

void copy_tile(Tile &t, const float *k, const float *v, int64_t keys, int64_t D) {
  t.stride = (D / LINE | 1) * LINE;
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t d = 0; d < D; d += W) store(t.k + j * t.stride + d, load(k + j * D + d));
    for (int64_t d = 0; d < D; d += R)
      std::memcpy(t.v + d / R * PANEL + j * R, v + j * D + d, R * sizeof(float));
  }
}

void attend(Block &b, Tile &t, int64_t key, int64_t keys, bool full, int64_t D) {
  int64_t j = 0;
  for (; j + R <= keys; j += R) score_rows<R>(b.qt, t.k + j * t.stride, t.stride, D, t.s + j * QUERIES);
  for (; j < keys; ++j) score_rows<1>(b.qt, t.k + j * t.stride, t.stride, D, t.s + j * QUERIES);
  softmax(b, t.s, key, keys, full, D);
  for (int64_t d = 0; d < D; d += R) output_columns(t.s, t.v + d / R * PANEL, keys, b.ot + d * QUERIES);
}

}  // namespace

extern "C" void LADDER_SYMBOL(ladder_item_09)(const ladder_problem &p, int64_t h, int64_t row) {
  const Head head = head_of(p, h);
  const int64_t D = p.head_dim, last = smaller(row + ITEM_ROWS, p.queries);
  Block blocks[ITEM_ROWS / QUERIES];
  Tile tile;
  int64_t count = 0;
  for (; row < last; row += QUERIES) begin(blocks[count++], p, head.q, row, last);
  for (int64_t key = 0; key < visible(p, last - 1); key += KEYS) {
    const int64_t copied = smaller(KEYS, visible(p, last - 1) - key);
    copy_tile(tile, head.k + key * D, head.v + key * D, copied, D);
    for (int64_t n = 0; n < count; ++n) {
      Block &b = blocks[n];
      const int64_t keys = smaller(copied, visible(p, b.row + b.rows - 1) - key);
      if (keys > 0) attend(b, tile, key, keys, key + keys <= visible(p, b.row), D);
    }
  }
  for (int64_t n = 0; n < count; ++n) end(blocks[n], head.out, D);
}

LADDER_STEP(09) {
  for (int64_t h = 0; h < p.heads; ++h)
    for (int64_t row = 0; row < p.queries; row += ITEM_ROWS) LADDER_SYMBOL(ladder_item_09)(p, h, row);
}
