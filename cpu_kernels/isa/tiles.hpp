// The tile registers of AMX, by number. Each operation says that it touches memory, since what a tile load
// reads is hidden from the compiler.
#pragma once
#include "simd.hpp"

namespace FA_NAMESPACE {
namespace {

// While it lives, this thread's tile registers hold 16 rows of 64 bytes each, the first five only
// `short_rows`: products into them take that many cycles.
struct TileUnit {
  explicit TileUnit(int short_rows) {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    for (int i = 0; i < 5; ++i) config.rows[i] = static_cast<uint8_t>(short_rows);
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~TileUnit() { asm volatile("tilerelease"); }
  TileUnit(const TileUnit &) = delete;
  TileUnit &operator=(const TileUnit &) = delete;
};

constexpr int64_t TILE_BYTES = 1024;

template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
// Rows `stride` bytes apart.
template <int T>
inline void tile_load(const void *at, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void *at, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(at), "r"(stride), "i"(T) : "memory");
}
// C += A B, of bfloat16 pairs, and of int8 fours (A signed or unsigned) into int32.
template <int C, int A, int B>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void tile_dot_s8s8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void tile_dot_u8s8() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace FA_NAMESPACE
