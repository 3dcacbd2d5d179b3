"""Which key tiles an error comes from.

Attention is linear in the values: the output is the sum, over tiles of keys, of the outputs with all other
values set to 0. So an error is the sum of what each tile adds to it, and each part can be had by itself: call
the kernel, and the reference, with the values of one tile only. Scores and softmax stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .adapters import Adapter
from .check import as_asked, reference
from .tolerances import Problem, tolerances

__all__ = ["HeatMap", "blame"]


@dataclass(frozen=True)
class HeatMap:
    """Errors by tile.

    Attributes
    ----------
    block_q, block_k : int
        Queries and keys in a tile.
    errors : list of list of float
        (query tiles, key tiles): the largest error in the tile, in units of the tolerance of the whole
        output; 1e9 for what is not finite.
    """

    block_q: int
    block_k: int
    errors: list[list[float]]


def blame(adapter: Adapter, problem: Problem, block_q: int = 16, block_k: int = 64) -> HeatMap:
    """Return the error of a failing problem by query tile and key tile.

    Parameters
    ----------
    adapter : Adapter
    problem : Problem
        With at most a few thousand keys: the kernel is called once for each key tile.
    block_q, block_k : int
        The tiles to look at; best the kernel's own.
    """
    asked = as_asked(problem, adapter)
    out, lse = reference(asked)
    dtype = problem.q.dtype.name
    with np.errstate(all="ignore"):
        allowed, _ = tolerances(asked, out, lse, dtype, adapter.accumulation[dtype])
    q_len, k_len = problem.q.shape[2], problem.k.shape[2]
    rows = range(0, q_len, block_q)
    errors = [[0.0] * -(-k_len // block_k) for _ in rows]
    for column, first in enumerate(range(0, k_len, block_k)):
        v = np.zeros_like(problem.v)
        v[:, :, first : first + block_k] = problem.v[:, :, first : first + block_k]
        with np.errstate(all="ignore"):
            try:
                result = adapter.call(replace(problem, v=v))
            except Exception:  # it was called with these sizes before, and says so in the case's own result
                continue
            got = np.asarray(result[0] if isinstance(result, tuple) else result).astype(np.float64)
            expected, _ = reference(replace(asked, v=v))
            off = np.abs(got - expected) / allowed
        off = np.where(np.isfinite(off), off, 1e9)
        for row, start in enumerate(rows):
            part = off[:, :, start : start + block_q]
            errors[row][column] = float(part.max(initial=0.0))
    return HeatMap(block_q, block_k, errors)
