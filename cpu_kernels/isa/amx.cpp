// The kernels compiled for one instruction set (see meson.build for its flags); only the table leaves this
// file.
#define FA_NAMESPACE fa_amx
#include "pairs_amx.hpp"
#include "../table_bf16.hpp"

namespace fa {
extern const Kernels kernels_amx = FA_TABLE_BF16(FA_ISA_AMX);
}
