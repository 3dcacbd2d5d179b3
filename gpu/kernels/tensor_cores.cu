// Attention on tensor cores. The launcher defines: FA_ATOM (70, 75, 80), FA_ELEMENT (Half, Bfloat), FA_HEAD_DIM, FA_V_DIM (rounded
// up to 16), FA_WARPS, FA_WARP_ROWS, FA_KEYS, FA_MODIFIED, FA_ALIGNED, FA_MIN_BLOCKS, and FA_ASYNC where the loads may go through the
// copy engine.
#include "attention.cuh"
#if FA_ATOM == 70
#include "atom_volta.cuh"
typedef VoltaAtom<FA_ELEMENT, FA_WARP_ROWS> Atom;
#else
#include "atom_mma16.cuh"
#if FA_ATOM == 75
typedef WideAtom<TuringMma, FA_ELEMENT, FA_WARP_ROWS> Atom;
#else
typedef WideAtom<AmpereMma, FA_ELEMENT, FA_WARP_ROWS> Atom;
#endif
#endif

typedef Attention<Atom, FA_ELEMENT, FA_HEAD_DIM, FA_V_DIM, FA_WARPS, FA_KEYS, FA_MODIFIED != 0> Kernel;

extern "C" __global__ void __launch_bounds__(Kernel::THREADS, FA_MIN_BLOCKS) attention(const Problem p) {
  extern __shared__ uint4 shared[];
  Kernel::run(p, shared);
}
