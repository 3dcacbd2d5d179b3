"""What the dataflows have in common: an *atom* says how a warp's rows are made of matrix instructions.

`tile.attention` is the same for all: copy tiles, scores, mask, online softmax, output. How 32 lanes hold a
block of scores, where they look for operands and how weights become operands again is the atom's:
`quad_pairs.QuadPairs` and `two_by_two.TwoByTwo` for Volta, `mma16.Mma16` for Turing and Ampere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .shared_layouts import SharedTile
from .warp import Warp

Lanes = NDArray[np.int64]


class Place(NamedTuple):
    """What each lane accesses in a tile: `width` bytes from half `half` of a chunk of a row on."""

    row: Lanes  # (32,)
    chunk: Lanes  # (32,)
    half: Lanes | int = 0
    width: int = 16


class Atom(Protocol):
    """How a warp computes its rows. Registers of scores and outputs are (32, tiles, blocks, registers).

    In every atom register i belongs to row ``i >> 1 & 1`` of the two that a lane has in each tile.
    """

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def tiles(self) -> int:
        """Tiles of rows that share each operand of keys or values."""

    @property
    def warp_rows(self) -> int:
        """Query rows of a warp."""

    @property
    def registers(self) -> int:
        """Results a lane has of a tile and block."""

    @property
    def block(self) -> int:
        """Keys, or value columns, of a block."""

    @property
    def depth(self) -> int:
        """Head dimensions come in multiples of this."""

    @property
    def value_depth(self) -> int:
        """Value dimensions come in multiples of this."""

    @property
    def key_depth(self) -> int:
        """Keys of a tile come in multiples of this."""

    @property
    def row_masks(self) -> tuple[int, ...]:
        """Shuffles that reach all lanes with a row: lane ^ mask, one after the other."""

    @property
    def uses_p(self) -> bool:
        """Whether weights go through shared memory."""

    def rows(self) -> Lanes:
        """Row in the warp of each register, (32, tiles, registers)."""

    def score_columns(self, blocks: int) -> Lanes:
        """Key in the tile of each register, (32, blocks, registers)."""

    def output_columns(self, blocks: int) -> Lanes:
        """Value column of each register, (32, blocks, registers)."""

    def q_place(self, lane: Lanes, tile: int, d: int) -> Place:
        """Where lanes look in Q for step d of a tile of the warp's rows."""

    def k_place(self, lane: Lanes, block: int, d: int) -> Place:
        """Where lanes look in K for step d of a load's keys."""

    def scores(self, warp: Warp, q: SharedTile, k: SharedTile, first_row: int) -> np.ndarray:
        """Return Q K^T of the warp's rows, which begin at `first_row` of `q`: float32 registers."""

    def output(
        self, warp: Warp, o: np.ndarray, weights: np.ndarray, v: SharedTile, p: SharedTile | None
    ) -> np.ndarray:
        """Return O + P V: float32 registers from float32 registers."""

    def reads(self, tile: SharedTile) -> Iterator[Place]:
        """All loads of a tile that one warp makes of it, for its first rows where it has rows of its own."""


def stored(rows: int, chunks: int) -> Iterator[tuple[Place, NDArray[np.bool_]]]:
    """Yield how warps store a tile, neighbouring lanes neighbouring chunks, and which lanes take part.

    Examples
    --------
    >>> [(place.row[[0, 31]].tolist(), place.chunk[[0, 31]].tolist()) for place, _ in stored(8, 8)]
    [([0, 3], [0, 7]), ([4, 7], [0, 7])]
    """
    for first in range(0, rows * chunks, 32):
        index = first + np.arange(32)
        active = index < rows * chunks
        index = np.where(active, index, 0)
        yield Place(index // chunks, index % chunks), active


def load(warp: Warp, tile: SharedTile, place: Place, first_row: int = 0) -> np.ndarray:
    """Load halves (32, width / 2) from a tile."""
    address = tile.address(place.row + first_row, place.chunk, place.half)
    return warp.shared.load(tile.name, address, place.width)


def interleave(line: Lanes, part: Lanes, parts: int) -> Lanes:
    """Return where line 0 to 7 of quad-pair `part` lies among the 8 * parts lines of all: fours take turns.

    Lanes 0 to 7 are half of two quad-pairs. With lines in turns they ask for eight lines in a row, and with
    four quad-pairs in turns lane n asks for line n.

    Examples
    --------
    >>> [int(interleave(np.int64(x), np.int64(1), 4)) for x in range(8)]
    [4, 5, 6, 7, 20, 21, 22, 23]
    """
    return 4 * parts * (line >> 2) + 4 * part + (line & 3)
