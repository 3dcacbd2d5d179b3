"""One piece of registered host memory for the caches of all rows and ways, one after the other.

Making tens of gigabytes of memory known to CUDA takes longer than measuring on them: the system clears each
page first. The ways of a row need the same memory in turn, so it is made once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arena", "Lent"]

_ALIGNMENT = 2**21  # a huge page: each array lies as it would in memory of its own


class Arena:
    """One allocation, lent to devices.

    Arrays are handed out one behind the other. Once all are given back, the next begins at the start again,
    and holds what lay there: it is up to the caller to fill it.

    Parameters
    ----------
    device : Device
        See `fastattention.runtime`.
    nbytes : int
        Of the allocation. Made here.
    """

    def __init__(self, device: Any, nbytes: int) -> None:
        self._device = device
        self._memory: NDArray[np.uint8] | None = device.host_array((nbytes,), np.uint8) if nbytes else None
        self._next = 0
        self._out: set[int] = set()  # addresses of what was handed out

    @property
    def nbytes(self) -> int:
        """Bytes of the allocation."""
        return 0 if self._memory is None else self._memory.nbytes

    def lend(self, device: Any) -> Lent:
        """Return the device, its host arrays being parts of the allocation."""
        return Lent(self, device)

    @property
    def left(self) -> int:
        """Bytes that are not lent."""
        return self.nbytes - self._next

    def take(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any] | None:
        """Return a part, its contents left over from whoever had it before; None where there is no room."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self._memory is None or self._next + nbytes > self._memory.nbytes or not nbytes:
            return None
        part: NDArray[Any] = self._memory[self._next : self._next + nbytes].view(dtype).reshape(shape)
        self._next += math.ceil(nbytes / _ALIGNMENT) * _ALIGNMENT
        self._out.add(part.ctypes.data)
        return part

    def give_back(self, array: NDArray[Any]) -> bool:
        """Take a part back; False where it is none."""
        if array.ctypes.data not in self._out:
            return False
        self._out.remove(array.ctypes.data)
        if not self._out:
            self._next = 0
        return True

    def close(self) -> None:
        """Give the allocation back.

        Raises
        ------
        RuntimeError
            Parts of it are still in use.
        """
        if self._out:
            raise RuntimeError(f"{len(self._out)} arrays of the arena are still in use")
        if self._memory is not None:
            memory, self._memory = self._memory, None
            self._device.free_host(memory)


class Lent:
    """A device whose host arrays are parts of an arena, as far as they fit; else the device itself."""

    def __init__(self, arena: Arena, device: Any) -> None:
        self._arena, self._device = arena, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array in registered host memory, holding whatever was left there."""
        part = self._arena.take(shape, dtype)
        if part is not None:
            return part
        found: NDArray[Any] = self._device.host_array(shape, dtype)
        return found

    def free_host(self, array: NDArray[Any]) -> None:
        """Give back what `host_array` returned."""
        if not self._arena.give_back(array):
            self._device.free_host(array)

    def host_memory(self) -> int:
        """Return the bytes of host memory that `host_array` could still give."""
        left: int = self._device.host_memory()
        return self._arena.left + left
