// Step 2: tiles of which nothing is visible are not loaded at all, and full ones are not compared
// (reference/tiling_mask.py). This is the kernel of float32.
#define FA_SKIP_EMPTY 1
#include "cuda_cores.cuh"
