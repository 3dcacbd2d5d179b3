// Step 3, Volta: both products on tensor cores (m8n8k4). Rows lie in shared memory as they come, and each tile is
// waited for.
#define FA_ATOM 70
#define FA_EARLY 0
#define FA_ODD_ROWS 0
#include "attention_entry.cuh"
