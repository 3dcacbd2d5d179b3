// Turing: m16n8k8, operands by ldmatrix, tiles on their way in registers.
#define FA_ATOM 75
#include "attention_entry.cuh"
