"""kernels/10_decoder.cu compiled for the CPU, and cuBLAS's product in NumPy: `CudaOps` without a GPU.

The kernels' own text, with types and the few intrinsics that it uses defined for the host. The threads of a
block are coroutines: at a barrier or a shuffle each waits until all have come.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastattention.gpu import KERNELS
from fastattention.gpu.compile import Compiled

from .. import host_kernel

why_not = host_kernel.why_not

_HOST = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>
#include <ucontext.h>
typedef std::uint16_t u16;
typedef std::uint32_t u32;
typedef long long i64;
#define DEVICE inline
#define __shared__ static
#define __global__
constexpr unsigned WARP = 32, MOST = 1024;
struct Index { unsigned x, y; };
static Index threadIdx, blockIdx, blockDim, gridDim;

static ucontext_t threads[MOST], scheduler;
static bool running[MOST];
static unsigned current, turn[MOST];
static float exchanged[2][MOST];
static void wait_for_all() { swapcontext(&threads[current], &scheduler); }
static void __syncthreads() { wait_for_all(); }
static float __shfl_xor_sync(u32, float x, int mask) {
  const unsigned thread = current, side = turn[thread]++ % 2;  // two: the first writes while others read
  exchanged[side][thread] = x;
  wait_for_all();
  return exchanged[side][thread ^ static_cast<unsigned>(mask)];
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
struct Float {
  typedef float Bits;
  static float load(Bits bits) { return bits; }
  static Bits store(float x) { return x; }
};

static std::function<void()> body;
static void enter() { body(); running[current] = false; wait_for_all(); }
static void block() {
  static std::vector<char> stacks(MOST * 16384);
  for (unsigned i = 0; i < blockDim.x; ++i) {
    getcontext(&threads[i]);
    threads[i].uc_stack.ss_sp = &stacks[i * 16384], threads[i].uc_stack.ss_size = 16384;
    threads[i].uc_link = nullptr;
    makecontext(&threads[i], enter, 0);
    running[i] = true, turn[i] = 0;
  }
  for (bool any = true; any;) {
    any = false;
    for (current = 0; current < blockDim.x; ++current)
      if (running[current]) any = true, threadIdx.x = current, swapcontext(&scheduler, &threads[current]);
  }
}
static void launch(unsigned x, unsigned y, unsigned count) {
  gridDim = {x, y}, blockDim = {count, 1};
  for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) block();
}
"""
_RUN = """
extern "C" void run_{entry}(unsigned grid_x, unsigned grid_y, unsigned block_x, {parameters}) {{
  body = [=] {{ {entry}({names}); }};
  launch(grid_x, grid_y, block_x);
}}
"""
_SCALARS = {"const int": np.int32, "const i64": np.int64, "const float": np.float32}


@functools.cache
def _kernels() -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """The source, and of each kernel its parameters: (type, name)."""
    text = (KERNELS / "10_decoder.cu").read_text()
    assert text.count('#include "base.cuh"') == 1
    found = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', text)
    pattern = re.compile(r"\s*(.*?[\s*])(\w+)\s*")
    kernels = {}
    for entry, parameters in found:
        pairs = [pattern.fullmatch(parameter) for parameter in parameters.split(",")]
        kernels[entry] = [(pair[1].strip(), pair[2]) for pair in pairs if pair is not None]
        assert len(kernels[entry]) == len(pairs)
    return text.replace('#include "base.cuh"', "").replace('extern "C" __global__', "static"), kernels


@functools.cache
def _library(element: str) -> ctypes.CDLL:
    text, kernels = _kernels()
    source = f"{_HOST}#define FA_ELEMENT {element}\n{text}"
    for entry, parameters in kernels.items():
        listed = ", ".join(f"{kind} {name}" for kind, name in parameters)
        source += _RUN.format(entry=entry, parameters=listed, names=", ".join(name for _, name in parameters))
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder) / "decoder.cpp", Path(folder) / "decoder.so"
        path.write_text(source)
        subprocess.run(["c++", "-std=c++17", "-O1", "-shared", "-fPIC", path, "-o", library], check=True)
        return ctypes.CDLL(str(library))


