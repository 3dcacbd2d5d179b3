// Attention of few query rows over many keys (mirrors reference/decode.py): bound by reading K and V once.
// For up to DECODE_ROWS rows a KV head; with more, decode_quads.hpp takes over.
//
// head_dim stands in the lanes. Scores are dot products, four keys at a time so that four sums are reduced
// together; output columns are accumulated in registers over a tile of keys. All rows of a KV head (its query
// heads, times the few queries) use a tile while it is in L1, so each byte of the cache is read from memory
// once.
#pragma once
#include "decode_order.hpp"
#include "kv_rows.hpp"
#include "modifiers.hpp"
#include "online_softmax.hpp"
#include "tiling.hpp"

namespace FA_NAMESPACE {
namespace {

// Rows are asked for before they are used: by this many bytes where a byte costs least work (one query row,
// float32), further where it costs more. A core's own prefetching starts anew with each page and each turn
// from K to V. Asking much earlier measured slower, as did asking for four rows at once rather than line by
// line in the order of use.
constexpr int64_t AHEAD_BYTES = 1024;
constexpr int64_t LINE = 64;  // bytes of a cache line
constexpr int64_t MEMORY_PAGE = 4096;
constexpr int DECODE_ROWS = W >= 16 ? 10 : 8;  // at most; with more, quads are faster (decode_quads.hpp)
constexpr int ROW_GROUP = DECODE_ACC >= 16 ? 4 : 2;  // rows that share a loaded vector

template <class T>
inline int64_t rows_ahead(int64_t dim, int64_t query_rows) {
  const int64_t size = sizeof(T), bytes = AHEAD_BYTES * minimum<int64_t>(query_rows, 4) * 4 / size;
  return maximum<int64_t>(1, bytes / (dim * size));
}

struct DecodeSpace {
  float *q, *scores, *output, *scales, *tile_output;
  int64_t q_stride, score_stride, output_stride;
  size_t bytes;
  DecodeSpace(const fa_problem &p, const Tiles &tiles, void *memory) {
    Arena arena = {static_cast<char *>(memory), 0};
    q_stride = round_up(p.head_dim, W);
    score_stride = round_up(tiles.key_tile, W);
    output_stride = round_up(p.v_dim, W);
    q = arena.take<float>(tiles.item_heads * tiles.item_rows * q_stride);
    scores = arena.take<float>(tiles.item_rows * score_stride);
    output = arena.take<float>(tiles.item_heads * tiles.item_rows * output_stride);
    scales = arena.take<float>(score_stride);
    tile_output = arena.take<float>(tiles.item_rows * output_stride);
    bytes = arena.used;
  }
};

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls visit(Constant<R>, first row) for groups of up to ROW_GROUP rows that share each loaded vector.
template <class Visit>
inline void each_row_group(int rows, Visit visit) {
  int r = 0;
  for (; r + ROW_GROUP <= rows; r += ROW_GROUP) visit(Constant<ROW_GROUP>{}, r);
  static_assert(ROW_GROUP == 2 || ROW_GROUP == 4, "one case for each remainder");
  if (rows - r == 1) visit(Constant<1>{}, r);
  if constexpr (ROW_GROUP == 4) {
    if (rows - r == 2) visit(Constant<2>{}, r);
    if (rows - r == 3) visit(Constant<3>{}, r);
  }
}

// Which rows a group of query rows asks for while it reads a tile: a core has room for few requests at a
// time, so several groups share them rather than leave memory idle while all but the first compute.
struct SharedRequests {
  int64_t ahead;  // elements from a row to the one asked for meanwhile; 0: none
  int part, mask;  // fours of keys whose number has `part` in these bits

