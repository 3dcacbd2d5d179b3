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

// Whether this process may use tiles of bfloat16 and int8 (AMX); asks the system for them.
bool has_amx();

// Those that run a problem which asks for `p.isa`: of that set, or of an older one that serves it better.
// NULL where this machine lacks it.
const Kernels *choose_kernels(const fa_problem &p);

// Size of a cache in bytes, or what most processors have where the system does not say.
int64_t cache_or_default(int level);

Tiles plan_tiles(const fa_problem &p, const Kernels &kernels);

}  // namespace fa
