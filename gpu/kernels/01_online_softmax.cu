// Step 1: tiles in shared memory, and one pass: a CTA brings a tile of K and V once for all its query rows, whose
// maxima, sums and outputs are corrected as larger scores appear (reference/online_softmax.py).
#define FA_SKIP_EMPTY 0
#include "cuda_cores.cuh"
