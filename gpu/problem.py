"""One attention problem as the kernels take it: the NumPy dtype that mirrors ``kernels/problem.cuh``.

A structured scalar of it is passed to a kernel by value. Arrays are CuPy's or, for the small ones, addresses:
nothing here needs CuPy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MASK_BOOL",
    "MASK_FLOAT32",
    "MASK_NONE",
    "PROBLEM",
    "address",
    "by_value",
    "divider",
    "fill",
    "strides",
]

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

_NAMES = PROBLEM.names or ()
_NO_STRIDES = {name: (0,) * PROBLEM[name].shape[0] for name in _NAMES if PROBLEM[name].shape}


def by_value(fields: NDArray[Any]) -> NDArray[Any]:
    """Return an array of fields as bytes, for CuPy to pass to a kernel by value.

    Of an array of fields it asks NumPy for a list of them, at every launch.
    """
    return fields.view(_bytes(fields.dtype.itemsize))


@lru_cache(maxsize=8)
def _bytes(size: int) -> np.dtype[Any]:
    return np.dtype((np.void, size))


def address(array: Any) -> int:
    """Return where a device array begins; 0 for None."""
    return 0 if array is None else int(array.data.ptr)


def strides(array: Any) -> tuple[int, ...]:
    """Return an array's strides in elements; 0 along an axis of one element, where they mean nothing."""
    size = array.dtype.itemsize
    return tuple([0 if n == 1 else step // size for n, step in zip(array.shape, array.strides, strict=True)])


@lru_cache(maxsize=256)
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
    values: dict[str, Any] = dict.fromkeys(_NAMES, 0)
    values.update(_NO_STRIDES)
    tensors = (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse))
    if sequences is None:
        batch, q_heads, q_len, head_dim = q.shape
        _, kv_heads, k_len, v_dim = v.shape
        if "block_table" in small:
            k_len = max_seqlen_k
        for name, array in tensors:
            if array is not None:
                values[name], values[f"{name}_strides"] = address(array), strides(array)[:3]
    else:
        batch, q_len, k_len = sequences, max_seqlen_q, max_seqlen_k
        _, q_heads, head_dim = q.shape
        _, kv_heads, v_dim = v.shape
        for name, array in tensors:
            if array is not None:
                row, head = strides(array)[:2]
                values[name], values[f"{name}_strides"] = address(array), (0, head, row)
    values.update(
        batch=batch, q_heads=q_heads, kv_heads=kv_heads, q_len=q_len, k_len=k_len, head_dim=head_dim,
        v_dim=v_dim, block_table_stride=block_table_stride, page_size=page_size, window_left=window_left,
        window_right=window_right, scale=scale, softcap=softcap, splits=1,
        alibi_batch_stride=q_heads if slopes_per_batch else 0,
    )  # fmt: skip
    if mask is not None:
        values.update(
            mask=address(mask), mask_strides=strides(mask),
            mask_kind=MASK_BOOL if mask.dtype == np.bool_ else MASK_FLOAT32,
        )  # fmt: skip
    if k_scales is not None and v_scales is not None:
        values.update(
            k_scales=address(k_scales), v_scales=address(v_scales), k_scale_strides=strides(k_scales),
            v_scale_strides=strides(v_scales),
        )  # fmt: skip
    values.update(small)
    values["group"] = group = q_heads // kv_heads
    values["group_multiplier"], values["group_shift"] = divider(group)
    values["page_multiplier"], values["page_shift"] = divider(max(page_size, 1))
    return np.array(tuple(values.values()), PROBLEM)  # in one go: each assignment to a field is a call
