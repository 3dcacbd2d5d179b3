"""Appending on the device: the kernel, compiled for the host, writes what the CPU's cache holds.

The same launches are made on a GPU by tests/test_caches.py and tests/api.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fastattention.gpu import KERNELS, append, cache_rows
from fastattention.gpu.cache_rows import APPEND
from fastattention.gpu.compile import Compiled

from fastattention import KVCache, cpu_kernels

from .. import host_kernel
from .test_problem import fields_of

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
B, HKV, D, DV = 3, 2, 40, 33


class Twin:
    """A NumPy array that says where it lies as CuPy's do."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.data = types.SimpleNamespace(ptr=array.__array_interface__["data"][0])
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.ptr = self.data.ptr


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Launches run on the host; their (configuration, grid, block) are noted."""
    notes: list[tuple[Any, ...]] = []

    def compiled(configuration: Any, card: Any) -> Compiled:
        def function(grid: Any, block: Any, arguments: Any) -> None:
            notes.append((configuration, grid, block))
            host_kernel.run(configuration, arguments[0].tobytes(), grid[0])

        return Compiled(function, 40)

    monkeypatch.setattr(cache_rows, "card", lambda: None)
    monkeypatch.setattr(cache_rows, "compiled", compiled)
    monkeypatch.setattr(cache_rows, "upload", Twin)
    return notes


def rows(dtype: Any, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values as slices of one buffer (B, S, Hkv, D + Dv), as a fused projection gives them."""
    x = np.random.default_rng(seed).standard_normal((B, count, HKV, D + DV)).astype(dtype).swapaxes(1, 2)
    return x[..., :D], x[..., D:]


def kept_as(dtype: Any, sources: tuple[Any, Any], page_size: int | None, host: Any) -> None:
    """The same appends to a CPU's cache, and by the kernel to its own copy of the planes."""
    dtype = np.dtype(dtype)
    cache = KVCache(B, HKV, D, dtype=dtype, v_dim=DV, max_length=64, page_size=page_size)
    storage = cache._storage
    mine = [np.full_like(plane, 77) for plane in storage.planes]
    for step, (count, given) in enumerate(
        ((9, None), (1, None), (20, (20, 0, 7)), (1, None), (3, (1, 3, 2)))
    ):
        k, v = rows(sources[0], count, step)[0], rows(sources[1], count, step)[1]
        before = cache.lengths
        counts = None if given is None else np.array(given)
        cache.append(k, v, counts)
        table = None if page_size is None else Twin(storage.table)
        ragged = counts is not None or len(set(before.tolist())) > 1
        where: dict[str, Any] = {"starts": before} if ragged else {"start": int(before[0])}
        append(
            Twin(k), Twin(v), tuple(map(Twin, mine)), count, **where, counts=counts, block_table=table,
            page_size=page_size or 0,
        )  # fmt: skip
    assert len(host) == 5
    for held, expected in zip(mine, storage.planes, strict=True):
        for b, length in enumerate(cache.lengths.tolist()):
            for j in range(held.shape[2] if page_size is None else length):
                at = (b, slice(None), j)
                if page_size is not None:
                    at = (int(storage.table[b, j // page_size]), slice(None), j % page_size)
                if j < length:
                    np.testing.assert_array_equal(held[at], expected[at])
                else:
                    assert (held[at] == 77).all(), "written behind a sequence's end"


PAIRS = [
    (np.float32, (np.float32, np.float32)), (np.float16, (np.float16, np.float16)),
    (np.float16, (np.float32, np.float16)), (BFLOAT16, (BFLOAT16, np.float32)),
    (BFLOAT16, (BFLOAT16, BFLOAT16)),
    (np.int8, (np.float32, np.float32)), (np.int8, (np.float16, BFLOAT16)), (np.int8, (BFLOAT16, np.float16)),
]  # fmt: skip


@host_kernel.skip_where_not
@pytest.mark.parametrize("page_size", [None, 8, 16])
@pytest.mark.parametrize(("dtype", "sources"), PAIRS)
def test_rows_are_those_of_the_cpus_cache(dtype: Any, sources: Any, page_size: int | None, host: Any) -> None:
    kept_as(dtype, sources, page_size, host)


@host_kernel.skip_where_not
@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 64, 129, 256])
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-36, 1.0, 1e4, 3e38])
def test_integers_are_those_of_the_specification(width: int, size: float, host: Any) -> None:
    rng = np.random.default_rng(width)
    x = np.clip(rng.standard_normal((1, 2, 7, width)), -1, 1).astype(np.float32) * np.float32(size)
    x[0, 1, 2] = 0
    x[0, 0, 3] = np.arange(width) % 128 - 63.5  # halves of its scale
    x[0, 0, 3, 0] = 127
    if width > 4:  # quotients just below a half, which float32 would round to it
        scale = np.float32(1 + 3 * 2.0**-23)
        x[0, 0, 4], x[0, 0, 4, 0] = 1.5 + 4 * 2.0**-23, np.float32(127 * np.float64(scale))
    expected, expected_scales = cpu_kernels.quantize(x)
    integers, scales = np.full_like(expected, 5), np.full_like(expected_scales, 5)
    append(Twin(x), Twin(x), tuple(map(Twin, (integers, integers.copy(), scales, scales.copy()))), 7)
    np.testing.assert_array_equal(integers, expected)
    np.testing.assert_array_equal(scales, expected_scales)


