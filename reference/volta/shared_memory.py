"""Shared memory in NumPy: loads, stores and ldmatrix of a warp, every access on record.

Each access is 32 byte addresses and a width. What it reads or writes is plain; what it costs is counted by
`bank_conflicts` as it happens, tile by tile, and kept together with the other counts of a kernel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bank_conflicts import ideal, wavefronts
from .fragments import FRAGMENTS, LANES, distribute


class Access(NamedTuple):
    """One access of a warp to shared memory."""

    tile: str  # whose: Q, K, V or P
    kind: Literal["load", "store"]
    width: int  # bytes a lane
    wavefronts: int  # cycles it takes
    ideal: int  # cycles without conflicts


@dataclass
class Counts:
    """What a kernel did, over all its warps.

    Attributes
    ----------
    mma : int
        Matrix instructions. In machine code m8n8k4 with float32 sums is four: HMMA.884 STEP0 to STEP3.
    shuffles : int
        Shuffles of one 32-bit register each.
    accesses : Counter
        Accesses to shared memory by kind; see `Access`.
    """

    mma: int = 0
    shuffles: int = 0
    accesses: Counter[Access] = field(default_factory=Counter)

    def wavefronts(self, tile: str | None = None, kind: str | None = None) -> int:
        """Return the cycles of shared memory, of one tile or kind of access or of all."""
        return sum(n * a.wavefronts for a, n in self._of(tile, kind))

    def ideal(self, tile: str | None = None, kind: str | None = None) -> int:
        """Return the same had there been no conflict."""
        return sum(n * a.ideal for a, n in self._of(tile, kind))

    def instructions(self, tile: str | None = None, kind: str | None = None) -> int:
        """Return how many accesses there were: LDS and STS in machine code."""
        return sum(n for _, n in self._of(tile, kind))

    def _of(self, tile: str | None, kind: str | None) -> list[tuple[Access, int]]:
        return [(a, n) for a, n in self.accesses.items() if tile in (None, a.tile) and kind in (None, a.kind)]


@dataclass
class SharedMemory:
    """The shared memory of a CTA: bytes that all its warps read and write, every access on record.

    Examples
    --------
    >>> shared, lane = SharedMemory(1024), np.arange(32)
    >>> shared.store("Q", 16 * lane, np.tile(lane[:, None], 8).astype(np.float16))  # 16 bytes a lane
    >>> shared.load("Q", 128 * (lane % 8), 8)[1].tolist()  # rows of 128 bytes: eight words of one bank
    [8.0, 8.0, 8.0, 8.0]
    >>> shared.counts.wavefronts(kind="store"), shared.counts.wavefronts(kind="load")
    (4, 16)
    """

    size: int
    counts: Counts = field(default_factory=Counts)
    merging: bool = False  # see `bank_conflicts`

    def __post_init__(self) -> None:
        self._bytes = np.full(self.size, 0xFF, np.uint8)  # NaN: what was never stored must not be read

    def store(
        self,
        tile: str,
        addresses: NDArray[np.int64],
        values: np.ndarray,
        active: NDArray[np.bool_] | None = None,
    ) -> None:
        """Store each lane's row of `values` (32, n) at its address, in lanes that are active."""
        width = values.shape[1] * values.itemsize
        on = self._record(tile, "store", addresses, width, active)
        where = addresses[on, None] + np.arange(width)
        self._bytes[where] = np.ascontiguousarray(values[on]).view(np.uint8).reshape(-1, width)

    def load(
        self, tile: str, addresses: NDArray[np.int64], width: int, dtype: Any = np.float16
    ) -> np.ndarray:
        """Return `width` bytes from each lane's address as (32, width / itemsize) of `dtype`."""
        self._record(tile, "load", addresses, width, None)
        return np.asarray(self._bytes[addresses[:, None] + np.arange(width)].view(dtype))

    def ldmatrix(
        self, tile: str, addresses: NDArray[np.int64], matrices: int = 4, *, trans: bool = False
    ) -> np.ndarray:
        """Load 1, 2 or 4 matrices of 8 x 8 halves; lane i's address is that of row i % 8 of matrix i / 8.

        Returns
        -------
        ndarray of float16
            (32, 2 * matrices): each lane's two elements of each matrix, by the map `fragments.ldmatrix`, or
            `ldmatrix_trans` with `trans`. Addresses of lanes beyond 8 * matrices are not looked at.
        """
        if matrices not in (1, 2, 4):
            raise ValueError(f"matrices must be 1, 2 or 4, got {matrices}")
        self._record(tile, "load", addresses, 16, np.arange(LANES) < 8 * matrices)
        rows = self._bytes[addresses[: 8 * matrices, None] + np.arange(16)].view(np.float16)
        fragment = FRAGMENTS["ldmatrix trans" if trans else "ldmatrix"]
        return np.hstack([distribute(m, fragment) for m in rows.reshape(matrices, 8, 8)])

    def _record(
        self,
        tile: str,
        kind: Literal["load", "store"],
        addresses: NDArray[np.int64],
        width: int,
        active: NDArray[np.bool_] | None,
    ) -> NDArray[np.bool_]:
        on = np.ones(LANES, np.bool_) if active is None else active
        if addresses[on].size and not 0 <= addresses[on].min() <= addresses[on].max() <= self.size - width:
            raise IndexError(f"{kind} of {tile}: addresses {addresses[on]} leave the {self.size} bytes")
        took = wavefronts(addresses, width, active=active, merging=self.merging)
        self.counts.accesses[Access(tile, kind, width, took, ideal(width, active=active))] += 1
        return on