  int64_t at(int64_t j) const { return (j >> 2 & mask) == part ? ahead : 0; }
};

// The only group asks for all.
struct OwnRequests {
  int64_t ahead;
  int64_t at(int64_t) const { return ahead; }
};

// Always inlined: GCC takes a function that only prefetches for one without effect, and drops its calls.
template <class T>
__attribute__((always_inline)) inline void fetch_line(const T *row, int64_t d, int64_t ahead) {
  if (ahead && d % (LINE / sizeof(T)) == 0) __builtin_prefetch(row + d + ahead, 0, 2);
}

// acc[r][j] += <q_r, k_j> over whole vectors of head_dim, for R rows and four keys. One row is bound by
// memory, so lines are touched in the order they lie; several rows by loads, so that each vector of q serves
// four keys.
template <int R, class T>
inline int64_t four_dots(const float *q, int64_t q_stride, const T *k, int64_t stride, int64_t dim,
                         F (&acc)[R][4], int64_t ahead) {
  constexpr int64_t STEP = LINE / static_cast<int64_t>(sizeof(T));  // elements of a line
  int64_t d = 0;
  if constexpr (R == 1) {
    FA_UNROLL for (int j = 0; j < 4; ++j) {
      const T *const row = k + j * stride;
      for (d = 0; d + STEP <= dim; d += STEP) {
        fetch_line(row, d, ahead);
        for (int64_t i = 0; i < STEP; i += W)
          acc[0][j] = fma(load(q + d + i), load_kv(row + d + i), acc[0][j]);
      }
      for (; d + W <= dim; d += W) acc[0][j] = fma(load(q + d), load_kv(row + d), acc[0][j]);
    }
  } else {
    for (; d + W <= dim; d += W) {
      F key[4];
      FA_UNROLL for (int j = 0; j < 4; ++j) {
        fetch_line(k + j * stride, d, ahead);
        key[j] = load_kv(k + j * stride + d);
      }
      FA_UNROLL for (int r = 0; r < R; ++r) {
        const F query = load(q + r * q_stride + d);
        FA_UNROLL for (int j = 0; j < 4; ++j) acc[r][j] = fma(query, key[j], acc[r][j]);
      }
    }
  }
  return d;
}

// s[r][0..3] = <q_r, k_j>.
template <int R, class T>
inline void four_scores(const float *q, int64_t q_stride, const T *k, int64_t stride, int64_t dim, float *s,
                        int64_t s_stride, int64_t ahead) {
  F acc[R][4];
  FA_UNROLL for (int r = 0; r < R; ++r) { FA_UNROLL for (int j = 0; j < 4; ++j) acc[r][j] = zero(); }
  const int64_t d = four_dots<R>(q, q_stride, k, stride, dim, acc, ahead);
  if (d < dim) FA_UNROLL for (int j = 0; j < 4; ++j) {
      const F key = load_kv(k + j * stride + d, static_cast<int>(dim - d));
      FA_UNROLL for (int r = 0; r < R; ++r) acc[r][j] = fma(load(q + r * q_stride + d), key, acc[r][j]);
    }
  FA_UNROLL for (int r = 0; r < R; ++r)
      reduce_add4(s + r * s_stride, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}

template <class T>
inline float one_score(const float *q, const T *k, int64_t dim) {
  F acc = zero();
  int64_t d = 0;
  for (; d + W <= dim; d += W) acc = fma(load(q + d), load_kv(k + d), acc);
  if (d < dim) acc = fma(load(q + d), load_kv(k + d, static_cast<int>(dim - d)), acc);
  return reduce_add(acc);
}

template <int R, class T, class Requests>
inline void score_group(const DecodeSpace &space, int64_t row, int64_t first, const T *k, int64_t stride,
                        int64_t keys, int64_t dim, Requests requests) {
  const float *q = space.q + row * space.q_stride;
  float *s = space.scores + row * space.score_stride + first;
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4)
    four_scores<R>(q, space.q_stride, k + j * stride, stride, dim, s + j, space.score_stride,
                   requests.at(first + j));
  for (; j < keys; ++j)
    for (int r = 0; r < R; ++r)
      s[r * space.score_stride + j] = one_score(q + r * space.q_stride, k + j * stride, dim);
}

// out[r][0 .. C W) += sum over keys of weight[r][j] * v[j][0 .. C W); with !WHOLE, C is 1 and n elements
// wide. AFRESH, the sum begins at zero; else it goes on from what is there. Always inlined, as output_rows:
// left to itself GCC calls them for each tile, which costs up to a tenth of the time of 16-bit caches.
template <int R, int C, bool WHOLE, bool AFRESH, class T, class Requests>
__attribute__((always_inline)) inline void output_group(const float *weights, int64_t w_stride, const T *v,
                                                        int64_t stride, int64_t keys, float *out,
                                                        int64_t out_stride, int n, int64_t first,
                                                        Requests requests) {
  F acc[R][C];
  FA_UNROLL for (int r = 0; r < R; ++r) {
    FA_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = AFRESH ? zero() : load(out + r * out_stride + c * W);
  }
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t ahead = requests.at(first + j);
    F value[C];
    FA_UNROLL for (int c = 0; c < C; ++c) {
      const T *at = v + j * stride + c * W;
      if (c * W % (LINE / sizeof(T)) == 0) fetch_line(at, 0, ahead);
      value[c] = WHOLE ? load_kv(at) : load_kv(at, n);
    }
    FA_UNROLL for (int r = 0; r < R; ++r) {
      const F weight = set1(weights[r * w_stride + j]);
      FA_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = fma(weight, value[c], acc[r][c]);
    }
  }
  FA_UNROLL for (int r = 0; r < R; ++r) {
    FA_UNROLL for (int c = 0; c < C; ++c) {
      float *const at = out + r * out_stride + c * W;
      store(at, AFRESH ? add(load(at), acc[r][c]) : acc[r][c]);
    }
  }
}

template <int R, bool AFRESH, class T, class Requests>
__attribute__((always_inline)) inline void output_rows(const DecodeSpace &space, float *sums, int64_t row,
                                                       int64_t first, const T *v, int64_t stride,
                                                       int64_t keys, int64_t dim, Requests requests) {
  const float *weights = space.scores + row * space.score_stride + first;
  float *out = sums + row * space.output_stride;
  int64_t c = 0;
  const auto columns = [&](auto count, auto whole) {
    output_group<R, decltype(count)::value, decltype(whole)::value != 0, AFRESH>(
        weights, space.score_stride, v + c, stride, keys, out + c, space.output_stride,
        static_cast<int>(dim - c), first, requests);
    c += decltype(count)::value * W;
  };
  if constexpr (R * 8 <= DECODE_ACC)
    while (c + 8 * W <= dim) columns(Constant<8>{}, Constant<1>{});
  if constexpr (R * 4 <= DECODE_ACC)
    while (c + 4 * W <= dim) columns(Constant<4>{}, Constant<1>{});
  while (c + 2 * W <= dim) columns(Constant<2>{}, Constant<1>{});
  while (c + W <= dim) columns(Constant<1>{}, Constant<1>{});
  if (c < dim) columns(Constant<1>{}, Constant<0>{});
}

// One row's scores become weights; returns by how much its accumulated output must be multiplied.
struct RowState {
  float m, l;  // m is -inf before the first visible key
  Row where;
  Interval seen;
};

inline void modify_row(const fa_problem &p, const Sequence &seq, const RowState &row, int64_t key,
                       int64_t keys, float *s) {
  const int64_t padded = round_up(keys, W);
  for (int64_t j = keys; j < padded; ++j) s[j] = -INFINITY;
  if (p.softcap > 0) {
    const F cap = set1(p.softcap);
    for (int64_t j = 0; j < keys; j += W) store(s + j, mul(tanh(load(s + j)), cap));
  }
  if (p.alibi_slopes) {
    const float slope = slope_of(p, seq, row.where.head);
    const int64_t distance = key - (seq.q_offset + row.where.query);
    for (int64_t j = 0; j < keys; ++j) s[j] += slope * static_cast<float>(distance + j);
  }
  if (p.mask_kind != FA_MASK_NONE) {
    const int64_t base = mask_offset(p, seq, row.where);
    for (int64_t j = 0; j < keys; j += W) {
      const int64_t n = minimum<int64_t>(W, keys - j);
      store(s + j, apply_mask(load(s + j), mask_values(p, base + (key + j) * p.mask_strides[3], n)));
    }
  }
  for (int64_t j = key; j < minimum(row.seen.first, key + keys); ++j) s[j - key] = -INFINITY;
  for (int64_t j = maximum(row.seen.last + 1, key); j < key + keys; ++j) s[j - key] = -INFINITY;
  for (int64_t j = keys; j < padded; ++j) s[j] = -INFINITY;
}

// s *= scales, over whole vectors.
inline void multiply_row(const float *scales, int64_t keys, float *s) {
  for (int64_t j = 0; j < keys; j += W) store(s + j, mul(load(s + j), load(scales + j)));
}

inline float weigh_row(RowState &row, int64_t keys, float *s) {
  F top = set1(-INFINITY);
  for (int64_t j = 0; j < keys; j += W) top = max(load(s + j), top);
  const float highest = reduce_max(top);
  float factor = 1.0f;
  if (highest > (row.m == -INFINITY ? row.m : row.m + LAZY)) {
    factor = row.m == -INFINITY ? 1.0f : static_cast<float>(std::exp(static_cast<double>(row.m) - highest));
    row.m = highest;
  }
  const F reference = set1(row.m == -INFINITY ? 0.0f : row.m);
  F sum = zero();
  for (int64_t j = 0; j < keys; j += W) {
    const F weight = exp2(mul(sub(load(s + j), reference), set1(LOG2E)));
    sum = add(sum, weight);
    store(s + j, weight);
  }
  row.l = row.l * factor + reduce_add(sum);
  return factor;
}

// A piece of a tile whose rows lie one step apart: n of its keys from j on, all but in one page.
template <class T>
struct Run {
  const T *at;
  int64_t j, n;
  int64_t ahead;  // elements from a row to the one that should be asked for meanwhile; 0: none
};

// Calls visit(Run) for the pieces of the tile [key, key + keys) of a turn. What is read `rows` rows later is
// asked for meanwhile.
template <class T, class Visit>
inline void each_run(const KvRows &src, const Turn &turn, int64_t key, int64_t keys, int64_t rows,
                     Visit visit) {
  constexpr int64_t size = sizeof(T);
  if (!src.table) {
    // Past the last tile this asks for the beginning of the next piece, or for a few lines in vain.
    visit(Run<T>{reinterpret_cast<const T *>(src.at(key)), 0, keys, rows * src.row_bytes / size});
    return;
  }
  // Among the pages of one head twice as far, because hardware that reads ahead stops where the page ends.
  // With several heads it goes on; then at least one page of virtual memory, where it stops as well. In whole
  // groups of four keys, so that pieces are such groups, too.
  const int64_t further =
      round_up(turn.heads == 1 ? 2 * rows : maximum(rows, MEMORY_PAGE / src.row_bytes), 4);
  for (int64_t j = 0; j < keys;) {
    const char *const at = src.at(key + j);
    int64_t n = src.run(key + j, keys - j), ahead = 0;
    if (const Turn::Place next = turn.after(key + j, further); next.rows > 0) {
      n = src.run(next.key,
                  minimum(n, next.rows));  // a piece ends where what it asks for enters another page
      ahead = (src.at(next.key) + next.head * src.head_bytes - at) / size;
    }
    visit(Run<T>{reinterpret_cast<const T *>(at), j, n, ahead});
    j += n;
  }
}

// The rows of one KV head (see decode_order.hpp). SHARED: they are more than one group.
template <class T, bool SHARED>
struct RowDecoder {
  using Space = DecodeSpace;
  const fa_problem &p;
  const Sequence &seq;
  const Item item;
  const Tiles &tiles;
  Space space;
  const KvRows k, v, k_scales, v_scales;
  const int rows;
  Keys visible;
  RowState state[DECODE_ROWS];

