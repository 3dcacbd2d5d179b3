"""What a cache is asked to append: checked, and rounded to 8 bits where that is how it keeps rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cpu_kernels
from .arguments import host_operand, operand, usable
from .device import check_aligned, on_device
from .validate import KERNEL_DTYPES

__all__ = ["FLOAT32", "INT8", "incoming", "quantized", "storage_dtype", "token_counts"]

Array = NDArray[Any]

FLOAT32 = np.dtype(np.float32)
INT8 = np.dtype(np.int8)


def storage_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that a cache keeps keys and values in, or raise naming `dtype`."""
    expected = "expected float32, float16, bfloat16 or int8"
    try:
        stored: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: {expected}, got {dtype!r}") from error
    if dtype is None or not (stored in KERNEL_DTYPES or stored == INT8):
        raise TypeError(f"dtype: {expected} in native byte order, got {dtype!r}")
    return stored


def incoming(
    x: Any, name: str, kind: str, dtype: np.dtype[Any], batch: int, kv_heads: int, dim: int
) -> Array:
    """Return new keys or values (B, Hkv, S, D) for a cache that keeps `dtype`; a CuPy array on a device."""
    array: Array = operand(x, name, kind)
    if not (array.dtype in KERNEL_DTYPES if dtype == INT8 else array.dtype in (dtype, FLOAT32)):
        expected = f"{dtype.name} (the cache's) or float32"
        if dtype == INT8:
            expected = "float32, float16 or bfloat16, to be rounded to int8"
        raise TypeError(f"{name}: expected {expected}, got {array.dtype}")
    shape = array.shape
    if len(shape) != 4 or shape[:2] != (batch, kv_heads) or shape[3] != dim:
        raise ValueError(
            f"{name}: expected shape (B, Hkv, S, D) = ({batch}, {kv_heads}, S, {dim}), got {shape}"
        )
    if on_device(kind) and array.size:
        check_aligned(array, name)
        array = usable(array)
    return array


def token_counts(lengths: Any, kind: str, batch: int, most: int) -> Array:
    """Return how many tokens each sequence takes: int64 (B,), each 0 to `most`."""
    counts = host_operand(lengths, "lengths", kind)
    if counts.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got dtype {counts.dtype}")
    if counts.shape != (batch,):
        raise ValueError(f"lengths: expected shape (B,) = ({batch},), got {counts.shape}")
    if int(counts.min()) < 0 or int(counts.max()) > most:
        raise ValueError(f"lengths: expected 0 to S = {most}, got {int(counts.min())} to {int(counts.max())}")
    result: Array = counts.astype(np.int64)
    return result


def quantized(x: Array, name: str, count: int, counts: Array | None) -> tuple[Array, Array]:
    """Return the first `count` tokens of `x` (B, Hkv, S, D), or `counts` of each, as int8 and scales.

    Tokens that no sequence takes are neither looked at nor filled in.

    Raises
    ------
    ValueError
        A token that is taken holds inf or NaN.
    """
    try:
        if counts is None:
            return cpu_kernels.quantize(usable(x[:, :, :count].astype(np.float32, copy=False)))
        integers, scales = np.empty(x.shape, np.int8), np.empty(x.shape[:3], np.float32)
        for b, n in enumerate(counts.tolist()):
            own = usable(x[b : b + 1, :, :n].astype(np.float32, copy=False))
            (integers[b, :, :n],), (scales[b, :, :n],) = cpu_kernels.quantize(own)
    except ValueError:
        raise ValueError(f"{name}: expected finite numbers for an int8 cache, got inf or NaN") from None
    return integers, scales
