// The kernels compiled for one instruction set (see meson.build for its flags); only the table leaves this
// file.
#define FA_NAMESPACE fa_avx2
#include "../table.hpp"

namespace fa {
extern const Kernels kernels_avx2 = FA_TABLE(FA_ISA_AVX2);
}