  RowDecoder(const fa_problem &problem, const Sequence &sequence, const Item &of_head, const Tiles &sizes,
             const Space &memory, int64_t head)
      : p(problem),
        seq(sequence),
        item(of_head),
        tiles(sizes),
        space(memory),
        k(key_source(p, seq, item.kv_head)),
        v(value_source(p, seq, item.kv_head)),
        k_scales(key_scales(p, seq, item.kv_head)),
        v_scales(value_scales(p, seq, item.kv_head)),
        rows(static_cast<int>(item.rows)),
        visible{item.key_end, item.key_begin} {
    space.q += head * tiles.item_rows * space.q_stride;
    space.output += head * tiles.item_rows * space.output_stride;
    std::memset(space.q, 0, static_cast<size_t>(rows * space.q_stride) * sizeof(float));
    std::memset(space.output, 0, static_cast<size_t>(rows * space.output_stride) * sizeof(float));
    for (int r = 0; r < rows; ++r) {
      const Row row = row_of(p, item, r);
      state[r] = {-INFINITY, 0.0f, row, interval_of(p, seq, item, row.query)};
      load_query(p, seq, row, space.q + r * space.q_stride, query_factor(p));
      if (state[r].seen.first <= state[r].seen.last) {
        visible.begin = minimum(visible.begin, state[r].seen.first);
        visible.end = maximum(visible.end, state[r].seen.last + 1);
      }
    }
  }

