// Decode of more query rows a KV head than decode.hpp takes: large groups of query heads, or a few queries at
// once (mirrors reference/decode.py). With so many rows the work on a key takes as long as reading it. Keys
// and values are widened once for all rows, and no sum goes across all lanes (quads.hpp).
//
// Meanwhile memory is to be at work, too: between the products of one tile, the lines of the next are asked
// for in the order of their addresses.
#pragma once
#include "decode.hpp"
#include "quads.hpp"

namespace FA_NAMESPACE {
namespace {

// At most. More rows fill the sub-blocks of prefill well enough, and there a weight is not repeated.
constexpr int QUAD_VECTORS = W >= 16 ? 11 : W == 8 ? 7 : 12;
constexpr int QUAD_DECODE_ROWS = QUAD_VECTORS * QUAD_ROWS;

struct QuadSpace {
  float *q, *scores, *weights, *output, *tile, *row;
  int64_t vectors, q_quads, v_quads, stride, key_tile;
  size_t bytes;
  QuadSpace(const fa_problem &p, const Tiles &tiles, int64_t rows, void *memory) {
    Arena arena = {static_cast<char *>(memory), 0};
    vectors = (rows + QUAD_ROWS - 1) / QUAD_ROWS;
    q_quads = round_up(p.head_dim, 4 * QUAD) / QUAD;
    v_quads = (p.v_dim + QUAD - 1) / QUAD;
    stride = round_up(maximum(p.head_dim, p.v_dim), 4 * QUAD);
    key_tile = round_up(tiles.key_tile, QUAD);
    q = arena.take<float>(vectors * q_quads * W);
    scores = arena.take<float>(key_tile / QUAD * QUAD_NV * W);
    weights = arena.take<float>(vectors * key_tile * W);
    output = arena.take<float>(vectors * v_quads * W);
    tile = arena.take<float>(key_tile * stride);
    row = arena.take<float>(stride);
    bytes = arena.used;
  }
};

// What is known of each lane, lane i of a quad standing for the i-th of four keys.
struct QuadState {
  alignas(64) float m[QUAD_VECTORS * W];  // the reference maximum; -inf before the first visible key
  alignas(64) float limit[QUAD_VECTORS * W];  // above it the reference moves
  alignas(64) float l[QUAD_VECTORS * W];  // sum of the weights
  alignas(64) float slopes[QUAD_VECTORS * W];
  alignas(64) int32_t first[QUAD_VECTORS * W], last[QUAD_VECTORS * W];  // visible keys, less i
  int64_t positions[QUAD_VECTORS * QUAD_ROWS], mask_rows[QUAD_VECTORS * QUAD_ROWS];
  int64_t max_first, min_last;  // all rows see the keys from one to the other
};

inline F max_of_quad(F a) { return max(max(repeat<0>(a), repeat<1>(a)), max(repeat<2>(a), repeat<3>(a))); }

// Four mask entries of each row of a vector; `keys` of them exist.
inline F quad_mask(const fa_problem &p, const int64_t *rows, int64_t key, int64_t keys) {
  const int64_t step = p.mask_strides[3];
  if (keys >= QUAD && step == 1 && p.mask_kind == FA_MASK_BOOL) {
    uint8_t allowed[W < 16 ? 16 : W] = {};
    for (int r = 0; r < QUAD_ROWS; ++r)
      std::memcpy(allowed + r * QUAD, static_cast<const uint8_t *>(p.mask) + rows[r] + key, QUAD);
    return load_allowed(allowed);
  }
  float terms[W] = {};
  for (int r = 0; r < QUAD_ROWS; ++r)
    for (int64_t i = 0; i < minimum<int64_t>(keys, QUAD); ++i)
      terms[r * QUAD + i] = mask_value(p, rows[r] + (key + i) * step);
  return load(terms);
}

// One item's rows over its keys.
template <class T>
class QuadDecoder {
 public:
  QuadDecoder(const fa_problem &problem, const Sequence &sequence, const Item &item, const Tiles &tiles,
              const QuadSpace &memory, QuadState &lanes)
      : p(problem),
        seq(sequence),
        space(memory),
        state(lanes),
        key_tile(tiles.key_tile),
        k{key_source(p, seq, item.kv_head), key_scales(p, seq, item.kv_head)},
        v{value_source(p, seq, item.kv_head), value_scales(p, seq, item.kv_head)},
        chunks((space.vectors + QUAD_NV - 1) / QUAD_NV) {}

