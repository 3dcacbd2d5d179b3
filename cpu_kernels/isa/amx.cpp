// The kernels compiled for one instruction set (see meson.build for its flags); only the table leaves this
// file.
#define FA_NAMESPACE fa_amx
#include "pairs_amx.hpp"
#include "../table_amx.hpp"

namespace fa {
extern const Kernels kernels_amx = {FA_ISA_AMX,
                                    fa_amx::W,
                                    fa_amx::PAIR_SUB_ROWS,
                                    fa_amx::AMX_DECODE_ROWS,
                                    0,
                                    fa_amx::workspace_bytes,
                                    fa_amx::prefill_bf16,
                                    fa_amx::decode_amx,
                                    fa_amx::merge_rows};
}
