"""One attention problem as the kernels take it: the NumPy dtype that mirrors ``kernels/problem.cuh``.

A structured scalar of it is passed to a kernel by value. Arrays are CuPy's or, for the small ones, addresses:
nothing here needs CuPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MASK_BOOL", "MASK_FLOAT32", "MASK_NONE", "PROBLEM", "address", "divider", "fill", "strides"]

MASK_NONE, MASK_BOOL, MASK_FLOAT32 = range(3)


def _fields() -> list[tuple[Any, ...]]:
    number, pointer, steps = "<i8", "<u8", ("<i8", (3,))
    return [
        *((name, number) for name in ("batch", "q_heads", "kv_heads", "q_len", "k_len", "head_dim", "v_dim")),
        *((name, pointer) for name in ("q", "k", "v", "out", "lse")),
        *((f"{name}_strides", *steps) for name in ("q", "k", "v", "out", "lse")),
        ("k_scales", pointer), ("v_scales", pointer),
        ("k_scale_strides", *steps), ("v_scale_strides", *steps),
        ("block_table", pointer), ("block_table_stride", number), ("page_size", number),
        *((name, pointer) for name in ("cu_seqlens_q", "cu_seqlens_k", "kv_lengths", "q_offsets")),
        ("window_left", number), ("window_right", number),
        ("mask", pointer), ("mask_strides", "<i8", (4,)), ("mask_kind", number),
        ("alibi_slopes", pointer), ("alibi_batch_stride", number), ("sinks", pointer),
        ("parts", pointer), ("splits", number), ("key_split", number),
        ("scale", "<f4"), ("softcap", "<f4"),
        ("group", "<i4"), ("group_shift", "<i4"), ("page_shift", "<i4"),
        ("group_multiplier", "<u4"), ("page_multiplier", "<u4"),
    ]  # fmt: skip


#: ``struct Problem`` of kernels/problem.cuh, field by field.
PROBLEM: np.dtype[Any] = np.dtype(_fields(), align=True)


def address(array: Any) -> int:
    """Return where a device array begins; 0 for None."""
    return 0 if array is None else int(array.data.ptr)


def strides(array: Any) -> tuple[int, ...]:
    """Return an array's strides in elements; 0 along an axis of one element, where they mean nothing."""
    size = array.dtype.itemsize
    return tuple(0 if n == 1 else step // size for n, step in zip(array.shape, array.strides, strict=True))


def divider(n: int) -> tuple[int, int]:
    """Return a multiplier and a shift that divide by `n`: ``x // n == (x * multiplier >> 32) >> shift``.

    For x from 0 to 2**31 - 1 and n from 2 on; kernels take 1 by itself, whose multiplier has no 32 bits.

    Notes
    -----
    With ``multiplier * n = 2**(32 + shift) + e`` and ``e < n <= 2**(1 + shift)``, the product exceeds
    ``x / n`` by ``x * e / (n * 2**(32 + shift))``: less than ``1 / n`` while x is below ``2**31``, so that it
    never reaches the next integer (Granlund and Montgomery, "Division by Invariant Integers using
    Multiplication", 1994).

    Examples
    --------
    >>> multiplier, shift = divider(7)
    >>> [(x * multiplier >> 32) >> shift for x in (6, 7, 13, 14, 2**31 - 1)]
    [0, 1, 1, 2, 306783378]
    """
    if n == 1:
        return 0, 0
    shift = (n - 1).bit_length() - 1
    return -(-(1 << (32 + shift)) // n), shift


def fill(
    q: Any, k: Any, v: Any, out: Any, lse: Any, *, scale: float, softcap: float, window_left: int,
    window_right: int, mask: Any, k_scales: Any, v_scales: Any, page_size: int, max_seqlen_q: int,
    max_seqlen_k: int, sequences: int | None, slopes_per_batch: bool, small: dict[str, int],
    block_table_stride: int,
) -> NDArray[Any]:  # fmt: skip
    """Return the problem as an array of no axes, of dtype `PROBLEM`.

    Parameters
    ----------
    q, k, v, out, lse, mask, k_scales, v_scales
        Device arrays, as `gpu.attention` takes them.
    scale, softcap, window_left, window_right, page_size, max_seqlen_q, max_seqlen_k
        As there.
    sequences : int or None
        How many sequences are packed; None: none is.
    slopes_per_batch : bool
        Whether there are ALiBi slopes for each sequence.
    small : dict of int
        Where the small arrays lie on the device, by the name of their field.
    block_table_stride : int
        Entries from one sequence's pages to the next one's.
    """
    filled = np.zeros((), PROBLEM)
    if sequences is None:
        filled["batch"], filled["q_heads"], filled["q_len"], filled["head_dim"] = q.shape
        filled["kv_heads"], filled["k_len"], filled["v_dim"] = v.shape[1:]
        if "block_table" in small:
            filled["k_len"] = max_seqlen_k
        for name, array in (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)):
            if array is not None:
                filled[f"{name}_strides"] = strides(array)[:3]
    else:
        filled["batch"], filled["q_len"], filled["k_len"] = sequences, max_seqlen_q, max_seqlen_k
        _, filled["q_heads"], filled["head_dim"] = q.shape
        _, filled["kv_heads"], filled["v_dim"] = v.shape
        for name, array in (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)):
            if array is not None:
                row, head = strides(array)[:2]
                filled[f"{name}_strides"] = (0, head, row)
    for name, array in (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse), ("mask", mask)):
        filled[name] = address(array)
    if mask is not None:
        filled["mask_strides"] = strides(mask)
        filled["mask_kind"] = MASK_BOOL if mask.dtype == np.bool_ else MASK_FLOAT32
    if k_scales is not None and v_scales is not None:
        filled["k_scales"], filled["v_scales"] = address(k_scales), address(v_scales)
        filled["k_scale_strides"], filled["v_scale_strides"] = strides(k_scales), strides(v_scales)
    for name, at in small.items():
        filled[name] = at
    filled["block_table_stride"], filled["page_size"] = block_table_stride, page_size
    filled["alibi_batch_stride"] = filled["q_heads"] if slopes_per_batch else 0
    filled["window_left"], filled["window_right"] = window_left, window_right
    filled["scale"], filled["softcap"], filled["splits"] = scale, softcap, 1
    filled["group"] = group = int(filled["q_heads"]) // int(filled["kv_heads"])
    filled["group_multiplier"], filled["group_shift"] = divider(group)
    filled["page_multiplier"], filled["page_shift"] = divider(max(page_size, 1))
    return filled
