// Words that every kernel uses: integers, vectors, element types and their conversions. Nothing is included,
// so that NVRTC needs no header of the toolkit; conversions are single PTX instructions.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

constexpr int WARP = 32;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
#define INFINITY __int_as_float(0x7f800000)

template <class A, class B>
DEVICE constexpr A minimum(A a, B b) {
  return a < static_cast<A>(b) ? a : static_cast<A>(b);
}
template <class A, class B>
DEVICE constexpr A maximum(A a, B b) {
  return a > static_cast<A>(b) ? a : static_cast<A>(b);
}
DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEVICE constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// 2^x and x log2; denormal results become 0, 2^-inf is 0.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16-bit elements, in pairs: the low half comes first in memory.
struct Half {
  typedef u16 Bits;
  static DEVICE u32 pack(float low, float high) {
    u32 pair;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(low), "f"(high));
#else
    asm("{.reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}"
        : "=r"(pair)
        : "f"(low), "f"(high));
#endif
    return pair;
  }
  static DEVICE float load(Bits bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
  static DEVICE Bits store(float x) {
    Bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
  }
};

struct Bfloat {
  typedef u16 Bits;
  static DEVICE u32 pack(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(low), "f"(high));
    return pair;
#else
    return static_cast<u32>(store(low)) | static_cast<u32>(store(high)) << 16;
#endif
  }
  static DEVICE float load(Bits bits) { return __int_as_float(static_cast<int>(bits) << 16); }
  static DEVICE Bits store(float x) {
    const u32 bits = static_cast<u32>(__float_as_int(x));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Bits>(bits >> 16 | 0x40);  // stays a NaN
    return static_cast<Bits>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  }
};

struct Float {
  typedef float Bits;
  static DEVICE float load(Bits bits) { return bits; }
  static DEVICE Bits store(float x) { return x; }
};

template <class T>
DEVICE const T *at(const void *base, i64 element) {
  return static_cast<const T *>(base) + element;
}
