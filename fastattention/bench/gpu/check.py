"""What is right: sampled rows in float64, on the device, and how far an output is from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import gpu
from ..measure import TOLERANCE, Expected, row_error
from .cases import GpuCase
from .data import Cache, Data, bits, to_float64

__all__ = ["deviation", "expected_rows", "poison", "tolerance"]

_RANDOM = {"sequences": 1, "heads": 1, "queries": 4}  # beside the first and the last


def tolerance(case: GpuCase) -> float:
    """Return the largest error of a row of the output, relative to its largest entry (`bench.measure`)."""
    return TOLERANCE[case.q_dtype]


def expected_rows(case: GpuCase, data: Data, cache: Cache, seed: int = 1) -> Expected:
    """Compute a sample of the output's rows from the definition, in float64."""
    cupy = gpu.load_cupy()
    rng = np.random.default_rng(seed)

    def sample(size: int, what: str) -> list[int]:
        return sorted({0, size - 1, *rng.integers(0, size, _RANDOM[what]).tolist()})

    places, rows = [], []
    group = case.q_heads // case.kv_heads
    for b in sample(case.batch, "sequences"):
        for h in sample(case.q_heads, "heads"):
            k, v = cache.head(b, h // group)
            for i in sample(case.q_len, "queries"):
                seen = case.k_len - case.q_len + i + 1 if case.causal else case.k_len
                q = to_float64(bits(data.q)[b, h, i], data.q.dtype)
                scores = (k[:seen] * q).sum(axis=1) * case.head_dim**-0.5
                weights = cupy.exp(scores - scores.max())
                row = (weights[:, None] * v[:seen]).sum(axis=0) / weights.sum()
                places.append((b, h, i))
                rows.append(row.get())
    sequences, heads, queries = np.array(places, dtype=np.int64).T
    return Expected(sequences, heads, queries, np.array(rows))


def poison(out: Any) -> None:
    """Fill an output with NaN, so that what a kernel leaves out shows."""
    if out.dtype.name == "bfloat16":
        bits(out).fill(0x7FC0)
    else:
        out.fill(np.nan)


def deviation(case: GpuCase, expected: Expected, out: Any) -> float:
    """Return the largest error of the sampled rows of an output, a CuPy array (B, Hq, Sq, Dv).

    NaN when any of its elements, sampled or not, is NaN; infinite when the shape is another.
    """
    cupy = gpu.load_cupy()
    if out.shape != (case.batch, case.q_heads, case.q_len, case.value_dim):
        return float("inf")
    if out.dtype.name == "bfloat16":
        undefined = (bits(out) & np.uint16(0x7FFF)) > np.uint16(0x7F80)
    else:
        undefined = cupy.isnan(out)
    if bool(undefined.any()):
        return float("nan")
    places = tuple(cupy.asarray(x) for x in (expected.sequences, expected.heads, expected.queries))
    return row_error(expected.rows, to_float64(bits(out)[places], out.dtype).get())