@host_kernel.skip_where_not
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_no_scale(bad: float, host: Any) -> None:
    x = np.random.default_rng(1).standard_normal((1, 1, 3, 70)).astype(np.float32)
    expected, expected_scales = cpu_kernels.quantize(x)
    x[0, 0, 1, 66] = bad
    integers, scales = np.zeros((1, 1, 3, 70), np.int8), np.zeros((1, 1, 3), np.float32)
    append(Twin(x), Twin(x), tuple(map(Twin, (integers, integers.copy(), scales, scales.copy()))), 3)
    assert np.isnan(scales[0, 0, 1])
    for row in (0, 2):
        np.testing.assert_array_equal(integers[0, 0, row], expected[0, 0, row])
        assert scales[0, 0, row] == expected_scales[0, 0, row]


@host_kernel.skip_where_not
def test_floats_of_the_cache_keep_their_bits(host: Any) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(1, 1, 256, 256)
    for dtype in (np.float16, BFLOAT16):
        kept = [np.zeros_like(bits).view(dtype) for _ in range(2)]
        append(Twin(bits.view(dtype)), Twin(bits.view(dtype)), tuple(map(Twin, kept)), 256)
        for plane in kept:
            np.testing.assert_array_equal(plane.view(np.uint16), bits)


def test_one_launch_with_a_warp_a_row(host: Any) -> None:
    x = np.zeros((2, 3, 5, 8), np.float32)
    append(Twin(x), Twin(x), (Twin(x.copy()), Twin(x.copy())), 5)
    ((configuration, grid, block),) = host
    assert (configuration.file, configuration.entry) == ("08_append.cu", "append")
    assert grid == (2 * 2 * 3 * 5 // 4,)
    assert block == (128,)


def test_fields_are_the_headers() -> None:
    found = fields_of("08_append.cu", "AppendProblem")
    assert [(name, APPEND[name]) for name in APPEND.names or ()] == found


def test_offsets_are_the_compilers(tmp_path: Any) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler named c++")
    body = re.search(r"struct AppendProblem \{.*?\n\};", (KERNELS / "08_append.cu").read_text(), re.DOTALL)
    assert body is not None
    names = APPEND.names or ()
    prints = "".join(f'std::printf("%zu\\n", offsetof(AppendProblem, {name}));\n' for name in names)
    source, program = tmp_path / "layout.cpp", tmp_path / "layout"
    source.write_text(
        f"#include <cstddef>\n#include <cstdio>\ntypedef long long i64;\n{body[0]}\n"
        f'int main() {{\n{prints}std::printf("%zu\\n", sizeof(AppendProblem));\n}}\n'
    )
    subprocess.run([compiler, "-std=c++17", "-o", program, source], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    fields = APPEND.fields or {}
    assert [int(line) for line in done.stdout.split()] == [*(fields[n][1] for n in names), APPEND.itemsize]
