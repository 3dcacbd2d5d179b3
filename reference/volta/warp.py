"""A warp in NumPy: registers, shuffles and matrix instructions.

A register that every lane has is an array with 32 rows, one a lane; instructions are functions from such
arrays to such arrays, and no lane sees another's registers but through them. So code written with them is a
kernel, slow but exact, and what it does can be counted.

Tensor cores multiply float16 exactly and add in float32; here NumPy's float32 does. The hardware's own order
of adding, and that it truncates where NumPy rounds, are not modelled: results agree to float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import fragments
from .fragments import FRAGMENTS, LANES, collect, distribute
from .shared_memory import Counts, SharedMemory

Order = Literal["row", "col"]


def mma_m8n8k4(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, *, a_order: Order = "row", b_order: Order = "col"
) -> np.ndarray:
    """Return D = A B + C of four quad-pairs, each with its own 8 x 4, 4 x 8 and 8 x 8 matrices.

    Parameters
    ----------
    a, b : ndarray of float16
        (32, 4) each.
    c : ndarray of float32 or float16
        (32, 8); D is of the same type, in the fragment of that type.
    a_order, b_order : {"row", "col"}
        The instruction's layouts: ``mma.sync.aligned.m8n8k4.row.col`` by default.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A, B = rng.integers(-4, 5, (4, 8, 4)), rng.integers(-4, 5, (4, 4, 8))
    >>> a = distribute(A.astype(np.float16), FRAGMENTS["m8n8k4 A row"])
    >>> b = distribute(B.astype(np.float16), FRAGMENTS["m8n8k4 B col"])
    >>> d = mma_m8n8k4(a, b, np.zeros((32, 8), np.float32))
    >>> bool((collect(d, FRAGMENTS["m8n8k4 C f32"]) == A @ B).all())  # four products, one a quad-pair
    True
    """
    c_name = "m8n8k4 C f16" if c.dtype == np.float16 else "m8n8k4 C f32"
    return _mma(a, b, c, f"m8n8k4 A {a_order}", f"m8n8k4 B {b_order}", c_name)


def mma_m16n8k8(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return D = A B + C of a warp on Turing: float16 (32, 4) and (32, 2), float32 (32, 4)."""
    return _mma(a, b, c, "m16n8k8 A", "m16n8k8 B", "m16n8 C")


def mma_m16n8k16(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return D = A B + C of a warp on Ampere: float16 (32, 8) and (32, 4), float32 (32, 4)."""
    return _mma(a, b, c, "m16n8k16 A", "m16n8k16 B", "m16n8 C")


def _mma(a: np.ndarray, b: np.ndarray, c: np.ndarray, a_name: str, b_name: str, c_name: str) -> np.ndarray:
    if a.dtype != np.float16 or b.dtype != np.float16 or c.dtype not in (np.float16, np.float32):
        raise TypeError(f"mma takes float16, float16 and an accumulator, got {a.dtype}, {b.dtype}, {c.dtype}")
    A, B, C = (collect(x, FRAGMENTS[name]) for x, name in ((a, a_name), (b, b_name), (c, c_name)))
    with np.errstate(over="ignore", invalid="ignore"):  # infinities go in and out as IEEE 754 says
        D = A.astype(np.float32) @ B.astype(np.float32) + C.astype(np.float32)
        return distribute(D.astype(c.dtype), FRAGMENTS[c_name])


def shfl_xor(x: np.ndarray, mask: int) -> np.ndarray:
    """Return what lane n ^ mask holds, for each lane n: ``__shfl_xor_sync``. x: (32, ...).

    Examples
    --------
    >>> shfl_xor(np.arange(32), 2)[:8].tolist()
    [2, 3, 0, 1, 6, 7, 4, 5]
    """
    return np.asarray(x[np.arange(LANES) ^ mask])


@dataclass
class Warp:
    """32 lanes: the instructions above, counted, and the lanes' numbers.

    Examples
    --------
    >>> warp = Warp(SharedMemory(0))
    >>> _ = warp.shfl_xor(np.zeros((32, 2), np.float16), 2)  # a pair of halves is one register
    >>> warp.counts.shuffles
    1
    """

    shared: SharedMemory

    def __post_init__(self) -> None:
        self.lane = np.arange(LANES)
        self.quad_pair = fragments.quad_pair(self.lane)
        self.quad_lane = fragments.quad_lane(self.lane)

    @property
    def counts(self) -> Counts:
        """Shared with all warps of the CTA."""
        return self.shared.counts

    def mma_m8n8k4(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, b_order: Order = "col") -> np.ndarray:
        """`mma_m8n8k4` with A by rows, counted."""
        self.counts.mma += 1
        return mma_m8n8k4(a, b, c, b_order=b_order)

    def mma_m16n8k8(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """`mma_m16n8k8`, counted."""
        self.counts.mma += 1
        return mma_m16n8k8(a, b, c)

    def mma_m16n8k16(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """`mma_m16n8k16`, counted."""
        self.counts.mma += 1
        return mma_m16n8k16(a, b, c)

    def shfl_xor(self, x: np.ndarray, mask: int) -> np.ndarray:
        """`shfl_xor`, counted: one for each 32 bits of a lane."""
        self.counts.shuffles += x[0].size * x.itemsize // 4
        return shfl_xor(x, mask)