  Keys seen() const { return visible; }

  // Groups of rows, two or four of them, ask in turn for the rows of the next tile.
  auto requests_of(int r, int64_t ahead) const {
    if constexpr (SHARED) {
      const int sharing = rows > 3 * ROW_GROUP ? 4 : 2;
      return r < sharing * ROW_GROUP ? SharedRequests{ahead, r / ROW_GROUP, sharing - 1}
                                     : SharedRequests{0, 0, 0};
    } else {
      (void)r;
      return OwnRequests{ahead};
    }
  }

  void run(const Turn &turn) {
    constexpr int64_t size = sizeof(T);
    const int64_t k_ahead = SHARED ? tiles.key_tile : rows_ahead<T>(p.head_dim, rows);
    const int64_t v_ahead = SHARED ? tiles.key_tile : rows_ahead<T>(p.v_dim, rows);
    for (int64_t key = turn.key; key < turn.past; key += tiles.key_tile) {
      const int64_t keys = minimum(tiles.key_tile, turn.past - key);
      each_run<T>(k, turn, key, keys, k_ahead, [&](const Run<T> &run) {
        each_row_group(rows, [&](auto group, int r) {
          score_group<decltype(group)::value>(space, r, run.j, run.at, k.row_bytes / size, run.n, p.head_dim,
                                              requests_of(r, run.ahead));
        });
      });
      if constexpr (HAS_SCALES<T>) copy_scales(k_scales, key, keys, space.scales);
      for (int r = 0; r < rows; ++r) {
        float *const s = space.scores + r * space.score_stride;
        if constexpr (HAS_SCALES<T>) multiply_row(space.scales, keys, s);
        modify_row(p, seq, state[r], key, keys, s);
        const float factor = weigh_row(state[r], keys, s);
        if (factor != 1.0f)
          for (int64_t c = 0; c < space.output_stride; ++c)
            space.output[r * space.output_stride + c] *= factor;
      }
      if constexpr (HAS_SCALES<T>) {
        copy_scales(v_scales, key, keys, space.scales);
        for (int r = 0; r < rows; ++r)
          multiply_row(space.scales, keys, space.scores + r * space.score_stride);
      }
      add_values(turn, key, keys, v_ahead);
    }
  }

