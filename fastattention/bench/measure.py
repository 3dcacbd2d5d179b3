"""Correctness first, then time: what a figure of the benchmark rests on. `rounds` puts the times together."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from .cases import Case
from .data import Data

__all__ = [
    "TOLERANCE", "Expected", "error", "expected_rows", "pin", "pinned", "process_cores", "row_error",
    "time_call",
]  # fmt: skip

#: Largest error of a sampled row, relative to that row's largest entry. float32: sums of some thousand terms
#: in another order and a polynomial exponential, with room; a kernel that works in bfloat16 inside misses it
#: tenfold. The 16-bit types: the rounding of the output (2^-11, 2^-8) and of probabilities stored in the
#: type. int8: that of its queries and output, which are float32; its keys and values are exact as they stand.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2, "int8": 1e-4}

_SAMPLED_SEQUENCES = 3
_SAMPLED_HEADS = 3  # of each sampled sequence
_SAMPLED_ROWS = 6  # of each sampled head


@dataclass(frozen=True, slots=True)
class Expected:
    """Sampled rows of the right answer: sequence, head and query of each, and the float64 rows (N, Dv)."""

    sequences: NDArray[np.int64]
    heads: NDArray[np.int64]
    queries: NDArray[np.int64]
    rows: NDArray[np.float64]


def expected_rows(case: Case, data: Data, seed: int = 1) -> Expected:
    """Compute a sample of output rows by the reference: first, last and random rows, heads and sequences."""
    rng = np.random.default_rng(seed)

    def sample(size: int, count: int) -> list[int]:
        inner = rng.integers(0, size, count)
        return sorted({0, size - 1, *inner.tolist()})

    group = case.q_heads // case.kv_heads
    places: list[tuple[int, int, int]] = []
    rows = []
    for b in sample(case.batch, _SAMPLED_SEQUENCES - 2):
        for h in sample(case.q_heads, _SAMPLED_HEADS - 2):
            k, v = data.head(b, h // group)
            for i in sample(case.q_len, _SAMPLED_ROWS - 2):
                row, _ = reference.attention(
                    data.q[b : b + 1, h : h + 1, i : i + 1],
                    k,
                    v,
                    causal=case.causal,
                    window=case.window,
                    mask=None if data.mask is None else data.mask[:, :, i : i + 1],
                    q_offset=int(case.k_len - case.q_len + i),
                )
                places.append((b, h, i))
                rows.append(row[0, 0, 0])
    sequences, heads, queries = np.array(places, dtype=np.int64).T
    return Expected(sequences, heads, queries, np.array(rows))


def error(expected: Expected, out: NDArray[Any]) -> float:
    """Return the largest error of the sampled rows of `out` (B, Hq, Sq, Dv), relative to each row's maximum.

    A wrong shape is an infinite error; a NaN anywhere in the sample gives NaN, which is below no tolerance.
    """
    rows = expected.rows
    places = (expected.sequences, expected.heads, expected.queries)
    if out.ndim != 4 or out.shape[3] != rows.shape[1]:
        return float("inf")
    # The last sequence, head and query are always in the sample.
    if out.shape[:3] != tuple(int(place.max()) + 1 for place in places):
        return float("inf")
    return row_error(rows, out[places].astype(np.float64))


def row_error(rows: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Return the largest error of `found`, relative to the maximum of each right row; NaN stays."""
    largest = np.abs(rows).max(axis=1)
    largest[largest == 0] = 1  # a row whose keys are all hidden is exactly 0
    return float((np.abs(found - rows).max(axis=1) / largest).max())


def time_call(call: Callable[[], object], budget: float, maximum: int = 1000) -> list[float]:
    """Time `call` again and again, for as nearly `budget` seconds as whole calls allow, and once at least.

    The first call has been made already, by the check: caches are warm and lazy set-up is done.

    Parameters
    ----------
    call : callable
        Runs once, synchronously.
    budget : float
        Seconds.
    maximum : int
        Number of calls.

    Returns
    -------
    list of float
        Seconds of each call.
    """
    times: list[float] = []
    begin = end = time.perf_counter()
    while not times or (len(times) < maximum and end - begin + times[-1] / 2 < budget):
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        times.append(end - start)
    return times


@functools.cache
def process_cores() -> list[int]:
    """Return the cores this process may use, as they were when first asked; [] where the system does not say.

    Asked again, the system would speak of the calling thread alone, which a library may have moved.
    """
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Keep every thread of this process, now and later, on `threads` of its cores; undo it at the end.

    The last of the allowed cores are taken: the first one often serves most interrupts. Threads that another
    library started earlier are moved too, so a row on one thread is a row on one core for all libraries
    alike. Where the system has no such call (macOS), nothing is pinned and an empty list is given.
    """
    allowed = process_cores()
    cores = allowed[-threads:]
    pin(cores)
    try:
        yield cores
    finally:
        pin(allowed)


def pin(cores: Sequence[int]) -> None:
    """Keep every thread that this process has now on `cores`; nothing happens when there are none."""
    if not cores:
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it ended between the listing and now
            continue
