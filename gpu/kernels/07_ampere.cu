// Ampere and later: m16n8k16, tiles by the copy engine.
#define FA_ATOM 80
#include "attention_entry.cuh"
