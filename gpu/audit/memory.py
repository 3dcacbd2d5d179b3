"""Memories of an emulated kernel: bytes that lanes gather from and scatter to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]


class KernelError(RuntimeError):
    """The kernel did what a GPU would stop it for, or what the emulator does not know."""


class Memory:
    """Bytes at consecutive addresses from `base` on.

    Parameters
    ----------
    size : int
        Bytes.
    base : int
        Address of the first.
    fill : int
        What they hold at first. 0xff makes NaN of whatever is read before it was written.
    """

    def __init__(self, size: int, base: int = 0, fill: int = 0xFF) -> None:
        self.base = base
        self.bytes = np.full(size, fill, np.uint8)

    def _cells(self, addresses: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        first = addresses - self.base
        if np.any(addresses % size):
            raise KernelError(f"misaligned: {size} bytes at {addresses[addresses % size != 0][0]:#x}")
        if np.any((first < 0) | (first + size > self.bytes.size)):
            bad = addresses[(first < 0) | (first + size > self.bytes.size)][0]
            raise KernelError(f"out of bounds: {size} bytes at {bad:#x}")
        cells: NDArray[np.int64] = first[:, None] + np.arange(size)
        return cells

    def gather(self, addresses: NDArray[np.int64], size: int) -> Words:
        """(lanes, size / 4) words; sizes below 4 are extended by zeros."""
        found = self.bytes[self._cells(addresses, size)]
        if size < 4:
            found = np.concatenate([found, np.zeros((len(found), 4 - size), np.uint8)], axis=1)
        return np.ascontiguousarray(found).view(np.uint32)

    def scatter(self, addresses: NDArray[np.int64], words: Words, size: int) -> None:
        """Of (lanes, ...) words, the first `size` bytes each."""
        self.bytes[self._cells(addresses, size)] = np.ascontiguousarray(words).view(np.uint8)[:, :size]


class Heap(Memory):
    """Global memory: arrays laid one behind another, 512 bytes and poison between them."""

    def __init__(self, size: int) -> None:
        super().__init__(size, base=0x7F0000000000)
        self._end = 512

    def place(self, array: NDArray[np.generic]) -> int:
        """Copies an array in; its address."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        at = self._end
        if at + data.size + 512 > self.bytes.size:
            raise ValueError(f"array of {data.size} bytes: the heap of {self.bytes.size} bytes is full")
        self.bytes[at : at + data.size] = data
        self._end = (at + data.size + 1023) // 512 * 512
        return self.base + at

    def read(self, address: int, like: NDArray[np.generic]) -> NDArray[np.generic]:
        """What lies at `address`, in the shape and dtype of `like`."""
        at = address - self.base
        return self.bytes[at : at + like.nbytes].view(like.dtype).reshape(like.shape).copy()
