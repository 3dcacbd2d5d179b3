// Turing: m16n8k8, operands by ldmatrix, tiles on their way in registers.
#define FA_ATOM 75
#define FA_EARLY 1
#define FA_ODD_ROWS 1
#include "attention_entry.cuh"
