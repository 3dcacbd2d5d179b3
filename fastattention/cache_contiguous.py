"""A cache's rows one after the other: each sequence has room for as many tokens as the longest one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aligned import move, zeros

__all__ = ["FIRST_CAPACITY", "Contiguous"]

Array = NDArray[Any]

#: Room for this many tokens of each sequence is taken at first; it doubles from there.
FIRST_CAPACITY = 64


class Contiguous:
    """Planes (B, Hkv, capacity, ...): keys, values and, of an int8 cache, the scales of both.

    Rows from a sequence's length on are nobody's: what is written there counts only when the cache
    says that the sequence is longer.

    Parameters
    ----------
    batch, kv_heads : int
    rows : list of (shape, dtype)
        What one token has in each plane and head: ((D,), dtype) for keys, ((), float32) for scales.
    max_length : int
        Most tokens of a sequence.
    """

    __slots__ = ("_heads", "_max_length", "_rows", "planes")

    def __init__(
        self, batch: int, kv_heads: int, rows: list[tuple[tuple[int, ...], np.dtype[Any]]], max_length: int
    ) -> None:
        self._heads = (batch, kv_heads)
        self._rows = rows
        self._max_length = max_length
        self.planes = self._allocate(min(FIRST_CAPACITY, max_length))

    def _allocate(self, capacity: int) -> tuple[Array, ...]:
        # Zeros, not garbage: in a ragged batch, `keys` and `values` show the rows behind a short sequence.
        return tuple(self._zeros((*self._heads, capacity, *shape), dtype) for shape, dtype in self._rows)

    # Where rows lie; on a device: cache_device.py.
    _zeros = staticmethod(zeros)
    _move = staticmethod(move)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(plane.nbytes for plane in self.planes)

    def reserve(self, lengths: Array, longest: int, held: int) -> None:
        """Make room for sequences of `lengths`, the longest `longest`; rows up to `held` hold something now.

        Raises
        ------
        MemoryError
            Nothing has changed.
        """
        capacity = self.planes[0].shape[2]
        if longest <= capacity:
            return
        larger = self._allocate(min(self._max_length, max(longest, 2 * capacity)))
        for new, old in zip(larger, self.planes, strict=True):
            self._move(new, old, (slice(None), slice(None), slice(held)))
        self.planes = larger

    def make_room(self, length: int, held: int) -> None:
        """Make room for `length` tokens of each sequence; rows up to `held` hold something now.

        Raises
        ------
        MemoryError
            Nothing has changed.
        """
        self.reserve(np.empty(0, np.int64), length, held)

    def write_all(self, start: int, count: int, rows: tuple[Array, ...]) -> None:
        """Write the first `count` of `rows` (B, Hkv, S, ...) behind `start` tokens of each sequence."""
        for plane, new in zip(self.planes, rows, strict=True):
            plane[:, :, start : start + count] = new[:, :, :count]

    def write_each(self, starts: Array, counts: Array, rows: tuple[Array, ...]) -> None:
        """Write the first `counts` (B,) of `rows` behind the first `starts` (B,) of each sequence."""
        for b, (start, n) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            for plane, new in zip(self.planes, rows, strict=True):
                plane[b, :, start : start + n] = new[b, :, :n]

    def release(self, lengths: Array) -> None:
        """Sequences are now of `lengths`; their memory is kept for the tokens to come."""
