"""Where the tiles of Q, K, V and P lie in shared memory: the index functions of the kernels.

A tile is rows of 16-byte *chunks* (eight halves). Chunk c of row r would naturally lie at r * chunks + c, but
eight lanes that read one column of eight rows then meet in one bank group whenever `chunks` is a multiple of
eight, as it is for head dimensions 64, 128, 192 and 256. Two ways out, both found by `search`:

* one chunk more a row (`padded`): addresses stay sums, so that a loop's offsets are constants of the
  instruction; it costs 16 bytes a row;
* another column for each row (`swizzled`): chunk ^ gray(row), which costs nothing but an XOR. The Gray code
  r ^ (r >> 1) instead of r itself also serves P, whose rows 0, 1, 4, 5, 8, 9, 12 and 13 are stored at once.

Everything here is integer arithmetic that C++ can hold unchanged. Units are chunks, unless they say bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Int = TypeVar("Int", int, NDArray[np.int64])

CHUNK = 16  # bytes
HALVES = 8  # of a chunk


def padded(row: Int, chunk: Int, chunks: int) -> Int:
    """Return the place of a chunk when rows are an odd number of chunks apart.

    Multiples of an odd number run through all residues modulo 8, so eight rows in a row lie in eight
    different groups of four banks.

    Examples
    --------
    >>> [padded(row, 0, 8) % 8 for row in range(8)]  # D = 64
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return row * (chunks | 1) + chunk


def gray(row: Int, chunks: int) -> Int:
    """Return what a row's chunks are XORed with: bits of its Gray code, as many as stay in the row.

    With chunks = 2^k * odd, k up to 3, rows 2^(3 - k) apart are the first to meet in a bank group, and XOR
    with less than 2^k stays within the row.

    Examples
    --------
    >>> [gray(row, 8) for row in range(8)], [gray(row, 12) for row in range(8)], gray(5, 9)
    ([0, 1, 3, 2, 6, 7, 5, 4], [0, 0, 1, 1, 3, 3, 2, 2], 0)
    """
    power = min(chunks & -chunks, 8)  # 2^k
    return (row ^ row >> 1) * power // 8 & power - 1


def swizzled(row: Int, chunk: Int, chunks: int) -> Int:
    """Return the place of a chunk when each row permutes its own by XOR: no byte is wasted.

    Examples
    --------
    >>> [swizzled(row, 0, 8) % 8 for row in range(8)]
    [0, 1, 3, 2, 6, 7, 5, 4]
    """
    return row * chunks + (chunk ^ gray(row, chunks))


def operand(row: Int, chunk: Int, chunks: int) -> Int:
    """Return the place of a chunk of Q, K or V, `chunks` being the head dimension by 8.

    Padding where it is free of conflicts; where rows are not whole multiples of eight chunks, stores run over
    the ends of padded rows and conflict there, so those swizzle (and an odd number needs nothing at all).
    """
    return padded(row, chunk, chunks) if chunks % 8 == 0 else swizzled(row, chunk, chunks)


def q_index(row: Int, chunk: Int, head_dim: int) -> Int:
    """Return the place of a chunk of Q; `head_dim` is a multiple of 8.

    Examples
    --------
    >>> q_index(3, 2, 128)  # rows are 17 chunks apart
    53
    """
    return operand(row, chunk, head_dim // HALVES)


def k_index(row: Int, chunk: Int, head_dim: int) -> Int:
    """Return the place of a chunk of K: like Q."""
    return operand(row, chunk, head_dim // HALVES)


def v_index(row: Int, chunk: Int, v_dim: int) -> Int:
    """Return the place of a chunk of V: rows as they come, no transpose."""
    return operand(row, chunk, v_dim // HALVES)


def p_index(row: Int, chunk: Int, keys: int) -> Int:
    """Return the place of a chunk of P (rows by keys), where P goes through shared memory.

    Examples
    --------
    >>> sorted(p_index(row, 0, 64) % 8 for row in (0, 1, 4, 5, 8, 9, 12, 13))  # rows stored at once
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return swizzled(row, chunk, keys // HALVES)


@dataclass(frozen=True)
class SharedTile:
    """A tile in shared memory.

    Attributes
    ----------
    name : str
        Q, K, V or P.
    rows, width : int
        Rows, and halves a row (a multiple of 8).
    place : callable
        (row, chunk, chunks) -> place: `operand`, `swizzled`, or a candidate of `search`.
    base : int
        Byte where the tile begins.

    Examples
    --------
    >>> tile = SharedTile("K", rows=64, width=128, place=operand)
    >>> tile.bytes, tile.wasted  # 64 rows of 17 chunks, the last without its padding
    (17392, 1008)
    >>> tile.address(np.array([1]), np.array([2]), half=4).tolist()
    [312]
    """

    name: str
    rows: int
    width: int
    place: Callable[[NDArray[np.int64], NDArray[np.int64], int], NDArray[np.int64]]
    base: int = 0

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return self.width // HALVES

    def address(
        self, row: NDArray[np.int64], chunk: NDArray[np.int64], half: int | NDArray[np.int64] = 0
    ) -> NDArray[np.int64]:
        """Return the byte addresses of elements `half` (0 to 7) of chunks."""
        return np.asarray(self.base + CHUNK * self.place(row, chunk, self.chunks) + 2 * half)

    @property
    def places(self) -> NDArray[np.int64]:
        """The place of every chunk, (rows, chunks)."""
        row, chunk = np.indices((self.rows, self.chunks))
        return np.asarray(self.place(row, chunk, self.chunks))

    @property
    def bytes(self) -> int:
        """Bytes from the first to the last chunk."""
        return CHUNK * (int(self.places.max(initial=-1)) + 1)

    @property
    def wasted(self) -> int:
        """Bytes in between that hold nothing."""
        return self.bytes - CHUNK * self.rows * self.chunks
