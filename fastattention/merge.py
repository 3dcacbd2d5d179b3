"""Attention over parts of the keys, joined: the second step of FlashDecoding, for whoever holds the parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from . import gpu
from .arguments import operand
from .arrays import BFLOAT16, cuda_kind, from_numpy, to_array
from .device import empty, scope, to_caller

__all__ = ["merge"]


def merge(parts: Iterable[tuple[Any, Any]]) -> tuple[Any, Any]:
    r"""Merge attention over disjoint sets of keys into attention over all of them.

    Parameters
    ----------
    parts : iterable of (out, lse)
        What ``attention(..., return_lse=True)`` or ``attention_varlen(..., return_lse=True)`` returned for
        the same queries and different keys. All `out` have one shape and dtype (float32, float16, bfloat16 or
        float64); all `lse` have that shape without the last axis, and one dtype, float32 or float64. At least
        one part.

    Returns
    -------
    out : array
        Shape, dtype and kind of the parts'.
    lse : array
        Likewise: ``log(sum(exp(lse)))`` over the parts.

    Raises
    ------
    TypeError
        A part is no pair of arrays, or kinds or dtypes differ.
    ValueError
        There is no part, shapes differ, or int64 does not count the bytes of the result.

    Notes
    -----
    Softmax over a union is the average of the softmaxes over its sets, weighted by ``exp(lse)``
    (FlashDecoding's second step; "Online normalizer calculation for softmax", arXiv:1805.02867, section 3.1,
    shows why order does not matter). The computation is in float32, in float64 where an input is. A part in
    which a query sees no key has ``lse = -inf`` and no weight; a query that sees none in any part gets 0 and
    -inf. Sinks belong to one part only, one whose keys every query sees: each part adds them to its
    denominator.

    Examples
    --------
    >>> import numpy as np
    >>> import fastattention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 1, 6, 8)).astype(np.float32)
    >>> left = fastattention.attention(q, k[:, :, :2], v[:, :, :2], return_lse=True)
    >>> right = fastattention.attention(q, k[:, :, 2:], v[:, :, 2:], return_lse=True)
    >>> whole, _ = fastattention.merge([left, right])
    >>> bool(np.allclose(whole, fastattention.attention(q, k, v), atol=1e-5))
    True
    """
    # An array would be taken apart, row by row, however many there are.
    if isinstance(parts, np.ndarray) or not isinstance(parts, Iterable):
        raise TypeError(f"parts: expected pairs (out, lse), got {type(parts).__name__}")
    parts = list(parts)
    first = parts[0][0] if parts and isinstance(parts[0], (tuple, list)) and parts[0] else None
    if kind := cuda_kind(first, "parts[0] out"):
        with scope(kind):
            return _merge(*_checked(parts))
    return _merge(*_checked(parts))


def _checked(parts: list[Any]) -> tuple[list[Any], list[Any], str]:
    """Return the outs and the lses as arrays, and their kind, or raise the error that names a part."""
    outs: list[Any] = []
    lses: list[Any] = []
    kind = ""
    for n, part in enumerate(parts):
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise TypeError(f"parts[{n}]: expected a pair (out, lse), got {type(part).__name__}")
        if n == 0:
            _, kind = to_array(part[0], "parts[0] out")
        out, lse = operand(part[0], f"parts[{n}] out", kind), operand(part[1], f"parts[{n}] lse", kind)
        if out.dtype.kind != "f" and out.dtype != BFLOAT16:
            raise TypeError(f"parts[{n}] out: expected a floating dtype, got {out.dtype}")
        if lse.dtype not in (np.float32, np.float64):
            raise TypeError(f"parts[{n}] lse: expected float32 or float64, got {lse.dtype}")
        if out.ndim == 0 or lse.shape != out.shape[:-1]:
            raise ValueError(
                f"parts[{n}] lse: expected out's shape {out.shape} without its last axis, got {lse.shape}"
            )
        # In bytes of the widest type: the result may be wider than the parts.
        if 8 * out.size > np.iinfo(np.int64).max:
            raise ValueError(f"parts[{n}] out: sizes {out.shape} multiply to more than int64 holds")
        outs.append(out)
        lses.append(lse)
        if out.shape != outs[0].shape:
            raise ValueError(
                f"parts[{n}] out: expected the shape of parts[0], {outs[0].shape}, got {out.shape}"
            )
        if (out.dtype, lse.dtype) != (outs[0].dtype, lses[0].dtype):
            raise TypeError(
                f"parts[{n}]: expected the dtypes of parts[0], {outs[0].dtype} and {lses[0].dtype}, "
                f"got {out.dtype} and {lse.dtype}"
            )
    if not outs:
        raise ValueError("parts: expected at least one (out, lse), got none")
    return outs, lses, kind


def _on_device(outs: list[Any], lses: list[Any], kind: str) -> tuple[Any, Any]:
    """Merge CuPy arrays by the GPU's kernel, eight parts at a time."""
    dtype, shape = outs[0].dtype, outs[0].shape
    # Four axes, of which the first are 1 where there are fewer, and one where there are more.
    outs = [_four(out) for out in outs]
    lses = [_four(lse[..., None])[..., 0] for lse in lses]
    while True:
        first, rest = outs[: gpu.MOST_PARTS], outs[gpu.MOST_PARTS :]
        # What is merged again is not rounded before.
        merged = empty(outs[0].shape, dtype if not rest else np.dtype(np.float32), kind, "out")
        total = empty(lses[0].shape, np.dtype(np.float32), kind, "lse")
        gpu.merge(first, lses[: gpu.MOST_PARTS], merged, total)
        outs, lses = [merged, *rest], [total, *lses[gpu.MOST_PARTS :]]
        if not rest:
            return to_caller(merged.reshape(shape), kind), to_caller(total.reshape(shape[:-1]), kind)


