"""Volta's dataflow: each quad-pair of m8n8k4 takes eight query rows of its own, all four the same keys.

Scores (row.col): lane n loads row n of Q, and the four quad-pairs the same eight rows of K. Softmax: a row
lies in two lanes, n and n ^ 2. Weights: float32 results become float16 operands by one shuffle with lane
n ^ 2 for every four floats, since a quad-pair needs only its own rows. Output (row.row): rows of V are
operands as they lie, without a transpose.

No row crosses quad-pairs, so nothing goes through shared memory but Q, K and V. The price is in loads: each
16 bytes of K serve one block of rows only. `counts.balance` weighs that against `two_by_two`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .atoms import Atom, Lanes, Place, interleave, load
from .fragments import m8n8k4_c_f32, quad_lane, quad_pair
from .shared_layouts import SharedTile
from .warp import Warp


@dataclass(frozen=True)
class QuadPairs:
    """The atom: 8 rows a quad-pair, 32 a tile.

    Parameters
    ----------
    tiles : int
        Tiles of 32 rows a warp. Two halve the loads of K and V a product, and double the registers.
    value_width : int
        Bytes a lane loads of V at a time: 8 serve one block of output, 16 serve two, whose columns take
        turns.

    Examples
    --------
    >>> atom = QuadPairs()
    >>> atom.rows()[5, 0].tolist(), atom.score_columns(1)[5, 0].tolist()  # registers of lane 5
    ([5, 5, 7, 7, 5, 5, 7, 7], [0, 1, 0, 1, 4, 5, 4, 5])
    >>> atom.output_columns(2)[5].tolist()
    [[0, 1, 0, 1, 8, 9, 8, 9], [4, 5, 4, 5, 12, 13, 12, 13]]
    """

    tiles: int = 1
    value_width: int = 16

    registers = 8
    block = 8
    depth = 8
    key_depth = 8
    row_masks = (2,)
    uses_p = False

    def __post_init__(self) -> None:
        if self.tiles < 1 or self.value_width not in (8, 16):
            raise ValueError(f"tiles start at 1 and value_width is 8 or 16, got {self}")

    @property
    def name(self) -> str:
        """What to call it."""
        return f"quad-pairs, {self.warp_rows} rows a warp"

    @property
    def warp_rows(self) -> int:
        """Query rows of a warp."""
        return 32 * self.tiles

    @property
    def value_depth(self) -> int:
        """Value dimensions come in multiples of this."""
        return self.value_width

    def rows(self) -> Lanes:
        """Row in the warp of each register, (32, tiles, registers)."""
        lane, tile, i = np.ogrid[:32, : self.tiles, :8]
        return np.asarray(32 * tile + interleave(m8n8k4_c_f32(lane, i)[0], quad_pair(lane), 4))

    def score_columns(self, blocks: int) -> Lanes:
        """Key in the tile of each register, (32, blocks, registers)."""
        lane, block, i = np.ogrid[:32, :blocks, :8]
        return np.asarray(8 * block + m8n8k4_c_f32(lane, i)[1])

    def output_columns(self, blocks: int) -> Lanes:
        """Value column of each register, (32, blocks, registers)."""
        if self.value_width == 8:
            return self.score_columns(blocks)
        lane, block, i = np.ogrid[:32, :blocks, :8]
        column = m8n8k4_c_f32(lane, i)[1]  # 0 to 3 from one chunk, 4 to 7 from the next
        return np.asarray(16 * (block >> 1) + 8 * (column >> 2) + 4 * (block & 1) + (column & 3))

    def q_place(self, lane: Lanes, tile: int, d: int) -> Place:
        """Lane n takes row n: quad-pairs take turns by four rows."""
        return Place(32 * tile + lane, np.full(32, d))

    def k_place(self, lane: Lanes, block: int, d: int) -> Place:
        """Lane t of each quad-pair takes key t: four lanes get the same 16 bytes."""
        return Place(8 * block + quad_lane(lane), np.full(32, d))

    def v_place(self, lane: Lanes, four: int, part: int) -> Place:
        """Four keys from 4 * four on, and a chunk for each half of the quad-pair or half a chunk."""
        row = 4 * four + (lane & 3)
        if self.value_width == 16:
            return Place(row, 2 * part + (lane >> 4))
        return Place(row, np.full(32, part), half=4 * (lane >> 4), width=8)

    def scores(self, warp: Warp, q: SharedTile, k: SharedTile, first_row: int) -> np.ndarray:
        """Return Q K^T."""
        return scores(self, warp, q, k, first_row)

    def output(
        self, warp: Warp, o: np.ndarray, weights: np.ndarray, v: SharedTile, p: SharedTile | None
    ) -> np.ndarray:
        """Return O + P V, four keys at a time."""
        del p  # weights stay in registers
        o = o.copy()
        wide = self.value_width // 8  # blocks of output that a load serves
        for four in range(v.rows // 4):
            a = [operand(warp, weights[:, t, four // 2], four % 2) for t in range(self.tiles)]
            for part in range(v.chunks // wide):
                b = load(warp, v, self.v_place(warp.lane, four, part))
                for j in range(wide):
                    n = wide * part + j
                    for t in range(self.tiles):
                        o[:, t, n] = warp.mma_m8n8k4(a[t], b[:, 4 * j : 4 * j + 4], o[:, t, n], "row")
        return o

    def reads(self, tile: SharedTile) -> Iterator[Place]:
        """All loads of a tile that one warp makes of it."""
        lane = np.arange(32)
        if tile.name == "Q":
            yield from (self.q_place(lane, t, d) for t in range(self.tiles) for d in range(tile.chunks))
        elif tile.name == "K":
            yield from (self.k_place(lane, n, d) for n in range(tile.rows // 8) for d in range(tile.chunks))
        else:
            parts = 8 * tile.chunks // self.value_width
            yield from (self.v_place(lane, four, c) for four in range(tile.rows // 4) for c in range(parts))


def scores(atom: Atom, warp: Warp, q: SharedTile, k: SharedTile, first_row: int) -> np.ndarray:
    """Return Q K^T by m8n8k4: a 16-byte load holds operands of two products, each over four dimensions."""
    s = np.zeros((32, atom.tiles, k.rows // atom.block, 8), np.float32)
    for d in range(q.chunks):
        a = [
            load(warp, q, atom.q_place(warp.lane, t, d), first_row) for t in range(atom.tiles)
        ]  # (32, 8) each
        for n in range(k.rows // atom.block):
            b = load(warp, k, atom.k_place(warp.lane, n, d))  # (32, 8)
            for t in range(atom.tiles):
                s[:, t, n] = warp.mma_m8n8k4(a[t][:, :4], b[:, :4], s[:, t, n])
                s[:, t, n] = warp.mma_m8n8k4(a[t][:, 4:], b[:, 4:], s[:, t, n])
    return s


def operand(warp: Warp, weights: np.ndarray, half: int) -> np.ndarray:
    """Return A (32, 4) in float16 of four keys from C (32, 8) in float32: keys 4 * half on of a block.

    A lane holds two columns of two rows and needs four columns of one row. Which row that is, bit 1 of the
    lane says; it keeps its own pair of that row and trades the other pair with lane n ^ 2.

    Examples
    --------
    >>> from .fragments import FRAGMENTS, distribute
    >>> from .shared_memory import SharedMemory
    >>> warp = Warp(SharedMemory(0))
    >>> P = np.arange(64.0).reshape(8, 8)
    >>> c = distribute(P.astype(np.float32), FRAGMENTS["m8n8k4 C f32"])
    >>> a = operand(warp, c, half=1)
    >>> bool((a == distribute(P[:, 4:], FRAGMENTS["m8n8k4 A row"])).all()), warp.counts.shuffles
    (True, 1)
    """
    pairs = weights.astype(np.float16)[:, 4 * half : 4 * half + 4].reshape(32, 2, 2)  # lane, row, column
    upper = (warp.lane >> 1 & 1).astype(np.bool_)[:, None]
    mine = np.where(upper, pairs[:, 1], pairs[:, 0])  # (32, 2)
    theirs = warp.shfl_xor(np.where(upper, pairs[:, 0], pairs[:, 1]), 2)
    return np.hstack([np.where(upper, theirs, mine), np.where(upper, mine, theirs)])
