"""Volta's other dataflow: the quad-pairs of m8n8k4 as 2 x 2, a product of 16 x 16.

Quad-pairs in a row of the 2 x 2 share query rows, those in a column share keys. A warp of 32 rows is two such
tiles, which share each load of K and V, so that the tensor cores wait less for shared memory. But a quad-pair
now holds the weights of half the keys only and needs the other half too. Either P is written to shared memory
as halves, by its warp for itself, and read again as an operand; or quad-pairs trade operands by shuffles,
which takes half the cycles of the same data path and no memory. And a row lies in four lanes, so its maximum
takes two shuffles.

All lines (rows, keys) take turns by fours (`atoms.interleave`), and each load and store is free of bank
conflicts in the layouts of `shared_layouts`, P's if keys come in multiples of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .atoms import Lanes, Place, interleave, load
from .fragments import m8n8k4_c_f32, quad_lane
from .quad_pairs import operand, scores
from .shared_layouts import SharedTile
from .warp import Warp


def pair_row(lane: Lanes) -> Lanes:
    """Return the row of a lane's quad-pair in the 2 x 2: bit 3."""
    return lane >> 3 & 1


def pair_column(lane: Lanes) -> Lanes:
    """Return the column of a lane's quad-pair in the 2 x 2: bit 2."""
    return lane >> 2 & 1


