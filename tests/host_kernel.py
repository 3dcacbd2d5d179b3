"""kernels/08_append.cu compiled for the CPU, so that what it writes can be looked at where there is no GPU.

The kernel's own text, with types and the few intrinsics that it uses defined for the host. The lanes of a
warp are coroutines: at a shuffle each waits until all have come.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from fastattention.gpu import KERNELS
from fastattention.gpu.choose import Configuration

_HOST = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
typedef unsigned char u8;
typedef std::uint16_t u16;
typedef std::uint32_t u32;
typedef long long i64;
#define DEVICE inline
#define FA_WARPS 4
constexpr int WARP = 32;
struct Index { unsigned x; };
static Index threadIdx, blockIdx;

static float __int_as_float(int bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static int __float_as_int(float x) { int bits; std::memcpy(&bits, &x, 4); return bits; }
static int __double2int_rn(double x) { return static_cast<int>(std::nearbyint(x)); }
template <class A, class B> A maximum(A a, B b) { return a > static_cast<A>(b) ? a : static_cast<A>(b); }

static ucontext_t lanes[WARP], scheduler;
static bool running[WARP];
static int current, turn[WARP];
static u32 exchanged[2][WARP];
static u32 __shfl_xor_sync(u32, u32 x, int mask) {
  const int lane = current, side = turn[lane]++ % 2;  // two, as the first lane writes while others still read
  exchanged[side][lane] = x;
  swapcontext(&lanes[lane], &scheduler);
  return exchanged[side][lane ^ mask];
}

struct Half {
  typedef u16 Bits;
  static float load(Bits bits) { _Float16 x; std::memcpy(&x, &bits, 2); return static_cast<float>(x); }
  static Bits store(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    Bits bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
};
struct Bfloat {
  typedef u16 Bits;
  static float load(Bits bits) { return __int_as_float(static_cast<int>(bits) << 16); }
  static Bits store(float x) {
    const u32 bits = static_cast<u32>(__float_as_int(x));
    if (x != x) return static_cast<Bits>(bits >> 16 | 0x40);
    return static_cast<Bits>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  }
};
struct Float {
  typedef float Bits;
  static float load(Bits bits) { return bits; }
  static Bits store(float x) { return x; }
};

static void (*body)();
static void enter() { body(); running[current] = false; swapcontext(&lanes[current], &scheduler); }
static void warp(int number) {
  static char stacks[WARP][65536];
  for (int i = 0; i < WARP; ++i) {
    getcontext(&lanes[i]);
    lanes[i].uc_stack.ss_sp = stacks[i], lanes[i].uc_stack.ss_size = sizeof stacks[i];
    lanes[i].uc_link = nullptr;
    makecontext(&lanes[i], enter, 0);
    running[i] = true, turn[i] = 0;
  }
  for (bool any = true; any;) {
    any = false;
    for (current = 0; current < WARP; ++current)
      if (running[current]) {
        any = true, threadIdx.x = static_cast<unsigned>(number * WARP + current);
        swapcontext(&scheduler, &lanes[current]);
      }
  }
}
"""
_KERNEL = """
namespace {name} {{
#define FA_K_SOURCE {k}
#define FA_V_SOURCE {v}
#define FA_ELEMENT {kept}
{text}
#undef FA_K_SOURCE
#undef FA_V_SOURCE
#undef FA_ELEMENT
static const AppendProblem *problem;
static void lane() {{ append(*problem); }}
}}
extern "C" void run_{name}(const void *p, unsigned blocks) {{
  {name}::problem = static_cast<const {name}::AppendProblem *>(p);
  body = {name}::lane;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (int i = 0; i < FA_WARPS; ++i) warp(i);
}}
"""
_FLOATS = ("Float", "Half", "Bfloat")
_SOURCES = {"Float": ("Float",), "Half": ("Float", "Half"), "Bfloat": ("Float", "Bfloat"), "Int8": _FLOATS}
_LAUNCH = 'extern "C" __global__ void __launch_bounds__(32 * FA_WARPS) append'
_PROBE = "int main() { volatile float x = 1; volatile _Float16 h = (_Float16)x; return (float)h != 1; }"


def why_not() -> str:
    """Why the kernel cannot be compiled for this machine; empty where it can."""
    compiler = shutil.which("c++")
    if compiler is None:
        return "no C++ compiler named c++"
    command = [compiler, "-x", "c++", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=_PROBE, text=True, capture_output=True, check=False)
    return "this C++ compiler has no _Float16" if done.returncode else ""


@functools.cache
def _library() -> ctypes.CDLL:
    text = (KERNELS / "08_append.cu").read_text()
    assert text.count('#include "base.cuh"') == text.count(_LAUNCH) == 1
    text = text.replace('#include "base.cuh"', "").replace(_LAUNCH, "static void append")
    source = _HOST
    for kept, sources in _SOURCES.items():
        for k, v in itertools.product(sources, repeat=2):
            source += _KERNEL.format(name=f"{k}_{v}_{kept}", k=k, v=v, kept=kept, text=text)
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder) / "append.cpp", Path(folder) / "append.so"
        path.write_text(source)
        options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off"]
        subprocess.run(["c++", *options, path, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def run(configuration: Configuration, problem: bytes, blocks: int) -> None:
    """Launch the kernel on a problem whose addresses are the host's."""
    macros = dict(configuration.macros)
    assert macros["WARPS"] == "4"
    function = _library()[f"run_{macros['K_SOURCE']}_{macros['V_SOURCE']}_{macros['ELEMENT']}"]
    function(ctypes.c_char_p(problem), ctypes.c_uint(blocks))


skip_where_not = pytest.mark.skipif(bool(why_not()), reason=why_not() or "compiled")
