// The kernels compiled for one instruction set (see meson.build for its flags); only the table leaves this
// file.
#define FA_NAMESPACE fa_avx512_bf16
#include "pairs_dot.hpp"
#include "../table_bf16.hpp"

namespace fa {
extern const Kernels kernels_avx512_bf16 = FA_TABLE_BF16(FA_ISA_AVX512_BF16);
}
