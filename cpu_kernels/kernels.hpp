// The boundary between the driver, compiled once, and the kernels, compiled for each instruction set.
// Plain data and one table of functions: nothing here has code.
#pragma once
#include <cstddef>
#include <cstdint>

#include "fastattention.h"
#include "watch.hpp"

namespace fa {

// One sequence of the batch with every default filled in. Positions and key numbers count within the
// sequence.
struct Sequence {
  const char *q, *k, *v; /* first element; a head is head_stride further */
  const float *k_scales, *v_scales; /* likewise; NULL unless k and v are int8 */
  const int32_t *block_table; /* pages of the sequence; NULL: contiguous. k, v and scales begin at page 0 */
  char *out;
  float *lse;
  int64_t q_len, kv_length, q_offset;
  int32_t batch;
};

// A piece of work: `rows` query rows of a KV head against the keys [key_begin, key_end), for each of
// `kv_heads` neighbouring KV heads (one, but for decode over pages: decode_order.hpp). Row r of a KV head is
// query r / group of its r % group-th head: the query heads that read one KV head lie side by side, so each
// tile of K and V is loaded once for all of them, and rows of one item stand at close positions.
struct Item {
  int32_t sequence, kv_head, kv_heads;
  int64_t row_begin, rows;
  int64_t key_begin, key_end;
  float *partial; /* NULL: write out and lse; else kv_heads x rows x (v_dim + 1): normalised output, log of
                     the denominator */
  Watch *watch; /* NULL: nobody can stop the call */
};

constexpr int64_t MAX_SUB_BLOCKS = 32;  // of an item

// Sizes of the tiles of one problem.
struct Tiles {
  int64_t item_rows; /* query rows of an item, a multiple of the sub-block */
  int64_t key_tile;  /* keys loaded (and widened) at a time */
  int64_t key_split; /* keys of an item at most */
  bool decode;       /* few rows: they share each key and value as it is read */
  int64_t item_heads; /* KV heads of an item at most */
  int64_t key_block; /* with several of them: keys of one head before those of the next */
};

struct Kernels {
  int isa;         /* enum fa_isa */
  int lanes;       /* floats in a vector */
  int sub_rows;    /* query rows of a register sub-block */
  int decode_rows; /* up to this many rows of a KV head take the decode kernel */
  int heads_rows; /* up to this many, it takes items of several KV heads; 0: never */
  size_t (*workspace_bytes)(const fa_problem &, const Tiles &);
  void (*prefill)(const fa_problem &, const Sequence &, const Item &, const Tiles &, void *workspace);
  void (*decode)(const fa_problem &, const Sequence &, const Item &, const Tiles &, void *workspace);
  /* Merge the `splits` partial results of the same rows, laid `stride` floats apart, and write out and lse.
   */
  void (*merge)(const fa_problem &, const Sequence &, const Item &, int64_t splits, int64_t stride,
                void *workspace);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512, kernels_avx512_vnni, kernels_avx512_bf16,
    kernels_amx;

}  // namespace fa
