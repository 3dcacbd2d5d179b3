"""A small call of each kernel, at sizes off all tiles: what `make sanitize-gpu` runs."""

from __future__ import annotations

import numpy as np
import pytest

import fastattention
from fastattention import gpu

from ..cases import Case, Sizes, options, solve
from ..conftest import Engine
from ..gpu_arrays import to_device
from .test_stored import verify

pytestmark = pytest.mark.gpu

PREFILL = {
    "narrow": ("float16", Sizes(1, 2, 1, 77, 133, 33, 17), options(causal=True)),
    "64": ("float16", Sizes(1, 2, 1, 150, 261, 64, 64), options(causal=True)),
    "128": ("float16", Sizes(1, 2, 2, 135, 197, 128, 96), options(window=(50, 20))),
    "wide": ("float16", Sizes(1, 1, 1, 70, 99, 200, 256), options(q_offset=3, causal=True)),
    "modified": ("float16", Sizes(1, 2, 1, 131, 140, 128, 128), options(softcap=4.0, kv_lengths=[97])),
    "bfloat16": ("bfloat16", Sizes(1, 2, 1, 65, 130, 72, 64), options()),
    "float32": ("float32", Sizes(1, 2, 1, 67, 131, 48, 80), options(causal=True)),
}
STORED = {
    "decode": (Sizes(2, 8, 2, 1, 700, 128, 64), None, False),
    "16 rows": (Sizes(1, 8, 2, 3, 333, 64, 128), None, False),
    "int8": (Sizes(1, 4, 1, 2, 500, 64, 64), None, True),
    "pages": (Sizes(2, 4, 2, 1, 299, 96, 96), 16, False),
    "pages of int8": (Sizes(2, 4, 2, 21, 150, 128, 128), 3, True),
}


@pytest.mark.parametrize("name", PREFILL)
def test_prefill(name: str, gpu_engine: Engine) -> None:
    dtype, sizes, given = PREFILL[name]
    problem = Case(name, sizes, given).problem(dtype)
    gpu_engine.check(problem, solve(problem, dtype, gpu_engine.accumulation))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", STORED)
def test_decode(name: str, dtype: str, gpu_engine: Engine) -> None:
    sizes, page_size, integers = STORED[name]
    lengths = [sizes.k_len - 37 * b for b in range(sizes.batch)]
    case = Case(name, sizes, options(causal=True, kv_lengths=lengths))
    verify(case, dtype, page_size, integers, gpu_engine)


@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_append(dtype: str, page_size: int | None, gpu_engine: Engine) -> None:
    rng = np.random.default_rng(0)
    caches = [
        fastattention.KVCache(2, 2, 40, dtype=dtype, max_length=64, page_size=page_size, device=device)
        for device in ("cpu", "gpu")
    ]
    for count in (17, 1, 3):
        k, v = (rng.standard_normal((2, 2, count, 40)).astype(np.float16) for _ in range(2))
        lengths = np.array([count, max(count - 2, 0)])
        caches[0].append(k, v, lengths)
        caches[1].append(to_device(k), to_device(v), lengths)
    q = rng.standard_normal((2, 4, 1, 40)).astype(np.float16)
    expected, got = caches[0].attend(q), caches[1].attend(to_device(q)).get()
    np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=0, atol=4e-3)


@pytest.mark.parametrize("dim", [64, 33])
def test_merge(dim: int, gpu_engine: Engine) -> None:
    rng = np.random.default_rng(0)
    outs = [rng.standard_normal((2, 3, 5, dim)).astype(np.float16) for _ in range(9)]
    lses = [rng.standard_normal((2, 3, 5)).astype(np.float32) for _ in range(9)]
    want = fastattention.merge(list(zip(outs, lses, strict=True)))
    there = [(to_device(out), to_device(lse)) for out, lse in zip(outs, lses, strict=True)]
    for got, exact in zip(fastattention.merge(there), want, strict=True):
        np.testing.assert_allclose(got.get().astype(np.float32), exact.astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("nbytes", [8192, 4099])
def test_carry(nbytes: int, gpu_engine: Engine) -> None:
    sent = np.random.default_rng(0).integers(0, 256, nbytes + 1, np.uint8)
    there, room = to_device(sent), to_device(np.zeros(nbytes, np.uint8))
    for shift in (0, 1):
        gpu.carry(room, there[shift : shift + nbytes])
        np.testing.assert_array_equal(room.get(), sent[shift : shift + nbytes])
