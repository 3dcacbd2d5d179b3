// Volta: the quad-pair atom, with tiles of K and V on their way in registers while products run.
#define FA_ATOM 70
#include "attention_entry.cuh"