  // A tile's sum begins at zero (output_columns in products.hpp says why), but for 16-bit values: their short
  // tiles are bound by arithmetic, of which that would be a twentieth more, and an output of 16 bits would
  // not show it. Of pages, a tile may be several pieces, which must add up to the same bits.
  void add_values(const Turn &turn, int64_t key, int64_t keys, int64_t v_ahead) {
    if constexpr (sizeof(T) == 2) return multiply_values<false>(space.output, turn, key, keys, v_ahead);
    if (!v.table) return multiply_values<true>(space.output, turn, key, keys, v_ahead);
    const int64_t count = rows * space.output_stride;
    std::memset(space.tile_output, 0, static_cast<size_t>(count) * sizeof(float));
    multiply_values<false>(space.tile_output, turn, key, keys, v_ahead);
    for (int64_t i = 0; i < count; i += W)
      store(space.output + i, add(load(space.output + i), load(space.tile_output + i)));
  }

  template <bool AFRESH>
  __attribute__((always_inline)) inline void multiply_values(float *sums, const Turn &turn, int64_t key,
                                                             int64_t keys, int64_t v_ahead) {
    each_run<T>(v, turn, key, keys, v_ahead, [&](const Run<T> &run) {
      each_row_group(rows, [&](auto group, int r) {
        output_rows<decltype(group)::value, AFRESH>(space, sums, r, run.j, run.at,
                                                    v.row_bytes / static_cast<int64_t>(sizeof(T)), run.n,
                                                    p.v_dim, requests_of(r, run.ahead));
      });
    });
  }

  void finish() {
    for (int r = 0; r < rows; ++r) {
      float *const row = space.output + r * space.output_stride;
      const Finish finish = finish_state(p, item, state[r].where.head, state[r].m, state[r].l);
      for (int64_t c = 0; c < p.v_dim; ++c) row[c] = finish.empty ? 0.0f : row[c] * finish.factor;
      write_row(p, seq, item, r, row, finish.lse);
    }
  }
};

inline size_t decode_bytes(const fa_problem &p, const Tiles &tiles) {
  return decode_heads_bytes<RowDecoder<float, true>>(p, tiles);  // as large as any other type's
}

inline void decode(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                   void *workspace) {
  const unsigned denormals = flush_denormals();
  with_kv_type(p, [&](auto type) {
    using T = typename decltype(type)::Is;
    if (item.rows > ROW_GROUP)
      decode_heads<RowDecoder<T, true>>(p, seq, item, tiles, workspace);
    else
      decode_heads<RowDecoder<T, false>>(p, seq, item, tiles, workspace);
  });
  restore_denormals(denormals);
}

}  // namespace
}  // namespace FA_NAMESPACE
