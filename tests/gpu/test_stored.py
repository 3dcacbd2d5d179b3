"""Keys and values as a cache keeps them, int8 or in pages, on the GPU: the cases of the CPU's kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastattention import gpu

from ..cases import FEATURES, Case, Sizes, options, solve
from ..conftest import Engine, check
from ..gpu_arrays import to_device
from ..stored import Stored, dequantized, paged, quantized
from ..tolerances import Problem

PAGE_SIZES = (None, 16, 3)
DTYPES = ("float32", "float16", "bfloat16")
PLACES = [pytest.param(i, case, id=case.name) for i, case in enumerate(FEATURES)]

pytestmark = pytest.mark.gpu


def attend(q: np.ndarray, stored: Stored, given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Call the launcher; `given` are options of `fastattention.attention`."""
    import cupy

    batch, heads, q_len, head_dim = q.shape
    out = cupy.full((batch, heads, q_len, stored.v.shape[3]), np.nan, np.float32).astype(q.dtype)
    lse = cupy.full((batch, heads, q_len), np.nan, np.float32)
    left, right = given.get("window") or (None, None)
    chosen: dict[str, Any] = {
        "scale": head_dim**-0.5 if given.get("scale") is None else given["scale"],
        "softcap": given.get("softcap") or 0.0,
        # Nothing reaches farther than 2**33; validation says so to the kernels.
        "window_left": -1 if left is None or left > 2**33 else left,
        "window_right": 0 if given.get("causal") else -1 if right is None or right > 2**33 else right,
    }
    if (lengths := given.get("kv_lengths")) is not None:
        chosen["kv_lengths"] = np.asarray(lengths, np.int64)
    if (offset := given.get("q_offset")) is not None:
        chosen["q_offsets"] = np.broadcast_to(np.int64(offset), (batch,)).copy()
    for name in ("alibi_slopes", "sinks"):
        if given.get(name) is not None:
            chosen[name] = np.asarray(given[name], np.float32)
    if (mask := given.get("mask")) is not None:
        shape = (batch, heads, q_len, mask.shape[-1])
        mask = mask if mask.dtype == np.bool_ else mask.astype(np.float32)
        chosen["mask"] = cupy.broadcast_to(cupy.asarray(mask), shape)
    if stored.table is not None:
        longest = int(np.max(lengths, initial=0))
        chosen |= {
            "block_table": stored.table, "page_size": stored.k.shape[2], "max_seqlen_k": longest
        }  # fmt: skip
    if stored.k_scales is not None and stored.v_scales is not None:
        chosen |= {"k_scales": to_device(stored.k_scales), "v_scales": to_device(stored.v_scales)}
    gpu.attention(to_device(q), to_device(stored.k), to_device(stored.v), out, lse, **chosen)
    return out.get(), lse.get()


def verify(case: Case, dtype: str, page_size: int | None, integers: bool, engine: Engine) -> None:
    if dtype == "bfloat16" and engine.atom is not None and engine.atom < 80:
        pytest.skip(f"atom {engine.atom} has no bfloat16")
    problem = case.problem(dtype)
    k, v = problem.k, problem.v
    stored = Stored(k, v)
    if integers:
        with np.errstate(invalid="ignore"):
            stored = quantized(k, v)
            k, v = dequantized(stored)
    chosen = dict(problem.options)
    given = chosen.get("kv_lengths")
    lengths = np.full(len(problem.q), k.shape[2]) if given is None else np.asarray(given)
    if page_size is not None:
        if not lengths.any():
            pytest.skip("without a key there is nothing for a kernel to do")
        stored = paged(stored, lengths, page_size, np.random.default_rng(page_size))
        chosen["kv_lengths"] = lengths
    expected = solve(Problem(problem.q, k, v, problem.options), dtype, engine.accumulation)
    # Integers of 0 let all that is left of an output come from weights below 2^-126, which are flushed to 0.
    with np.errstate(invalid="ignore"):
        flushed = 2.0**-126 * k.shape[2] * np.nanmax(np.abs(v.astype(np.float64)), initial=0.0)
    expected = replace(expected, out_tolerance=expected.out_tolerance + flushed)
    check(*attend(problem.q, stored, chosen), expected)


@pytest.mark.parametrize("integers", [False, True], ids=["floats", "int8"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize(("i", "case"), PLACES)
def test_features(i: int, case: Case, page_size: int | None, integers: bool, gpu_engine: Engine) -> None:
    verify(case, DTYPES[i % 3], page_size, integers, gpu_engine)


@pytest.mark.parametrize("integers", [False, True], ids=["floats", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (8, 2), (8, 1), (3, 1)])
@pytest.mark.parametrize("q_len", [1, 2, 5, 60])
def test_long(q_len: int, heads: int, kv_heads: int, dtype: str, integers: bool, gpu_engine: Engine) -> None:
    sizes = Sizes(2, heads, kv_heads, q_len, 1500, 64, 48)
    case = Case(f"{q_len}, {heads} on {kv_heads}", sizes, options(kv_lengths=[1500, 997], causal=True))
    for page_size in (None, 64):
        verify(case, dtype, page_size, integers, gpu_engine)


@pytest.mark.parametrize("integers", [False, True], ids=["floats", "int8"])
@pytest.mark.parametrize("head_dim", [1, 2, 7, 15, 17, 31, 33, 63, 65, 100, 127, 129, 191, 255, 256])
@pytest.mark.parametrize("q_len", [1, 3, 13])
def test_head_dims(head_dim: int, q_len: int, integers: bool, gpu_engine: Engine) -> None:
    v_dim = (head_dim * 7 + 5) % 256 + 1
    sizes = Sizes(2, 2, 1, q_len, 131, head_dim, v_dim)
    case = Case(f"D {head_dim}, Dv {v_dim}, {q_len} queries", sizes, options(kv_lengths=[131, 50]))
    verify(case, DTYPES[head_dim % 3], 16, integers, gpu_engine)
