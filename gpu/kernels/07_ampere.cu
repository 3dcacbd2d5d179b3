// Ampere and later: m16n8k16, operands by ldmatrix, tiles by the copy engine.
#define FA_ATOM 80
#define FA_EARLY 1
#define FA_ODD_ROWS 1
#include "attention_entry.cuh"
