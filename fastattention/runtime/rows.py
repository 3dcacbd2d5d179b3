"""Rows of a `KVCache` as the runtime moves them: planes that copies fill, past `append`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cache import KVCache

__all__ = ["fill", "plane_shapes", "rows_of"]


def rows_of(cache: KVCache) -> tuple[Any, ...]:
    """Return a contiguous cache's planes (B, Hkv, capacity, ...): keys, values, and int8's scales of both."""
    return tuple(cache._storage.planes)


def fill(cache: KVCache, tokens: int) -> None:
    """Say that the first so many rows of every sequence hold something now."""
    cache._set_lengths(np.full(len(cache._lengths), tokens, np.int64))


def plane_shapes(
    batch: int, kv_heads: int, head_dim: int, dtype: np.dtype[Any], tokens: int
) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shapes and dtypes of the planes that hold so many tokens of each sequence."""
    lead = (batch, kv_heads, tokens)
    planes: list[tuple[tuple[int, ...], np.dtype[Any]]] = [((*lead, head_dim), dtype)] * 2
    if dtype == np.int8:
        planes += [(lead, np.dtype(np.float32))] * 2
    return planes
