"""Which lane holds which element: the fragment maps of the tensor cores' instructions.

A warp's matrix product takes its operands from registers. Element (row, column) of a matrix lives in one
register i of one lane, and the map (lane, i) -> (row, column) is fixed by the instruction. Volta's m8n8k4 is
four products at once, each by a *quad-pair* of lanes (0-3 with 16-19, 4-7 with 20-23, ...); Turing's m16n8k8
and Ampere's m16n8k16 are one product by the whole warp. `ldmatrix` (Turing on) loads 8 x 8 matrices so that
they arrive in these maps.

Each map is a plain function of integers or of arrays of them, and a `Fragment` collects what one needs to use
it. Those of m8n8k4 are also written as layouts (`LAYOUTS`): in CuTe's notation they fit in a line.
Source: PTX ISA, "Matrix Fragments for mma.m8n8k4 / .m16n8k8 / .m16n8k16" and "ldmatrix".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .layout import Layout

LANES = 32
Int = TypeVar("Int", int, NDArray[np.int64])


def quad_pair(lane: Int) -> Int:
    """Return the quad-pair of a lane, 0 to 3.

    Examples
    --------
    >>> [lane for lane in range(32) if quad_pair(lane) == 1]
    [4, 5, 6, 7, 20, 21, 22, 23]
    """
    return lane >> 2 & 3


def quad_lane(lane: Int) -> Int:
    """Return a lane's number t within its quad-pair, 0 to 7.

    Examples
    --------
    >>> [quad_lane(lane) for lane in (4, 5, 6, 7, 20, 21, 22, 23)]
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return (lane & 3) + 4 * (lane >> 4)


def m8n8k4_a_row(lane: Int, i: Int) -> tuple[Int, Int]:
    """A (8 x 4), stored by rows: a lane holds one row. i = 0..3."""
    return quad_lane(lane), i


def m8n8k4_a_col(lane: Int, i: Int) -> tuple[Int, Int]:
    """A (8 x 4), stored by columns: a lane holds four rows of a column. i = 0..3."""
    t = quad_lane(lane)
    return 4 * (t >> 2) + i, t & 3


def m8n8k4_b_col(lane: Int, i: Int) -> tuple[Int, Int]:
    """B (4 x 8), stored by columns: a lane holds one column. For Q K^T that is a row of K. i = 0..3."""
    return i, quad_lane(lane)


def m8n8k4_b_row(lane: Int, i: Int) -> tuple[Int, Int]:
    """B (4 x 8), stored by rows: a lane holds four columns of a row. For P V that is a row of V. i = 0..3."""
    t = quad_lane(lane)
    return t & 3, 4 * (t >> 2) + i


def m8n8k4_c_f32(lane: Int, i: Int) -> tuple[Int, Int]:
    """C and D (8 x 8) in float32: two rows and four columns of each in a lane. i = 0..7.

    Lanes that differ in bit 1 share their rows: what one lacks of a row, the other holds.

    Examples
    --------
    >>> [m8n8k4_c_f32(0, i) for i in range(8)]
    [(0, 0), (0, 1), (2, 0), (2, 1), (0, 4), (0, 5), (2, 4), (2, 5)]
    >>> [m8n8k4_c_f32(2, i) for i in (0, 1, 4, 5)]
    [(0, 2), (0, 3), (0, 6), (0, 7)]
    """
    return (lane & 1) + (i & 2) + 4 * (lane >> 4), (lane & 2) + (i & 1) + (i & 4)


def m8n8k4_c_f16(lane: Int, i: Int) -> tuple[Int, Int]:
    """C and D (8 x 8) in float16: a lane holds one row, which is already an A by rows. i = 0..7."""
    return quad_lane(lane), i


def m16n8k8_a(lane: Int, i: Int) -> tuple[Int, Int]:
    """A (16 x 8) by rows: pairs of neighbours, rows 8 apart. i = 0..3."""
    return (lane >> 2) + 8 * (i >> 1), 2 * (lane & 3) + (i & 1)


def m16n8k8_b(lane: Int, i: Int) -> tuple[Int, Int]:
    """B (8 x 8) by columns. i = 0..1."""
    return 2 * (lane & 3) + i, lane >> 2


def m16n8k16_a(lane: Int, i: Int) -> tuple[Int, Int]:
    """A (16 x 16) by rows: two of m16n8k8, the second for columns 8 to 15. i = 0..7."""
    return (lane >> 2) + 8 * (i >> 1 & 1), 2 * (lane & 3) + (i & 1) + 8 * (i >> 2)


def m16n8k16_b(lane: Int, i: Int) -> tuple[Int, Int]:
    """B (16 x 8) by columns: two of m16n8k8, the second for rows 8 to 15. i = 0..3."""
    return 2 * (lane & 3) + (i & 1) + 8 * (i >> 1), lane >> 2


def m16n8_c(lane: Int, i: Int) -> tuple[Int, Int]:
    """C and D (16 x 8) of both in float32: the map of m16n8k8's A, hence no shuffle from P to A. i = 0..3."""
    return (lane >> 2) + 8 * (i >> 1), 2 * (lane & 3) + (i & 1)


def ldmatrix(lane: Int, i: Int) -> tuple[Int, Int]:
    """Return what `ldmatrix` leaves of one 8 x 8 matrix in a lane: two neighbours of a row. i = 0..1."""
    return lane >> 2, 2 * (lane & 3) + i


