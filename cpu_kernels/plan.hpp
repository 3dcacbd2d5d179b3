// How one problem is cut into items: tile sizes and the number of key splits.
//
// Results do not depend on the number of threads, bit for bit: key tiles begin at multiples of key_tile, key
// splits are chosen by the problem alone, and each sub-block of rows is computed by itself, whichever item it
// belongs to. Only how many sub-blocks make an item follows the threads.
#pragma once
#include "kernels.hpp"

namespace fa {

// The kernels of an instruction set, or NULL where this build or this machine lacks it.
const Kernels *kernels_of(int isa);

Tiles plan_tiles(const fa_problem &p, const Kernels &kernels);

}  // namespace fa
