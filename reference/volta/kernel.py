"""The shape of a kernel: its atom, the rows and keys it takes at a time, and its tiles in shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from .atoms import Atom
from .shared_layouts import SharedTile, operand, swizzled


@dataclass(frozen=True)
class Kernel:
    """What a CTA is made of and takes at a time.

    Attributes
    ----------
    atom : Atom
        How a warp multiplies.
    warps : int
        Warps of a CTA: it takes ``warps * atom.warp_rows`` query rows.
    keys : int
        Keys of a tile, a multiple of ``atom.key_depth``.
    """

    atom: Atom
    warps: int = 4
    keys: int = 64

    def __post_init__(self) -> None:
        depth = self.atom.key_depth
        if self.warps < 1 or self.keys < 1 or self.keys % depth:
            raise ValueError(f"warps start at 1 and keys are a multiple of {depth}, got {self}")

    @property
    def rows(self) -> int:
        """Query rows of a CTA."""
        return self.warps * self.atom.warp_rows

    def widths(self, head_dim: int, v_dim: int) -> tuple[int, int]:
        """Return both head dimensions, rounded up to what the atom multiplies; the rest is zeros.

        Examples
        --------
        >>> from .quad_pairs import QuadPairs
        >>> Kernel(QuadPairs()).widths(40, 72)
        (40, 80)
        """
        return _up(head_dim, self.atom.depth), _up(v_dim, self.atom.value_depth)

    def shared_tiles(self, head_dim: int, v_dim: int) -> dict[str, SharedTile]:
        """Return the tiles in shared memory, one behind the other: Q, K, V, and a P of each warp.

        Examples
        --------
        >>> from .quad_pairs import QuadPairs
        >>> [(name, tile.base) for name, tile in Kernel(QuadPairs(), warps=2).shared_tiles(64, 64).items()]
        [('Q', 0), ('K', 9200), ('V', 18400)]
        """
        dim, v_width = self.widths(head_dim, v_dim)
        tiles = [
            SharedTile("Q", self.rows, dim, operand),
            SharedTile("K", self.keys, dim, operand),
            SharedTile("V", self.keys, v_width, operand),
        ]
        if self.atom.uses_p:
            tiles += [SharedTile("P", self.atom.warp_rows, self.keys, swizzled)] * self.warps
        placed: dict[str, SharedTile] = {}
        base = 0
        for index, tile in enumerate(tiles):
            name = tile.name if tile.name != "P" else f"P{index - 3}"
            placed[name] = SharedTile(tile.name, tile.rows, tile.width, tile.place, base)
            base += tile.bytes
        return placed


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
