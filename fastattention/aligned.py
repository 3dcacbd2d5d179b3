"""Arrays that begin at a cache line, which NumPy's own need not, and moving rows from one to another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LINE", "move", "zeros"]

#: Bytes of a cache line, and of the widest vector.
LINE = 64


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros whose first byte begins a cache line.

    NumPy leaves large arrays 16 bytes behind one. Rows of a cache are then split between lines, each vector
    load reads two of them.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype

    Raises
    ------
    MemoryError
        There is no room.
    """
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + LINE, np.uint8)
    skip = -room.ctypes.data % LINE
    return room[skip : skip + size].view(dtype).reshape(shape)


def move(new: NDArray[Any], old: NDArray[Any], index: tuple[slice, ...]) -> None:
    """Copy what `old` holds at `index` to the same place in `new`."""
    new[index] = old[index]
