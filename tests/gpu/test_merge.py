"""Parts joined by the GPU's kernel, on a GPU and compiled for the host, against the specification."""

from __future__ import annotations

import ctypes
import functools
import itertools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fastattention.gpu import KERNELS, merge
from fastattention.reference.online_softmax import merge_normalised

import fastattention
from fastattention import gpu

from .. import host_kernel
from ..conftest import Engine

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
UNIT = {"float32": 2**-22, "float16": 2**-11, "bfloat16": 2**-8}

_HOST = (
    host_kernel._HOST
    + """
struct alignas(16) uint4 { unsigned x, y, z, w; };
static float exp2_fast(float x) { return exp2f(x); }
template <class A, class B> A minimum(A a, B b) { return a < static_cast<A>(b) ? a : static_cast<A>(b); }
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
"""
)
_RUN = """
extern "C" void run(const void *p, unsigned blocks) {
  const MergeProblem problem = *static_cast<const MergeProblem *>(p);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < FA_THREADS; ++threadIdx.x) merge(problem);
}
extern "C" int sizes(int which) {
  const int found[] = {sizeof(MergeProblem), offsetof(MergeProblem, result), offsetof(MergeProblem, part),
                       sizeof(Rows), offsetof(Rows, lse), offsetof(Rows, kind), PARTS};
  return found[which];
}
"""
_LAUNCH = 'extern "C" __global__ void __launch_bounds__(FA_THREADS) merge'
_ASM = 'asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));'


@functools.cache
def library() -> ctypes.CDLL:
    text = (KERNELS / "09_merge.cu").read_text()
    for part in ('#include "base.cuh"', _LAUNCH, _ASM):
        assert text.count(part) == 1
    text = text.replace('#include "base.cuh"', "").replace(_LAUNCH, "static void merge")
    text = text.replace(_ASM, "y = log2f(x);")
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder) / "merge.cpp", Path(folder) / "merge.so"
        source = f"#include <cstddef>\n{_HOST}\n{text}\n{_RUN}"
        path.write_text(source)
        options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-DFA_THREADS=256"]
        subprocess.run(["c++", *options, path, "-o", made], check=True)
        return ctypes.CDLL(str(made))


