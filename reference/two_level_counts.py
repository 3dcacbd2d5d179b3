"""What two-level tiling moves and waits for, in closed form: the counts of `two_level.run` without running
it.

The visible keys of a row of tiles are one interval, as those of each query are and neighbours' overlap or
touch. So the tiles that are not empty are neighbours, and their number and width follow from the interval's
two ends; likewise the level-1 blocks that are visited, and the tiles that need no mask, which lie in the keys
that *all* queries of the row see. What is left is a sum over rows of tiles, Sq / tile_q terms, whatever Sk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .two_level import NPU, Blocks, Counts, Form
from .visibility import Window, band

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """One axis cut into blocks of `block`, each block into tiles of `tile`, up to `length`.

    Examples
    --------
    >>> grid = Grid(17, block=7, tile=3)  # tiles 0-2 3-5 6 | 7-9 10-12 13 | 14-16
    >>> i = grid.index(np.array([0, 6, 13, 16]))
    >>> i.tolist(), grid.start(i).tolist(), grid.stop(i).tolist()
    ([0, 2, 5, 6], [0, 6, 13, 14], [3, 7, 14, 17])
    """

    length: int
    block: int
    tile: int

    @property
    def per_block(self) -> int:
        """Tiles of a whole block."""
        return -(-self.block // self.tile)

    def index(self, at: _Ints) -> _Ints:
        """Return the number of the tile that holds `at`."""
        return at // self.block * self.per_block + at % self.block // self.tile

    def start(self, index: _Ints) -> _Ints:
        """Return where tile number `index` begins."""
        return index // self.per_block * self.block + index % self.per_block * self.tile

    def stop(self, index: _Ints) -> _Ints:
        """Return where tile number `index` ends: at the next tile, the block's end, or the length."""
        block_end = (index // self.per_block + 1) * self.block
        return np.minimum(np.minimum(self.start(index) + self.tile, block_end), self.length)


def expected(
    shape: tuple[int, int, int, int],
    blocks: Blocks,
    *,
    heads: int = 1,
    causal: bool = False,
    window: Window = None,
    kv_length: int | None = None,
    q_offset: int | None = None,
    mask: bool = False,
    form: Form = NPU,
) -> Counts:
    """Return the counts of `two_level.run` for `heads` query heads of one sequence.

    Parameters
    ----------
    shape : (int, int, int, int)
        Sq, Sk, D, Dv.
    blocks : Blocks
        The sizes of both levels.
    heads : int
        Query heads, or sequences times query heads when they are alike.
    causal, window, kv_length, q_offset
        As in `visibility.intervals`.
    mask : bool
        Whether a mask is given as data; then each tile that is not empty reads its part.
    form : Form
        The names of the buffers.

    Examples
    --------
    64K tokens, D = 128, causal. One level of 128 x 128, or blocks of 128 x 512 around the same tiles:

    >>> one, two = Blocks.unified(128, 128), Blocks(128, 512, 128, 128)
    >>> counts = [expected((65536, 65536, 128, 128), blocks, causal=True) for blocks in (one, two)]
    >>> [c.handovers for c in counts]
    [393984, 99072]
    >>> [c.moved["S", "L0C", "workspace"] for c in counts]  # the same tiles are computed
    [2151677952, 2151677952]
    """
    Sq, Sk, D, Dv = shape
    n = Sk if kv_length is None else kv_length
    offset = n - Sq if q_offset is None else q_offset
    edges = band(causal, window)
    left, right = edges
    rows, keys = Grid(Sq, blocks.block_q, blocks.tile_q), Grid(n, blocks.block_k, blocks.tile_k)
    counts = Counts()

    def move(name: str, n: int | np.int64, *path: str) -> None:
        counts.move(name, heads * int(n), *path)

    # Level 1. Any row of the interval [first, last] keys; a row block without one is not loaded.
    begin = np.arange(0, Sq, blocks.block_q)
    end = np.minimum(begin + blocks.block_q, Sq)
    first, last = _any(begin + offset, end - 1 + offset, left, right, n)
    seen = first <= last
    begin, end, first, last = (x[seen] for x in (begin, end, first, last))
    visits = last // keys.block - first // keys.block + 1
    loaded = keys.stop(keys.index(last)) - keys.start(keys.index(first))
    move("Q", (end - begin).sum() * D, form.memory, form.level1)
    move("K", loaded.sum() * D, form.memory, form.level1)
    move("V", loaded.sum() * Dv, form.memory, form.level1)
    move("out", Sq * Dv, form.vector, form.memory)
    move("lse", Sq, form.vector, form.memory)
    for name in ("K", "S", "P", "V", "O"):
        counts.wait(form, name, heads * int(visits.sum()))

    # Level 2. The same for rows of tiles.
    tiles = np.arange(0 if Sq == 0 else int(rows.index(np.array(Sq - 1))) + 1)
    begin, end = rows.start(tiles), rows.stop(tiles)
    low, high = _all(begin + offset, end - 1 + offset, left, right, n)
    first, last = _any(begin + offset, end - 1 + offset, left, right, n)
    seen = first <= last
    begin, end, first, last, low, high = (x[seen] for x in (begin, end, first, last, low, high))
    height = end - begin
    visits = last // keys.block - first // keys.block + 1
    width = keys.stop(keys.index(last)) - keys.start(keys.index(first))
    area = int((height * width).sum())
    move("Q", (height * visits).sum() * D, form.level1, form.left)
    move("K", width.sum() * D, form.level1, form.right)
    move("S", area, form.sums, form.workspace)
    move("S", area, form.workspace, form.vector)
    move("P", area, form.vector, form.workspace)
    via = () if form.workspace == form.sums else (form.level1,)
    move("P", area, form.workspace, *via, form.left)
    move("V", width.sum() * Dv, form.level1, form.right)
    move("O", (height * visits).sum() * Dv, form.sums, form.workspace)
    move("O", (height * visits).sum() * Dv, form.workspace, form.vector)
    if mask:
        move("mask", area, form.memory, form.vector)
    masked = area - int((height * _whole(keys, low, high)).sum())
    move("B-mask", masked * sum(edge is not None for edge in edges), form.memory, form.vector)
    return counts


def _any(first_p: _Ints, last_p: _Ints, left: int | None, right: int | None, n: int) -> tuple[_Ints, _Ints]:
    """Return the first and last key that any of these queries sees."""
    first = np.zeros_like(first_p) if left is None else np.maximum(first_p - left, 0)
    last = np.full_like(last_p, n - 1) if right is None else np.minimum(last_p + right, n - 1)
    return first, last


def _all(first_p: _Ints, last_p: _Ints, left: int | None, right: int | None, n: int) -> tuple[_Ints, _Ints]:
    """Return the first and last key that all of these queries see."""
    first = np.zeros_like(first_p) if left is None else np.maximum(last_p - left, 0)
    last = np.full_like(last_p, n - 1) if right is None else np.minimum(first_p + right, n - 1)
    return first, last


def _whole(grid: Grid, low: _Ints, high: _Ints) -> _Ints:
    """Return how many keys lie in tiles that are within [low, high]."""
    valid = low <= high
    low, high = np.where(valid, low, 0), np.where(valid, high, 0)
    at, to = grid.index(low), grid.index(high)
    start = np.where(grid.start(at) == low, low, grid.stop(at))
    stop = np.where(grid.stop(to) == high + 1, high + 1, grid.start(to))
    return np.where(valid, np.maximum(stop - start, 0), 0)
