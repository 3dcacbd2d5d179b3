// All steps, from the bottom up: number, the rest of the file's name, and the idea in a few words.
#pragma once

// clang-format off
#define LADDER_STEPS(X) \
  X(00, naive, "three loops, as the formula is written") \
  X(01, loop_order, "read V in the order it lies in memory") \
  X(02, online_softmax, "one pass over the keys, no row of scores") \
  X(03, vectors, "vectors along head_dim") \
  X(04, tiled, "16 queries share 64 keys in cache") \
  X(05, tiling_mask, "skip hidden tiles, no mask work in full ones") \
  X(06, fast_exp, "exponentials a vector at a time") \
  X(07, queries_in_lanes, "queries side by side, no sums across lanes") \
  X(08, register_tiles, "many independent chains, few loads") \
  X(09, layout, "values copied into the order they are read in") \
  X(10, threads, "every core, the longest item first")
// clang-format on