@dataclass(frozen=True)
class TwoByTwo:
    """The atom: 16 rows by 16 keys.

    Parameters
    ----------
    tiles : int
        Tiles of 16 rows a warp.
    uses_p : bool
        Send weights through shared memory; otherwise by shuffles.

    Examples
    --------
    >>> atom = TwoByTwo()
    >>> atom.rows()[0, 0].tolist(), atom.score_columns(1)[0, 0].tolist()
    ([0, 0, 2, 2, 0, 0, 2, 2], [0, 1, 0, 1, 8, 9, 8, 9])
    """

    tiles: int = 2
    uses_p: bool = True

    registers = 8
    block = 16
    depth = 8
    value_depth = 64
    row_masks = (2, 4)

    def __post_init__(self) -> None:
        if self.tiles < 1:
            raise ValueError(f"tiles start at 1, got {self}")

    @property
    def name(self) -> str:
        """What to call it."""
        return f"2 x 2, {self.warp_rows} rows a warp, P by {'shared memory' if self.uses_p else 'shuffles'}"

    @property
    def key_depth(self) -> int:
        """Keys of a tile come in multiples of this."""
        return 32 if self.uses_p else 16

    @property
    def warp_rows(self) -> int:
        """Query rows of a warp."""
        return 16 * self.tiles

    def rows(self) -> Lanes:
        """Row in the warp of each register, (32, tiles, registers)."""
        lane, tile, i = np.ogrid[:32, : self.tiles, :8]
        return 16 * tile + interleave(m8n8k4_c_f32(lane, i)[0], pair_row(lane), 2)

    def score_columns(self, blocks: int) -> Lanes:
        """Key in the tile of each register, (32, blocks, registers)."""
        lane, block, i = np.ogrid[:32, :blocks, :8]
        return 16 * block + interleave(m8n8k4_c_f32(lane, i)[1], pair_column(lane), 2)

    def output_columns(self, blocks: int) -> Lanes:
        """Value column of each register, (32, blocks, registers)."""
        lane, block, i = np.ogrid[:32, :blocks, :8]
        column = m8n8k4_c_f32(lane, i)[1]
        chunk = value_chunk(block >> 1, pair_column(lane), column >> 2)
        return np.asarray(8 * chunk + 4 * (block & 1) + (column & 3))

    def q_place(self, lane: Lanes, tile: int, d: int) -> Place:
        """Row t of the quad-pair's eight; two quad-pairs get the same."""
        return Place(16 * tile + interleave(quad_lane(lane), pair_row(lane), 2), np.full(32, d))

    def k_place(self, lane: Lanes, block: int, d: int) -> Place:
        """Key t of the quad-pair's eight; two quad-pairs get the same."""
        return Place(16 * block + interleave(quad_lane(lane), pair_column(lane), 2), np.full(32, d))

    def v_place(self, lane: Lanes, four: int, part: int) -> Place:
        """Four keys from 4 * four on; a chunk serves two blocks of output."""
        return Place(4 * four + (lane & 3), value_chunk(np.full(32, part), pair_column(lane), lane >> 4))

    def p_store_place(self, lane: Lanes, tile: int, block: int, i: int) -> Place:
        """Registers i and i + 1, neighbours of a row: one word."""
        x, y = m8n8k4_c_f32(lane, np.full(32, i))
        column = 16 * block + interleave(y, pair_column(lane), 2)
        row = 16 * tile + interleave(x, pair_row(lane), 2)
        return Place(row, column >> 3, column & 7, 4)

    def scores(self, warp: Warp, q: SharedTile, k: SharedTile, first_row: int) -> np.ndarray:
        """Return Q K^T."""
        return scores(self, warp, q, k, first_row)

    def output(
        self, warp: Warp, o: np.ndarray, weights: np.ndarray, v: SharedTile, p: SharedTile | None
    ) -> np.ndarray:
        """Return O + P V, four keys at a time."""
        o = o.copy()
        a = self.trade(warp, weights) if p is None else self.store_and_load(warp, weights, p)
        for four in range(v.rows // 4):
            for part in range(v.chunks // 4):
                b = load(warp, v, self.v_place(warp.lane, four, part))
                for n, b4 in ((2 * part, b[:, :4]), (2 * part + 1, b[:, 4:])):
                    for t in range(self.tiles):
                        o[:, t, n] = warp.mma_m8n8k4(a[:, t, four], b4, o[:, t, n], "row")
        return o

    def store_and_load(self, warp: Warp, weights: np.ndarray, p: SharedTile) -> np.ndarray:
        """Return the weights as operands A (32, tiles, keys / 4, 4) by way of shared memory."""
        halves = weights.astype(np.float16)
        for t in range(self.tiles):
            for n in range(p.width // 16):
                for i in (0, 2, 4, 6):
                    at = self.p_store_place(warp.lane, t, n, i)
                    warp.shared.store("P", p.address(at.row, at.chunk, at.half), halves[:, t, n, i : i + 2])
        rows = [
            [load(warp, p, self.q_place(warp.lane, t, c)) for c in range(p.chunks)] for t in range(self.tiles)
        ]
        return np.array(rows).transpose(2, 0, 1, 3).reshape(32, self.tiles, p.width // 4, 4)

    def trade(self, warp: Warp, weights: np.ndarray) -> np.ndarray:
        """Return the same by shuffles: within the quad-pair, then with the one beside it.

        Of four times four keys of a block the left quad-pair holds the first and the third, the right one the
        others: a six-shuffle trade for each 16 x 16 weights.
        """
        a = np.empty((32, self.tiles, weights.shape[2], 2, 2, 4), np.float16)  # half, then left and right
        right = (pair_column(warp.lane) == 1)[:, None]
        for t in range(self.tiles):
            for n in range(weights.shape[2]):
                for half in range(2):
                    mine = operand(warp, weights[:, t, n], half)
                    theirs = warp.shfl_xor(mine, 4)
                    a[:, t, n, half, 0] = np.where(right, theirs, mine)
                    a[:, t, n, half, 1] = np.where(right, mine, theirs)
        return a.reshape(32, self.tiles, -1, 4)

    def reads(self, tile: SharedTile) -> Iterator[Place]:
        """All loads of a tile that one warp makes of it."""
        lane = np.arange(32)
        if tile.name in "QP":
            yield from (self.q_place(lane, t, d) for t in range(self.tiles) for d in range(tile.chunks))
        elif tile.name == "K":
            yield from (self.k_place(lane, n, d) for n in range(tile.rows // 16) for d in range(tile.chunks))
        else:
            parts = tile.chunks // 4
            yield from (self.v_place(lane, four, c) for four in range(tile.rows // 4) for c in range(parts))

    def p_writes(self, keys: int) -> Iterator[Place]:
        """All stores of P by one warp, for a tile of `keys` keys."""
        lane = np.arange(32)
        for t in range(self.tiles):
            for n in range(keys // 16):
                yield from (self.p_store_place(lane, t, n, i) for i in (0, 2, 4, 6))


def value_chunk(part: Lanes, column: Lanes, half: Lanes) -> Lanes:
    """Return the chunk of V that serves blocks 2 * part and 2 * part + 1 of a quad-pair's half.

    Bits: half of the quad-pair, bit 0 of part, column in the 2 x 2, then the rest of part. What lanes 0 to 7
    load at once is four rows at two chunks: four chunks apart these stay clear of each other.

    Examples
    --------
    >>> [[int(value_chunk(np.int64(0), np.int64(c), np.int64(h))) for h in (0, 1)] for c in (0, 1)]
    [[0, 1], [4, 5]]
    """
    return np.asarray((part >> 1 << 3) + (column << 2) + ((part & 1) << 1) + half)
