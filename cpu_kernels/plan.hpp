// How one problem is cut into items: tile sizes and the number of key splits.
// Nothing here depends on the number of threads, so results do not either, bit for bit.
#pragma once
#include "kernels.hpp"

namespace fa {

// The kernels of an instruction set, or NULL where this build or this machine lacks it.
const Kernels *kernels_of(int isa);

Tiles plan_tiles(const fa_problem &p, const Kernels &kernels);

}  // namespace fa
