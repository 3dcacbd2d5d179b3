"""A layer's keys and values on a device, and the shapes they are kept in, there and in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Rows", "plane_shapes"]


class Rows:
    """Planes, and how many tokens of each sequence they hold: all sequences have as many.

    A `KVCache` without its questions: whoever fills and reads these has asked them before the first token.

    Parameters
    ----------
    planes : tuple of array, shape (B, Hkv, capacity, ...)
        On a device: keys, values and, of int8, the float32 scales of both.

    Attributes
    ----------
    length : int
        Rows from there on are nobody's.
    """

    __slots__ = ("length", "planes")

    def __init__(self, planes: tuple[Any, ...]) -> None:
        self.planes = planes
        self.length = 0

    @property
    def held(self) -> tuple[Any, ...]:
        """The planes as far as they hold something: views."""
        return tuple([plane[:, :, : self.length] for plane in self.planes])


def plane_shapes(
    batch: int, kv_heads: int, head_dim: int, dtype: np.dtype[Any], tokens: int
) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shapes and dtypes of the planes that hold so many tokens of each sequence."""
    lead = (batch, kv_heads, tokens)
    planes: list[tuple[tuple[int, ...], np.dtype[Any]]] = [((*lead, head_dim), dtype)] * 2
    if dtype == np.int8:
        planes += [(lead, np.dtype(np.float32))] * 2
    return planes