class HostArray(np.ndarray):
    """A NumPy array that says where it lies, and is fetched, as CuPy's are."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.__array_interface__["data"][0], array=self)

    def get(self, out: np.ndarray) -> np.ndarray:
        out[...] = self
        return out


def on_host(array: np.ndarray) -> Any:
    """The same memory, for `CudaOps`."""
    return array.view(HostArray)


def _argument(kind: str, value: Any) -> Any:
    """What C is called with; the types must be what the kernel declares, as nothing else checks them."""
    if "*" in kind:
        if isinstance(value, HostArray):
            kinds = {"int": "int32", "float": "float32", "Bits": ("float16", "float32")}
            assert value.dtype.name in kinds[kind.removeprefix("const ").removesuffix("*").strip()]
            return ctypes.c_void_p(value.data.ptr)
        assert type(value) is np.uint64
        assert value == 0
        return ctypes.c_void_p(None)
    assert type(value) is _SCALARS[kind], f"{value!r} for {kind}"
    kinds = {np.int32: ctypes.c_int, np.int64: ctypes.c_longlong, np.float32: ctypes.c_float}
    return kinds[type(value)](value.item())


def _compiled(configuration: Any, card: Any) -> Compiled:
    entry, element = configuration.entry, dict(configuration.macros)["ELEMENT"]
    assert configuration.file == "10_decoder.cu"

    def function(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        parameters = _kernels()[1][entry]
        assert len(arguments) == len(parameters)
        assert 0 < block[0] <= 1024
        assert block[0] % 32 == 0
        assert all(0 < size <= most for size, most in zip(grid, (2**31 - 1, 65535), strict=False))
        values = [_argument(kind, value) for (kind, _), value in zip(parameters, arguments, strict=True)]
        x, y = (*grid, 1)[:2]
        _library(element)[f"run_{entry}"](x, y, block[0], *values)

    return Compiled(function, 32)


def gemm_ex(
    handle: int, a_op: int, b_op: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, a_ld: int,
    b: int, b_type: int, b_ld: int, beta: int, c: int, c_type: int, c_ld: int, compute: int, algorithm: int,
) -> None:  # fmt: skip
    """cublasGemmEx: C = alpha op(A) op(B) + beta C, matrices by columns, op(A) (m, k), op(B) (k, n)."""
    assert (handle, compute, algorithm) == (77, 68, -1)  # CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT

    def matrix(address: int, kind: int, rows: int, columns: int, ld: int) -> np.ndarray:
        assert ld >= rows
        dtype = np.dtype({0: np.float32, 2: np.float16}[kind])  # CUDA_R_32F, CUDA_R_16F
        size = ((columns - 1) * ld + rows) * dtype.itemsize
        flat = np.frombuffer((ctypes.c_char * size).from_address(address), dtype)
        steps = (dtype.itemsize, ld * dtype.itemsize)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), steps)

    def factor(address: int) -> float:
        return ctypes.c_float.from_address(address).value

    left = matrix(a, a_type, k, m, a_ld).T if a_op else matrix(a, a_type, m, k, a_ld)
    right = matrix(b, b_type, n, k, b_ld).T if b_op else matrix(b, b_type, k, n, b_ld)
    out = matrix(c, c_type, m, n, c_ld)
    product = factor(alpha) * (left.astype(np.float32) @ right.astype(np.float32))
    out[...] = product if factor(beta) == 0 else product + factor(beta) * out


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `CudaOps` work in CPU memory until the test ends."""
    from fastattention import gpu

    cuda = SimpleNamespace(cublas=SimpleNamespace(gemmEx=gemm_ex), get_cublas_handle=lambda: 77)

    def upload(array: np.ndarray, into: Any) -> None:
        assert array.dtype == into.array.dtype
        into.array[...] = array

    monkeypatch.setattr(gpu, "load_cupy", lambda: SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(gpu, "card", lambda: None)
    monkeypatch.setattr(gpu, "compiled", _compiled)
    monkeypatch.setattr(gpu, "upload", upload)
