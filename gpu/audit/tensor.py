"""Volta's tensor-core instruction, HMMA.884: an 8x8x4 product by each of four quad-pairs, in four steps.

Quad-pair p is lanes 4p .. 4p + 3 and 16 + 4p .. 16 + 4p + 3; t numbers its lanes from 0 to 7. Step s makes
results 2s and 2s + 1 of the eight that a lane holds (PTX: mma.m8n8k4): result i of lane t is row (t & 1) + (i
& 2) + 4 (t >> 2), column (t & 2) + (i & 1) + (i & 4).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .memory import KernelError
from .operands import register
from .processor import Warp, opcode
from .sass import Instruction

Effect = Callable[[Warp, NDArray[np.bool_]], None]
_LANE = np.arange(32)
_PAIR = _LANE >> 2 & 3
_T = (_LANE & 3) + 4 * (_LANE >> 4)


def _lane(t: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lane that has number `t` in the quad-pair of each lane; lanes are the first axis."""
    pair = _PAIR.reshape(-1, *[1] * (t.ndim - 1))
    lane: NDArray[np.int64] = (t & 3) + 4 * pair + 16 * (t >> 2)
    return lane


def _words(warp: Warp, number: int) -> NDArray[np.uint32]:
    """(32, 2): two registers of each lane."""
    return np.ascontiguousarray(warp.registers[number : number + 2].T)


def _maps(columns: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each lane's eight results: the lane with the row of A; lanes (32, 8, 4) and places that hold B."""
    number = np.arange(8)
    t = _T[:, None]
    row = (t & 1) + (number & 2) + 4 * (t >> 2)
    column = (t & 2) + (number & 1) + (number & 4)
    depth = np.arange(4)
    if columns:
        holder, place = column[:, :, None] + 0 * depth, depth + 0 * column[:, :, None]
    else:
        holder, place = depth + 4 * (column >> 2)[:, :, None], (column & 3)[:, :, None] + 0 * depth
    return _lane(row), _lane(holder), place


_MAPS = {columns: _maps(columns) for columns in (False, True)}


def _products(left: NDArray[np.uint32], right: NDArray[np.uint32], columns: bool) -> NDArray[np.float64]:
    """(32, 8): the eight sums of four products of each lane."""
    rows, holder, place = _MAPS[columns]
    a, b = (x.view(np.float16).astype(np.float64) for x in (left, right))
    sums: NDArray[np.float64] = np.einsum("lik,lik->li", a[rows], b[holder, place])
    return sums


@opcode("HMMA")
def hmma(i: Instruction) -> Effect:
    """One step. Products and sum are exact here and rounded once; the hardware's last bit may differ."""
    if i.parts[1:4] != ("884", "F32", "F32") or not i.operands[1].endswith(".ROW"):
        raise KernelError(f"{i.opcode} {', '.join(i.operands)}: not known")
    step = int(i.parts[4].removeprefix("STEP"))
    result, a, b = (register(t) for t in i.operands[:3])
    c = register(i.operands[3])
    columns = i.operands[2].endswith(".COL")

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        if not mask.all():
            raise KernelError("needs all lanes")
        left, right = _words(warp, a), _words(warp, b)
        key = (left.tobytes(), right.tobytes(), columns)
        if warp.product[0] != key:  # the four steps of a product follow one another
            warp.product = (key, _products(left, right, columns))
        for n in range(2):
            before = warp.registers[c + n if c != 255 else 255].view(np.float32)
            value = (warp.product[1][:, 2 * step + n] + before).astype(np.float32)
            warp.set(result + n, value.view(np.uint32), mask)

    return effect
