"""Attention over parts of the keys, joined on the device in one launch. The kernel is kernels/09_merge.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .choose import Configuration
from .compile import compiled
from .device import card
from .problem import address, by_value, strides

__all__ = ["MERGE", "MOST_PARTS", "merge"]

#: Parts that one launch joins, at most.
MOST_PARTS = 8

_THREADS = 256
_CHUNK = 8  # elements of a thread
_KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 2}

_ROWS = np.dtype(
    [
        ("out", "<u8"), ("strides", "<i8", (3,)), ("lse", "<u8"), ("lse_strides", "<i8", (3,)),
        ("kind", "<i8"),
    ],
    align=True,
)  # fmt: skip

#: ``struct MergeProblem`` of kernels/09_merge.cu, field by field.
MERGE: np.dtype[Any] = np.dtype(
    [
        *((name, "<i8") for name in ("batch", "heads", "rows", "dim", "parts", "aligned")),
        ("result", _ROWS), ("part", _ROWS, (MOST_PARTS,)),
    ],
    align=True,
)  # fmt: skip

CONFIGURATION = Configuration("09_merge.cu", "merge", (("THREADS", str(_THREADS)),), _THREADS, _THREADS, 1, 0)


def _aligned(array: Any) -> bool:
    steps = array.strides[:3]
    return bool(address(array) % 16 == 0 and all(step % 16 == 0 for step in steps))


_NOTHING = (0, (0, 0, 0), 0, (0, 0, 0), 0)


def _record(rows: Any, sums: Any) -> tuple[Any, ...]:
    """Return ``struct Rows`` of a part or the result."""
    steps = (0, 0, 0) if sums is None else strides(sums)
    return address(rows), strides(rows)[:3], address(sums), steps, _KINDS[rows.dtype]


def merge(outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any = None) -> None:
    """Join attention over disjoint sets of keys, on the current device and stream.

    It checks nothing: `fastattention.merge` validates, and is what people call. No size is 0.

    Parameters
    ----------
    outs : sequence of CuPy array, shape (B, H, S, D)
        1 to 8 parts, each float32, float16 or bfloat16; strides free, the last axis contiguous.
    lses : sequence of CuPy array, shape (B, H, S)
        float32, strides free.
    out : CuPy array, shape (B, H, S, D)
        Filled: of one of these types. It may be one of the parts.
    lse : CuPy array, shape (B, H, S), optional
        float32, filled. None of the parts': all threads of a row read those.

    Raises
    ------
    RuntimeError
        The kernel cannot be compiled.
    """
    kernel = compiled(CONFIGURATION, card())
    batch, heads, rows, dim = out.shape
    aligned = dim % _CHUNK == 0 and all(map(_aligned, (*outs, out)))
    # One tuple in one go: each assignment to a field is a call of NumPy's.
    parts = [_record(part, sums) for part, sums in zip(outs, lses, strict=True)]
    parts += [_NOTHING] * (MOST_PARTS - len(parts))
    filled = np.array((batch, heads, rows, dim, len(outs), aligned, _record(out, lse), parts), MERGE)
    chunks = -(-dim // _CHUNK)
    blocks = -(-batch * heads * rows * chunks // _THREADS)
    kernel.function((blocks,), (_THREADS,), (by_value(filled),))