class Pretended:
    """A NumPy array that says where it lies as CuPy's do."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.data = self
        self.ptr = array.__array_interface__["data"][0]


def on_host(monkeypatch: pytest.MonkeyPatch, outs: Any, lses: Any, out: Any, lse: Any) -> None:
    module: Any = gpu.merge.__globals__

    class Kernel:
        @staticmethod
        def function(grid: Any, block: Any, arguments: Any) -> None:
            assert block == (256,)
            library().run(ctypes.c_char_p(arguments[0].tobytes()), ctypes.c_uint(grid[0]))

    monkeypatch.setitem(module, "compiled", lambda *_: Kernel)
    monkeypatch.setitem(module, "card", lambda: None)
    wrap = [Pretended(x) for x in outs], [Pretended(x) for x in lses]
    gpu.merge(*wrap, Pretended(out), None if lse is None else Pretended(lse))


def parts(
    count: int, shape: tuple[int, ...], dtypes: list[str], transposed: bool
) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(count)
    outs, lses = [], []
    for n in range(count):
        b, h, s, d = shape
        out = rng.standard_normal((b, s, h, d) if transposed else shape).astype(
            DTYPES[dtypes[n % len(dtypes)]]
        )
        outs.append(out.swapaxes(1, 2) if transposed else out)
        lse = (3 * rng.standard_normal(shape[:3])).astype(np.float32)
        lse[rng.random(lse.shape) < 0.3] = -np.inf
        lse[0, 0, 0] = -np.inf  # a query that sees no key anywhere
        outs[-1][np.isneginf(lse)] = np.nan  # has no weight, whatever it holds
        lses.append(lse)
    return outs, lses


def expected(outs: list[Any], lses: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    return merge_normalised(
        [(o.astype(np.float64), x.astype(np.float64)) for o, x in zip(outs, lses, strict=True)]
    )


SHAPES = [(1, 1, 1, 1), (2, 3, 5, 64), (1, 2, 7, 40), (2, 2, 3, 33), (1, 4, 2, 256)]


@host_kernel.skip_where_not
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtypes", "result"),
    [
        (["float16"], "float16"),
        (["float32", "float16"], "float16"),
        (["float16"], "float32"),
        (["bfloat16"], "bfloat16"),
    ],
)
def test_the_kernels_text(monkeypatch, count, shape, dtypes, result):
    for transposed, with_lse in itertools.product((False, True), repeat=2):
        outs, lses = parts(count, shape, dtypes, transposed)
        want, want_lse = expected(outs, lses)
        out = np.full((3, *shape), np.nan, DTYPES[result])
        lse = np.full((3, *shape[:3]), np.nan, np.float32)
        on_host(monkeypatch, outs, lses, out[1], lse[1] if with_lse else None)
        np.testing.assert_allclose(out[1].astype(np.float64), want, atol=UNIT[result] * 4, rtol=UNIT[result])
        assert np.isnan(out[::2].astype(np.float32)).all()  # nothing is written beside it
        if with_lse:
            np.testing.assert_allclose(lse[1], want_lse, atol=2e-6, rtol=1e-6)
        assert with_lse or np.isnan(lse).all()


@host_kernel.skip_where_not
def test_in_place(monkeypatch):
    outs, lses = parts(3, (2, 3, 5, 64), ["float32"], transposed=True)
    want, _ = expected(outs, lses)
    on_host(monkeypatch, outs, lses, outs[0], None)
    np.testing.assert_allclose(outs[0], want, atol=1e-6)


@host_kernel.skip_where_not
def test_what_is_infinite_shows(monkeypatch):
    outs, lses = parts(2, (1, 1, 3, 8), ["float32"], transposed=False)
    lses[0][...] = [[[np.inf, np.nan, 0]]]
    outs[0][...] = 1
    out, lse = np.zeros((1, 1, 3, 8), np.float32), np.zeros((1, 1, 3), np.float32)
    on_host(monkeypatch, outs, lses, out, lse)
    assert np.isnan(out[0, 0, :2]).all()
    assert np.isnan(lse[0, 0, :2]).all()
    assert np.isfinite(out[0, 0, 2]).all()


@host_kernel.skip_where_not
def test_both_sides_agree_on_the_fields():
    module: Any = merge.__globals__
    whole, rows = module["MERGE"], module["_ROWS"]
    fields = [whole.itemsize, whole.fields["result"][1], whole.fields["part"][1], rows.itemsize,
              rows.fields["lse"][1], rows.fields["kind"][1], gpu.MOST_PARTS]  # fmt: skip
    assert [library().sizes(i) for i in range(7)] == fields


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2, 8, 9, 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 500, 64), (2, 2, 2, 3, 40)])
def test_on_a_gpu(gpu_engine: Engine, count, dtype, shape):
    if dtype == "bfloat16" and gpu.get_atom() < 80:
        pytest.skip("this atom has no bfloat16")
    cupy = gpu.load_cupy()
    flat = (1, 1, int(np.prod(shape[:-1])), shape[-1])
    outs, lses = parts(count, flat, [dtype], transposed=False)
    want, want_lse = expected(outs, lses)
    there = [
        (cupy.asarray(o.reshape(shape)), cupy.asarray(x.reshape(shape[:-1])))
        for o, x in zip(outs, lses, strict=True)
    ]
    out, lse = fastattention.merge(there)
    assert out.dtype == DTYPES[dtype]
    np.testing.assert_allclose(
        out.get().astype(np.float64), want.reshape(shape), atol=4 * UNIT[dtype], rtol=UNIT[dtype]
    )
    np.testing.assert_allclose(lse.get(), want_lse.reshape(shape[:-1]), atol=1e-5, rtol=1e-6)
