// Step 4, Volta: rows in shared memory lie such that no two lanes meet in a bank, and tiles of K and V are on their
// way, in registers, while products run.
#define FA_ATOM 70
#define FA_EARLY 1
#define FA_ODD_ROWS 1
#include "attention_entry.cuh"
