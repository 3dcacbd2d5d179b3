"""KVCache over every backend and instruction set: the shared cases, in each way that a cache keeps rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fastattention.reference import quantize

from fastattention import KVCache

from .cases import FEATURES, Case, Sizes, options, solve
from .conftest import Engine, check
from .gpu_arrays import DeviceCache
from .tolerances import Problem

KEPT = ("int8", "float32", "int8", "float16", "bfloat16")
PAGE_SIZES = (None, 16, 8, 64)
Q_DTYPES = ("float32", "float16", "bfloat16")
PLACES = [pytest.param(i, case, id=case.name) for i, case in enumerate(FEATURES)]


def _kept(x: np.ndarray, dtype: str) -> np.ndarray:
    """What a cache of `dtype` makes of rows."""
    if dtype != "int8":
        return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    rows = np.where(np.isfinite(x.astype(np.float64)), x, 0)  # behind a sequence's end; never read
    return quantize.dequantize(*quantize.quantize(rows))


def _check(case: Case, q_dtype: str, kept: str, page_size: int | None, engine: Engine) -> None:
    problem = case.problem(q_dtype)
    q, k, v = problem.q, problem.k, problem.v
    batch, _, length = k.shape[:3]
    chosen: dict[str, Any] = dict(problem.options)
    given = chosen.pop("kv_lengths", None)
    lengths = np.full(batch, length) if given is None else np.asarray(given)
    longest = int(lengths.max(initial=0))
    if "bfloat16" in (q_dtype, kept) and engine.atom is not None and engine.atom < 80:
        pytest.skip(f"atom {engine.atom} has no bfloat16")
    make = DeviceCache if engine.backend == "gpu" else KVCache
    cache = make(
        batch, k.shape[1], k.shape[3], dtype=kept, v_dim=v.shape[3], max_length=max(length, 1),
        page_size=page_size,
    )  # fmt: skip
    half = longest // 2  # in two pieces, so that sequences end within what was there before
    for start, stop in ((0, half), (half, longest)):
        added = np.clip(lengths - start, 0, stop - start)
        with np.errstate(over="ignore"):
            cache.append(k[:, :, start:stop], v[:, :, start:stop], added)
    assert cache.lengths.tolist() == lengths.tolist()
    if (mask := chosen.get("mask")) is not None and np.asarray(mask).shape[-1] == length:
        chosen["mask"] = np.asarray(mask)[..., :longest]

    rows = [_kept(x[:, :, :longest], kept) for x in (k, v)]
    accumulation = engine.accumulation
    if kept == "int8":
        accumulation = engine.accumulation_of_int8(q.shape[1] // k.shape[1] * q.shape[2])
    expected = solve(Problem(q, *rows, {**chosen, "kv_lengths": lengths}), q_dtype, accumulation)
    if kept == "int8":  # see test_quantized
        flushed = 2.0**-126 * longest * np.abs(rows[1]).max(initial=0.0)
        expected = replace(expected, out_tolerance=expected.out_tolerance + flushed)
    for threads in (1, 3):
        out, lse = cache.attend(
            q,
            **{"causal": False, **chosen},
            return_lse=True,
            backend=engine.backend,
            num_threads=threads,
        )
        assert out.dtype == q.dtype
        check(out, lse, expected)


@pytest.mark.parametrize(("i", "case"), PLACES)
def test_features(i: int, case: Case, engine: Engine) -> None:
    kept, page_size = KEPT[i % len(KEPT)], PAGE_SIZES[i % len(PAGE_SIZES)]
    q_dtype = Q_DTYPES[i % 3] if kept == "int8" else ("float32", kept)[i % 2]
    if q_dtype == "float16" and "large" in case.name:
        q_dtype = "float32"
    problem = case.problem(q_dtype)
    lengths = problem.options.get("kv_lengths", [problem.k.shape[2]] * len(problem.k))
    taken = [x[b, :, :n] for x in (problem.k, problem.v) for b, n in enumerate(lengths)]
    if not all(np.isfinite(x.astype(np.float64)).all() for x in taken):
        kept = q_dtype  # inf or NaN in a row that counts: an int8 cache refuses it
    _check(case, q_dtype, kept, page_size, engine)


@pytest.mark.parametrize("page_size", [None, 8, 128])
@pytest.mark.parametrize("kept", ["int8", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("q_len", [1, 4, 70])
def test_long_and_ragged(q_len: int, kept: str, page_size: int | None, engine: Engine) -> None:
    sizes = Sizes(3, 4, 2, q_len, 1100, 64, 48)
    case = Case("long and ragged", sizes, options(kv_lengths=[1100, 0, 513], causal=True))
    for q_dtype in Q_DTYPES if kept == "int8" else {"float32", kept}:
        _check(case, q_dtype, kept, page_size, engine)


def test_every_way_of_keeping_is_tried() -> None:
    """The two lists go round with different steps, so that all pairs meet."""
    pairs = {(KEPT[i % len(KEPT)], PAGE_SIZES[i % len(PAGE_SIZES)]) for i in range(len(FEATURES))}
    assert len(pairs) == len(set(KEPT)) * len(PAGE_SIZES)