  void run(int64_t begin, int64_t end) {
    constexpr int64_t size = sizeof(T);
    LineWalk k_ahead(k.rows, p.head_dim * size, begin), v_ahead(v.rows, p.v_dim * size, begin);
    for (int64_t key = begin; key < end; key += key_tile) {
      const int64_t keys = minimum(key_tile, end - key), next = minimum(key + 2 * key_tile, end);
      k_ahead.limit(next);
      v_ahead.limit(next);
      const int64_t fours = (keys + QUAD - 1) / QUAD;
      const Rows some_keys = rows_of(k, key, keys, p.head_dim, k_ahead);
      each_chunk([&](auto count, int64_t first) {
        constexpr int NV = decltype(count)::value;
        const int64_t calls = (key_tile + keys_of(NV) - 1) / keys_of(NV),
                      steps = chunks * calls * (space.q_quads / 4);
        quad_scores<NV>(space.q + first * space.q_quads * W, some_keys.at, some_keys.stride, keys,
                        space.q_quads, space.scores, k_ahead, share(k_ahead, steps));
        if (state.max_first > key || state.min_last < key + fours * QUAD - 1 || is_modified(p))
          modify<NV>(first, key, keys);
        weigh<NV>(first, fours);
      });
      const Rows values = rows_of(v, key, keys, p.v_dim, v_ahead);
      each_chunk([&](auto count, int64_t first) {
        constexpr int NV = decltype(count)::value, QUADS = columns_of(NV);
        const int64_t steps = chunks * key_tile * ((space.v_quads + QUADS - 1) / QUADS);
        quad_outputs<NV, QUADS>(space.weights + first * space.key_tile * W, values.at, values.stride, keys,
                                space.v_quads, space.output + first * space.v_quads * W, v_ahead,
                                share(v_ahead, steps));
      });
    }
  }

 private:
  // work(Count<vectors>(), first vector) for chunks of vectors, as even as can be.
  template <class Work>
  void each_chunk(Work work) {
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = space.vectors * i / chunks, past = space.vectors * (i + 1) / chunks;
      with_count<QUAD_NV>(static_cast<int>(past - first), [&](auto count) { work(count, first); });
    }
  }

  // Lines to ask for in each of the steps that a tile takes.
  int64_t share(const LineWalk &ahead, int64_t steps) const {
    return (key_tile * ahead.lines_of_row() + steps - 1) / steps;
  }

  // Float32 rows are copied, too: read in order and whole they come faster from memory, and here pages end.
  Rows rows_of(const KvSource &src, int64_t key, int64_t keys, int64_t dim, LineWalk &ahead) {
    each_row<T>(src, key, keys, [&](int64_t j, const T *from, F scale) {
      ahead.fetch(1);
      float *const to = space.tile + j * space.stride;
      int64_t d = 0;
      for (; d + W <= dim; d += W) store(to + d, scaled<T>(load_kv(from + d), scale));
      if (d < dim) {
        store(to + d, scaled<T>(load_kv(from + d, static_cast<int>(dim - d)), scale));
        d += W;
      }
      for (; d < space.stride; d += W) store(to + d, zero());  // products take 16 elements at a time
    });
    return {space.tile, space.stride};
  }

  // Scores of a chunk's rows: softcap, ALiBi, masks and visibility.
  template <int NV>
  [[gnu::noinline]] void modify(int64_t first, int64_t key, int64_t keys) {
    for (int n = 0; n < NV; ++n) {
      const int64_t lane = (first + n) * W, row = (first + n) * QUAD_ROWS;
      float distance[W];  // from the query to the tile's first four keys
      for (int i = 0; i < W; ++i)
        distance[i] = static_cast<float>(key + i % QUAD - state.positions[row + i / QUAD]);
      for (int64_t j = 0; j < keys; j += QUAD) {
        float *const at = space.scores + (j / QUAD * NV + n) * W;
        F s = load(at);
        if (p.softcap > 0) s = mul(tanh(s), set1(p.softcap));
        if (p.alibi_slopes)
          s = fma(load(state.slopes + lane), add(load(distance), set1(static_cast<float>(j))), s);
        if (p.mask_kind != FA_MASK_NONE)
          s = apply_mask(s, quad_mask(p, state.mask_rows + row, key + j, keys - j));
        store(at, hide(s, static_cast<int32_t>(key + j), state.first + lane, state.last + lane));
      }
    }
  }

  // Scores become weights, each in the four lanes of its row.
  template <int NV>
  [[gnu::noinline]] void weigh(int64_t first, int64_t fours) {
    float *const weights = space.weights + first * space.key_tile * W;
    F top[NV];
    bool grew = false;
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      top[n] = set1(-INFINITY);
      for (int64_t g = 0; g < fours; ++g) top[n] = max(load(space.scores + (g * NV + n) * W), top[n]);
      top[n] = max_of_quad(top[n]);
      grew |= any_gt(top[n], load(state.limit + (first + n) * W));
    }
    if (grew)
      for (int n = 0; n < NV; ++n)
        raise(first + n, top[n], space.output + first * space.v_quads * W + n * W, NV * W);
    FA_UNROLL for (int n = 0; n < NV; ++n) {
      const int64_t lane = (first + n) * W;
      const F m = load(state.m + lane), reference = select_gt(m, set1(-INFINITY), m, zero());
      F sum = load(state.l + lane);
      for (int64_t g = 0; g < fours; ++g) {
        const F weight = exp2(mul(sub(load(space.scores + (g * NV + n) * W), reference), set1(LOG2E)));
        sum = add(sum, weight);
        float *const to = weights + (g * QUAD * NV + n) * W;
        store(to, repeat<0>(weight));
        store(to + NV * W, repeat<1>(weight));
        store(to + 2 * NV * W, repeat<2>(weight));
        store(to + 3 * NV * W, repeat<3>(weight));
      }
      store(state.l + lane, sum);
    }
  }

