// Bytes without gaps from one place to another, by threads instead of a copy engine: the few kilobytes that go between
// the GPU's memory and registered host memory within a token, which threads read and write over the bus like any other.
//
// A copy engine takes copies in the order in which they were queued, of whatever stream: one that waits for the CPU
// would hold up the next layers' caches behind it. And a launch begins sooner than a copy.
//
// Grid: a thread for every 16 bytes, or fewer. Block: FA_THREADS.
#include "base.cuh"

extern "C" __global__ void __launch_bounds__(FA_THREADS) carry(unsigned char *to, const unsigned char *from, i64 bytes) {
  const i64 first = static_cast<i64>(blockIdx.x) * FA_THREADS + threadIdx.x;
  const i64 step = static_cast<i64>(gridDim.x) * FA_THREADS;
  const bool aligned = (reinterpret_cast<u64>(to) | reinterpret_cast<u64>(from)) % 16 == 0;
  const i64 words = aligned ? bytes / 16 : 0;
  for (i64 i = first; i < words; i += step) reinterpret_cast<uint4 *>(to)[i] = reinterpret_cast<const uint4 *>(from)[i];
  for (i64 i = 16 * words + first; i < bytes; i += step) to[i] = from[i];
}
