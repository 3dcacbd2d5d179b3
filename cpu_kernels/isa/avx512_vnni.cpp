// The kernels compiled for one instruction set (see meson.build for its flags); only the table leaves this
// file.
#define FA_NAMESPACE fa_avx512_vnni
#include "../table_vnni.hpp"

namespace fa {
extern const Kernels kernels_avx512_vnni = {FA_ISA_AVX512_VNNI,
                                            fa_avx512_vnni::W,
                                            fa_avx512_vnni::ROW_GROUP,
                                            fa_avx512_vnni::VNNI_DECODE_ROWS,
                                            0,
                                            fa_avx512_vnni::workspace_bytes,
                                            nullptr,
                                            fa_avx512_vnni::decode_vnni,
                                            fa_avx512_vnni::merge_rows};
}
