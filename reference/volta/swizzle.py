"""Swizzles: permutations of addresses by XOR, which no layout of strides can express.

Eight lanes that read one column of a row-major matrix meet in one memory bank when rows are a multiple of all
banks long. XOR the column with the row's number, and the column runs diagonally through the banks; every row
still holds its own elements, so nothing is wasted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .layout import Layout, Nested


@dataclass(frozen=True)
class Swizzle:
    """XOR of `bits` bits of an address, which begin at bit base + shift, into those that begin at bit base.

    Its own inverse, hence a permutation.

    Examples
    --------
    >>> swizzle = Swizzle(bits=2, base=0, shift=2)  # in a 4 x 4 matrix: column ^ row
    >>> [[swizzle(4 * row + column) % 4 for column in range(4)] for row in range(4)]
    [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    """

    bits: int
    base: int
    shift: int

    def __post_init__(self) -> None:
        if self.bits < 0 or self.base < 0 or self.shift < self.bits:
            raise ValueError(f"a swizzle needs 0 <= bits <= shift and 0 <= base, got {self}")

    def __call__(self, address: int) -> int:
        """Return the address that takes the place of `address`."""
        return address ^ (address >> self.shift & ((1 << self.bits) - 1) << self.base)


@dataclass(frozen=True)
class Composed:
    """A layout followed by any function of its addresses, say a `Swizzle`.

    Examples
    --------
    >>> swizzled = Composed(Swizzle(2, 0, 2), Layout((4, 4), (4, 1)))
    >>> [swizzled(row, 0) for row in range(4)]  # one column, four banks
    [0, 5, 10, 15]
    """

    outer: Callable[[int], int]
    inner: Layout

    def __call__(self, *coordinate: Nested) -> int:
        """Return the address of a coordinate, given axis by axis, or of an index."""
        return self.outer(self.inner(*coordinate))

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return self.inner.size

    def addresses(self) -> NDArray[np.int64]:
        """Return the addresses of all indices in turn, (size,)."""
        return np.array([self.outer(int(x)) for x in self.inner.addresses()], dtype=np.int64)
