"""The dataflow of Turing (m16n8k8) and Ampere (m16n8k16): the same attention with the neighbours' products.

Here all 32 lanes share one product of 16 x 8. `ldmatrix` fetches four 8 x 8 matrices at once, each lane
naming one row, and with `.trans` it turns V while loading. The result's map is the operand's map, so weights
only become halves: no shuffle, no shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .atoms import Lanes, Place
from .fragments import m16n8_c
from .shared_layouts import SharedTile
from .warp import Warp


@dataclass(frozen=True)
class Mma16:
    """The atom: 16 rows a tile.

    Parameters
    ----------
    step : int
        Depth of one instruction: 16 for Ampere's m16n8k16, 8 for Turing's m16n8k8.
    tiles : int
        Tiles of 16 rows a warp.

    Examples
    --------
    >>> atom = Mma16()
    >>> atom.rows()[5, 0].tolist(), atom.score_columns(2)[5].tolist()
    ([1, 1, 9, 9], [[2, 3, 2, 3], [10, 11, 10, 11]])
    """

    step: int = 16
    tiles: int = 1

    registers = 4
    block = 8
    depth = 16
    value_depth = 16
    key_depth = 16
    row_masks = (1, 2)
    uses_p = False

    def __post_init__(self) -> None:
        if self.step not in (8, 16) or self.tiles < 1:
            raise ValueError(f"step is 8 or 16 and tiles start at 1, got {self}")

    @property
    def name(self) -> str:
        """What to call it."""
        return f"m16n8k{self.step}, {self.warp_rows} rows a warp"

    @property
    def warp_rows(self) -> int:
        """Query rows of a warp."""
        return 16 * self.tiles

    def rows(self) -> Lanes:
        """Row in the warp of each register, (32, tiles, registers)."""
        lane, tile, i = np.ogrid[:32, : self.tiles, :4]
        return 16 * tile + m16n8_c(lane, i)[0]

    def score_columns(self, blocks: int) -> Lanes:
        """Key in the tile of each register, (32, blocks, registers)."""
        lane, block, i = np.ogrid[:32, :blocks, :4]
        return 8 * block + m16n8_c(lane, i)[1]

    def output_columns(self, blocks: int) -> Lanes:
        """Value column of each register, (32, blocks, registers)."""
        return self.score_columns(blocks)

    def q_place(self, lane: Lanes, tile: int, d: int) -> Place:
        """Row lane % 16 and one of two chunks: matrices in the order of m16n8k16's A."""
        return Place(16 * tile + (lane & 15), 2 * d + (lane >> 4))

    def k_place(self, lane: Lanes, pair: int, d: int) -> Place:
        """Two blocks of eight keys, two chunks of each: two operands B."""
        return Place(16 * pair + (lane & 7) + 8 * (lane >> 4), 2 * d + (lane >> 3 & 1))

    def v_place(self, lane: Lanes, sixteen: int, part: int) -> Place:
        """Sixteen keys, two chunks of values: transposed, two operands B."""
        return Place(16 * sixteen + (lane & 15), 2 * part + (lane >> 4))

    def _multiply(self, warp: Warp, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Multiply over 16: a (32, 8), b (32, 4)."""
        if self.step == 16:
            return warp.mma_m16n8k16(a, b, c)
        return warp.mma_m16n8k8(a[:, 4:], b[:, 2:], warp.mma_m16n8k8(a[:, :4], b[:, :2], c))

    def _load(
        self, warp: Warp, tile: SharedTile, place: Place, first_row: int = 0, trans: bool = False
    ) -> np.ndarray:
        address = tile.address(place.row + first_row, place.chunk)
        return warp.shared.ldmatrix(tile.name, address, 4, trans=trans)

    def scores(self, warp: Warp, q: SharedTile, k: SharedTile, first_row: int) -> np.ndarray:
        """Return Q K^T: a load holds A over sixteen dimensions, or B of two blocks of keys."""
        s = np.zeros((32, self.tiles, k.rows // 8, 4), np.float32)
        for d in range(q.chunks // 2):
            a = [self._load(warp, q, self.q_place(warp.lane, t, d), first_row) for t in range(self.tiles)]
            for pair in range(k.rows // 16):
                b = self._load(warp, k, self.k_place(warp.lane, pair, d))
                for t in range(self.tiles):
                    for j in range(2):
                        n = 2 * pair + j
                        s[:, t, n] = self._multiply(warp, a[t], b[:, 4 * j : 4 * j + 4], s[:, t, n])
        return s

    def output(
        self, warp: Warp, o: np.ndarray, weights: np.ndarray, v: SharedTile, p: SharedTile | None
    ) -> np.ndarray:
        """Return O + P V: two neighbouring blocks of weights are an operand A as they lie."""
        del p  # weights stay in registers
        o = o.copy()
        halves = weights.astype(np.float16)
        for sixteen in range(v.rows // 16):
            a = halves[:, :, 2 * sixteen : 2 * sixteen + 2].reshape(32, self.tiles, 8)
            for part in range(v.chunks // 2):
                b = self._load(warp, v, self.v_place(warp.lane, sixteen, part), trans=True)
                for t in range(self.tiles):
                    for j in range(2):
                        n = 2 * part + j
                        o[:, t, n] = self._multiply(warp, a[:, t], b[:, 4 * j : 4 * j + 4], o[:, t, n])
        return o

    def reads(self, tile: SharedTile) -> Iterator[Place]:
        """All loads of a tile that one warp makes of it."""
        lane, pairs = np.arange(32), tile.chunks // 2
        if tile.name == "Q":
            yield from (self.q_place(lane, t, d) for t in range(self.tiles) for d in range(pairs))
        elif tile.name == "K":
            yield from (self.k_place(lane, n, d) for n in range(tile.rows // 16) for d in range(pairs))
        else:
            yield from (self.v_place(lane, n, c) for n in range(tile.rows // 16) for c in range(pairs))
