#include "ladder.hpp"
#include "vector.hpp"
#include "exp2.hpp"

namespace {

#if defined(__AVX512F__)
constexpr int R = 8, NV = 3;  // 24 accumulators, 3 queries, 32 registers
#elif defined(__AVX2__)
constexpr int R = 4, NV = 3;  // 12 accumulators, 3 queries, 1 broadcast: 16 registers
#else
constexpr int R = 4, NV = 2;
#endif
constexpr int64_t QUERIES = NV * W, BLOCKS = 4, KEYS = 128, MAX_DIM = 256;
constexpr int64_t LINE = 16;  // floats of a cache line

struct Block {
  alignas(64) float qt[MAX_DIM * QUERIES], ot[MAX_DIM * QUERIES];
  F m[NV], l[NV];
  I seen[NV];  // keys each query sees
  int64_t first, rows;
};

struct Tile {
  alignas(64) float k[KEYS * (MAX_DIM + LINE)];  // rows, an odd number of cache lines apart
  alignas(64) float v[KEYS * MAX_DIM];  // panels of R columns, each with its part of every row
  alignas(64) float s[KEYS * QUERIES];
  int64_t stride;  // of k
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

void softmax(Block &b, float *scores, int64_t key, int64_t keys, bool full, int64_t D) {
  for (int n = 0; n < NV; ++n) {
    F top = b.m[n];
    for (int64_t j = 0; j < keys; ++j) {
      float *at = scores + (j * NV + n) * W;
      if (!full) store(at, static_cast<int32_t>(key + j) < b.seen[n] ? load(at) : all(-INFINITY));
      top = larger(load(at), top);
    }
    const F factor = exp2(b.m[n] - top);
    for (int64_t d = 0; d < D; ++d) {
      float *at = b.ot + (d * NV + n) * W;
      store(at, load(at) * factor);
    }
    F total = b.l[n] * factor;
    for (int64_t j = 0; j < keys; ++j) {
      float *at = scores + (j * NV + n) * W;
      const F weight = exp2(load(at) - top);
      store(at, weight);
      total += weight;
    }
    b.m[n] = top;
    b.l[n] = total;
  }
}

void begin(Block &b, const ladder_problem &p, const float *q) {
  const int64_t D = p.head_dim;
  for (int64_t i = 0; i < QUERIES; ++i) {
    const int64_t query = b.first + smaller(i, b.rows - 1);  // lanes left over repeat the last query
    b.m[i / W][i % W] = -INFINITY;
    b.l[i / W][i % W] = 0;
    b.seen[i / W][i % W] = static_cast<int32_t>(visible(p, query));
    for (int64_t d = 0; d < D; ++d) {
      b.qt[d * QUERIES + i] = q[query * D + d] * p.scale * LOG2E;
      b.ot[d * QUERIES + i] = 0;
    }
  }
}

void copy_tile(Tile &t, const float *k, const float *v, int64_t keys, int64_t D) {
  t.stride = (D / LINE | 1) * LINE;
  for (int64_t j = 0; j < keys; ++j)
    for (int64_t d = 0; d < D; d += R) {
      std::memcpy(t.k + j * t.stride + d, k + j * D + d, R * sizeof(float));
      std::memcpy(t.v + d * keys + j * R, v + j * D + d, R * sizeof(float));
    }
}

void attend(Block &b, Tile &t, int64_t key, int64_t keys, bool full, int64_t D) {
  int64_t j = 0;
  for (; j + R <= keys; j += R) score_rows<R>(b.qt, t.k + j * t.stride, t.stride, D, t.s + j * QUERIES);
  for (; j < keys; ++j) score_rows<1>(b.qt, t.k + j * t.stride, t.stride, D, t.s + j * QUERIES);
  softmax(b, t.s, key, keys, full, D);
  for (int64_t d = 0; d < D; d += R) output_columns(t.s, t.v + d * keys, keys, b.ot + d * QUERIES);
}

}  // namespace

LADDER_STEP(09) {
  const int64_t D = p.head_dim;
  Block blocks[BLOCKS];
  Tile tile;
  for (int64_t h = 0; h < p.heads; ++h) {
    const Head head = head_of(p, h);
    for (int64_t row = 0; row < p.queries; row += BLOCKS * QUERIES) {
      const int64_t rows = smaller(BLOCKS * QUERIES, p.queries - row), count = (rows + QUERIES - 1) / QUERIES;
      for (int64_t n = 0; n < count; ++n) {
        blocks[n].first = row + n * QUERIES;
        blocks[n].rows = smaller(QUERIES, rows - n * QUERIES);
        begin(blocks[n], p, head.q);
      }
      const int64_t end = visible(p, row + rows - 1);
      for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t keys = smaller(KEYS, end - key);
        copy_tile(tile, head.k + key * D, head.v + key * D, keys, D);
        for (int64_t n = 0; n < count; ++n) {
          Block &b = blocks[n];
          if (key < visible(p, b.first + b.rows - 1))
            attend(b, tile, key, keys, key + keys <= visible(p, b.first), D);
        }
      }
      for (int64_t n = 0; n < count; ++n)
        for (int64_t i = 0; i < blocks[n].rows; ++i)
          for (int64_t d = 0; d < D; ++d)
            head.out[(blocks[n].first + i) * D + d] = blocks[n].ot[d * QUERIES + i] / blocks[n].l[i / W][i % W];
    }
  }
}
