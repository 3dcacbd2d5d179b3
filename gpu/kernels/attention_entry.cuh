// The entry of the tensor-core kernels. The including file defines FA_ATOM (70, 75, 80), FA_EARLY (loads are issued
// before the product they hide behind) and FA_ODD_ROWS (rows in shared memory lie conflict-free); the launcher
// defines
//   FA_ELEMENT     Half, or Bfloat from sm_80 on
//   FA_HEAD_DIM, FA_V_DIM   rounded up to a multiple of 16
//   FA_WARPS, FA_WARP_ROWS  of a CTA, which takes FA_WARPS * FA_WARP_ROWS query rows
//   FA_ABREAST     Volta: quad-pairs side by side, 1 or 2; with 2, FA_V_DIM is a multiple of 32
//   FA_KEYS        of a tile, a multiple of 16
//   FA_MODIFIED    1: softcap, ALiBi, a mask, or a scale that is not positive
//   FA_ALIGNED     1: rows of q, k, v begin at multiples of 16 bytes, and their lengths are multiples of 8 elements
//   FA_ASYNC       1: loads by the copy engine (sm_80, needs FA_ALIGNED)
//   FA_MIN_BLOCKS  CTAs that are to fit on an SM
// Grid: row blocks, query heads, sequences. Block: 32 * FA_WARPS. Dynamic shared memory: Kernel::SHARED_BYTES.
#pragma once
#include "attention.cuh"
#if FA_ATOM == 70
#include "atom_volta.cuh"
typedef VoltaAtom<FA_ELEMENT, FA_WARP_ROWS, FA_ABREAST> Atom;
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
