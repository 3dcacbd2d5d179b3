// The kernels compiled for one instruction set (see meson.build for its flags); only the table leaves this
// file.
#define FA_NAMESPACE fa_baseline
#include "../table.hpp"

namespace fa {
extern const Kernels kernels_baseline = FA_TABLE(FA_ISA_BASELINE);
}