  // Rows whose scores outgrew their reference take the largest one; what they collected is scaled.
  [[gnu::noinline]] void raise(int64_t vector, F top, float *output, int64_t step) {
    const int64_t lane = vector * W;
    const F m = load(state.m + lane), limit = load(state.limit + lane), l = load(state.l + lane);
    const F factor = select_gt(top, limit, exp2(mul(sub(m, top), set1(LOG2E))), set1(1.0f));
    store(state.m + lane, select_gt(top, limit, top, m));
    store(state.limit + lane, select_gt(top, limit, add(top, set1(LAZY)), limit));
    store(state.l + lane, mul(l, factor));
    for (int64_t c = 0; c < space.v_quads; ++c, output += step) store(output, mul(load(output), factor));
  }

  const fa_problem &p;
  const Sequence &seq;
  const QuadSpace &space;
  QuadState &state;
  const int64_t key_tile;
  const KvSource k, v;
  const int64_t chunks;
};

inline size_t decode_quads_bytes(const fa_problem &p, const Tiles &tiles) {
  return QuadSpace(p, tiles, tiles.item_rows, nullptr).bytes;
}

// Where the rows of one vector begin among `vectors` of them in chunks, `quads` quads each: [chunk][quad][n].
struct QuadPlace {
  int64_t at, step;
  QuadPlace(int64_t vector, int64_t vectors, int64_t quads) {
    const int64_t chunks = (vectors + QUAD_NV - 1) / QUAD_NV;
    int64_t i = 0;
    while (vectors * (i + 1) / chunks <= vector) ++i;
    const int64_t first = vectors * i / chunks, count = vectors * (i + 1) / chunks - first;
    at = (first * quads + vector - first) * W;
    step = count * W;
  }
};

inline void decode_quads(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                         void *workspace) {
  const unsigned denormals = flush_denormals();
  const QuadSpace space(p, tiles, item.rows, workspace);
  QuadState state;
  int64_t begin = item.key_end, end = item.key_begin;
  state.max_first = -1;
  state.min_last = item.key_end;
  std::memset(space.row, 0, static_cast<size_t>(space.stride) * sizeof(float));
  std::memset(space.tile, 0, static_cast<size_t>(space.key_tile * space.stride) * sizeof(float));
  std::memset(space.output, 0, static_cast<size_t>(space.vectors * space.v_quads * W) * sizeof(float));
  for (int64_t r = 0; r < space.vectors * QUAD_ROWS; ++r) {
    const Row row = row_of(p, item, minimum(r, item.rows - 1));  // padding repeats the last row
    const Interval seen = interval_of(p, seq, item, row.query);
    for (int i = 0; i < QUAD; ++i) {
      const int64_t lane = r * QUAD + i;
      state.m[lane] = state.limit[lane] = -INFINITY;
      state.l[lane] = 0.0f;
      state.slopes[lane] = slope_of(p, seq, row.head);
      state.first[lane] = static_cast<int32_t>(seen.first) - i;
      state.last[lane] = static_cast<int32_t>(seen.last) - i;
    }
    state.positions[r] = seq.q_offset + row.query;
    state.mask_rows[r] = p.mask_kind == FA_MASK_NONE ? 0 : mask_offset(p, seq, row);
    state.max_first = maximum(state.max_first, seen.first);
    state.min_last = minimum(state.min_last, seen.last);
    if (seen.first <= seen.last) {
      begin = minimum(begin, seen.first);
      end = maximum(end, seen.last + 1);
    }
    load_query(p, seq, row, space.row, query_factor(p));
    const QuadPlace place(r / QUAD_ROWS, space.vectors, space.q_quads);
    for (int64_t d = 0; d < space.q_quads; ++d)
      std::memcpy(space.q + place.at + d * place.step + r % QUAD_ROWS * QUAD, space.row + d * QUAD,
                  QUAD * sizeof(float));
  }
  with_kv_type(p, [&](auto type) {
    QuadDecoder<typename decltype(type)::Is>(p, seq, item, tiles, space, state).run(begin, end);
  });
  for (int64_t r = 0; r < item.rows; ++r) {
    const float *const l = state.l + r * QUAD;
    const Finish finish =
        finish_state(p, item, row_of(p, item, r).head, state.m[r * QUAD], (l[0] + l[2]) + (l[1] + l[3]));
    const QuadPlace place(r / QUAD_ROWS, space.vectors, space.v_quads);
    for (int64_t c = 0; c < space.v_quads; ++c) {
      const float *const from = space.output + place.at + c * place.step + r % QUAD_ROWS * QUAD;
      for (int i = 0; i < QUAD; ++i) space.row[c * QUAD + i] = finish.empty ? 0.0f : from[i] * finish.factor;
    }
    write_row(p, seq, item, r, space.row, finish.lse);
  }
  restore_denormals(denormals);
}

}  // namespace
}  // namespace FA_NAMESPACE