def ldmatrix_trans(lane: Int, i: Int) -> tuple[Int, Int]:
    """Return the same for `ldmatrix.trans`: two neighbours of a column. i = 0..1."""
    return 2 * (lane & 3) + i, lane >> 2


def ldmatrix_row(lane: Int) -> tuple[Int, Int]:
    """Return (matrix, row) whose address `lane` gives to `ldmatrix`; it loads 1, 2 or 4 matrices."""
    return lane >> 3, lane & 7


@dataclass(frozen=True, eq=False)
class Fragment:
    """A matrix spread over the registers of a warp.

    Attributes
    ----------
    place : callable
        (lane, i) -> (row, column), one of the maps above.
    registers : int
        Elements a lane, i = 0 to registers - 1.
    shape : (int, int)
        Rows and columns of a matrix.
    matrices : int
        4 when each quad-pair has its own, else 1.

    Examples
    --------
    >>> fragment = FRAGMENTS["m8n8k4 A row"]
    >>> fragment.rows.shape, int(fragment.rows[17, 2]), int(fragment.columns[17, 2])
    ((32, 4), 5, 2)
    """

    place: Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]]
    registers: int
    shape: tuple[int, int]
    matrices: int

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """Which matrix a lane works on, (32, 1)."""
        lane = np.arange(LANES)[:, None]
        return quad_pair(lane) if self.matrices == 4 else 0 * lane

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Row of each register, (32, registers)."""
        return self._all()[0]

    @cached_property
    def columns(self) -> NDArray[np.int64]:
        """Column of each register, (32, registers)."""
        return self._all()[1]

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lane, i = np.arange(LANES)[:, None], np.arange(self.registers)[None, :]
        rows, columns = self.place(lane, i)
        shape = (LANES, self.registers)
        return np.broadcast_to(rows, shape), np.broadcast_to(columns, shape)


#: Every fragment by name.
FRAGMENTS = {
    "m8n8k4 A row": Fragment(m8n8k4_a_row, 4, (8, 4), 4),
    "m8n8k4 A col": Fragment(m8n8k4_a_col, 4, (8, 4), 4),
    "m8n8k4 B col": Fragment(m8n8k4_b_col, 4, (4, 8), 4),
    "m8n8k4 B row": Fragment(m8n8k4_b_row, 4, (4, 8), 4),
    "m8n8k4 C f32": Fragment(m8n8k4_c_f32, 8, (8, 8), 4),
    "m8n8k4 C f16": Fragment(m8n8k4_c_f16, 8, (8, 8), 4),
    "m16n8k8 A": Fragment(m16n8k8_a, 4, (16, 8), 1),
    "m16n8k8 B": Fragment(m16n8k8_b, 2, (8, 8), 1),
    "m16n8k16 A": Fragment(m16n8k16_a, 8, (16, 16), 1),
    "m16n8k16 B": Fragment(m16n8k16_b, 4, (16, 8), 1),
    "m16n8 C": Fragment(m16n8_c, 4, (16, 8), 1),
    "ldmatrix": Fragment(ldmatrix, 2, (8, 8), 1),
    "ldmatrix trans": Fragment(ldmatrix_trans, 2, (8, 8), 1),
}


def distribute(matrix: np.ndarray, fragment: Fragment) -> np.ndarray:
    """Return the registers (32, n) that hold a matrix, or a stack of four, one a quad-pair.

    Examples
    --------
    >>> A = np.arange(32.0).reshape(8, 4)
    >>> distribute(A, FRAGMENTS["m8n8k4 A row"])[17].tolist()  # lane 17 is t = 5
    [20.0, 21.0, 22.0, 23.0]
    """
    stack = np.broadcast_to(matrix, (fragment.matrices, *fragment.shape))
    return np.asarray(stack[fragment.group, fragment.rows, fragment.columns])


def collect(registers: np.ndarray, fragment: Fragment) -> np.ndarray:
    """Return the matrices (4 or 1, rows, columns) that registers (32, n) hold: `distribute` undone."""
    if registers.shape != (LANES, fragment.registers):
        raise ValueError(f"expected registers ({LANES}, {fragment.registers}), got shape {registers.shape}")
    stack = np.empty((fragment.matrices, *fragment.shape), registers.dtype)
    stack[fragment.group, fragment.rows, fragment.columns] = registers
    return stack


#: The lanes of a quad-pair: t -> lane, less 4 for each quad-pair.
QUAD_PAIR = Layout((4, 2), (1, 16))

#: The maps of m8n8k4 as layouts (t, i) -> row + rows * column: each bit of t and i has one stride.
LAYOUTS = {
    "m8n8k4 A row": Layout((8, 4), (1, 8)),
    "m8n8k4 A col": Layout(((4, 2), 4), ((8, 4), 1)),
    "m8n8k4 B col": Layout((8, 4), (4, 1)),
    "m8n8k4 B row": Layout(((4, 2), 4), ((1, 16), 4)),
    "m8n8k4 C f32": Layout(((2, 2, 2), (2, 2, 2)), ((1, 16, 4), (8, 2, 32))),
    "m8n8k4 C f16": Layout((8, 8), (1, 8)),
}