def _rows(out: Any) -> Any:
    """Return an array whose rows lie without gaps, the array itself where they do."""
    return out if out.shape[-1] == 1 or out.strides[-1] == out.itemsize else out.copy()


def _four(array: Any) -> Any:
    if array.ndim > 4:
        array = array.reshape(-1, *array.shape[-3:])
    return array[(None,) * (4 - array.ndim)]


def _merge(outs: list[Any], lses: list[Any], kind: str) -> tuple[Any, Any]:
    host = isinstance(outs[0], np.ndarray)
    if not host and outs[0].size and outs[0].dtype != np.float64 and lses[0].dtype == np.float32:
        return _on_device([_rows(out) for out in outs], lses, kind)
    xp, convert = (np, from_numpy) if host else (gpu.load_cupy(), to_caller)
    wide = np.result_type(
        np.float32, lses[0].dtype, np.float64 if outs[0].dtype == np.float64 else np.float32
    )
    stacked = xp.stack([lse.astype(wide, copy=False) for lse in lses])
    peak = stacked.max(axis=0)
    # Where no part has a key the peak is -inf; shifting by 0 instead keeps every weight at exp(-inf) = 0.
    shift = xp.where(xp.isneginf(peak), wide.type(0), peak)
    # An infinite or NaN lse, or number that has weight, gives infinity or NaN; log(0) is the -inf meant.
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = xp.exp(stacked - shift)
        total = weights.sum(axis=0)
        merged_lse = shift + xp.log(total)
        weights /= xp.where(total == 0, wide.type(1), total)
        merged = xp.zeros(outs[0].shape, wide)
        for out, weight in zip(outs, weights, strict=True):
            # A part without weight contributes nothing, whatever its rows hold.
            term = out.astype(wide, copy=False) * weight[..., None]
            merged += xp.where(weight[..., None] != 0, term, wide.type(0))
    return (
        convert(merged.astype(outs[0].dtype, copy=False), kind),
        convert(merged_lse.astype(lses[0].dtype, copy=False), kind),
    )
