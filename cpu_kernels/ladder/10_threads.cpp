// Threads: the items of step 09 are independent of one another, so every core takes one after the other.
//
// Why it is faster: there are more cores. Two details make it scale. Items are handed out one by one
// (`dynamic`), so that a core which the system takes away for a while, or which runs slower, holds nobody up.
// And the longest come first: under causal visibility the last rows see the most keys, and a long item begun
// last would leave the other cores idle at the end.
//
// What binds: each core's multiply-add units. What the cores share, the L3 cache and memory, sees only the
// tiles.
#include "item.hpp"

LADDER_STEP(10) {
  const int64_t blocks = (p.queries + ITEM_ROWS - 1) / ITEM_ROWS, items = p.heads * blocks;
#pragma omp parallel for schedule(dynamic) num_threads(p.threads)
  for (int64_t n = 0; n < items; ++n)
    LADDER_SYMBOL(ladder_item_09)(p, n % p.heads, (blocks - 1 - n / p.heads) * ITEM_ROWS);
}
