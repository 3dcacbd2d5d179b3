"""How the layouts of `shared_layouts` were found: paddings and swizzles, tried on a dataflow's accesses.

A tile is stored once by rows, 16 bytes a lane (`atoms.stored`), and loaded as its atom asks (`Atom.reads`).
For each candidate the wavefronts of all these accesses are counted. Of those with the fewest, the best needs
the fewest *bases*, address registers: two loads whose lanes' addresses differ by one constant share a base,
as the constant goes into the instruction. Padding needs one base; a swizzle needs one for each pattern of its
XOR. Then the fewest wasted bytes decide.

``python -c "from reference.volta import search; search.main()"`` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .atoms import Atom, Lanes, Place, stored
from .bank_conflicts import ideal, wavefronts
from .mma16 import Mma16
from .quad_pairs import QuadPairs
from .shared_layouts import CHUNK, HALVES, SharedTile
from .two_by_two import TwoByTwo

PADDINGS = range(17)  # halves


@dataclass(frozen=True)
class Candidate:
    """A layout to try: rows `padding` halves longer than need be, chunks XORed with bits of the row.

    Attributes
    ----------
    padding : int
        Halves after each row.
    bits, shift : int
        XOR a chunk's number with `bits` bits of the row (or its Gray code) from bit `shift` on.
    gray : bool
        Take the bits from the row's Gray code.

    Examples
    --------
    >>> str(Candidate(padding=8)), str(Candidate(bits=2, shift=1)), str(Candidate(bits=3, gray=True))
    ('pad 8', 'xor row>>1 & 3', 'xor gray>>0 & 7')
    """

    padding: int = 0
    bits: int = 0
    shift: int = 0
    gray: bool = False

    def __str__(self) -> str:
        if self.bits:
            return f"xor {'gray' if self.gray else 'row'}>>{self.shift} & {(1 << self.bits) - 1}"
        return f"pad {self.padding}" if self.padding else "none"

    def mix(self, row: Lanes) -> Lanes:
        """Return what the chunks of a row are XORed with."""
        source = row ^ row >> 1 if self.gray else row
        return source >> self.shift & (1 << self.bits) - 1

    def address(self, place: Place, width: int) -> NDArray[np.int64]:
        """Return byte addresses in a tile of `width` halves a row."""
        chunk = place.chunk ^ self.mix(place.row)
        return np.asarray(2 * (place.row * (width + self.padding) + HALVES * chunk + place.half))

    def fits(self, width: int) -> bool:
        """Whether 16-byte accesses are aligned, and every chunk stays within its row."""
        chunks = np.arange(width // HALVES)
        mixed = chunks[None, :] ^ np.arange(1 << self.bits)[:, None]
        return 2 * self.padding % CHUNK == 0 and int(mixed.max()) < chunks.size

    def places(self, rows: int, width: int) -> NDArray[np.int64]:
        """Return the place of every chunk in chunks, (rows, chunks), to compare with `SharedTile.places`."""
        row, chunk = np.indices((rows, width // HALVES))
        return self.address(Place(row, chunk), width) // CHUNK


@dataclass(frozen=True)
class Score:
    """What a candidate costs.

    Attributes
    ----------
    stores, loads : int
        Wavefronts of storing the tile once, and of one warp's loads of it.
    ideal_stores, ideal_loads : int
        The same without conflicts.
    bases : int
        Different patterns of addresses among the loads.
    wasted : int
        Bytes a row that hold nothing.
    """

    stores: int
    loads: int
    ideal_stores: int
    ideal_loads: int
    bases: int
    wasted: int

    @property
    def free(self) -> bool:
        """Whether there is no bank conflict."""
        return (self.stores, self.loads) == (self.ideal_stores, self.ideal_loads)

    @property
    def order(self) -> tuple[int, int, int]:
        """What to compare: less is better."""
        return self.stores + self.loads, self.bases, self.wasted


def candidates(width: int) -> Iterator[Candidate]:
    """Yield what fits a row of `width` halves, simplest first.

    Examples
    --------
    >>> [str(candidate) for candidate in candidates(16)][:4]
    ['none', 'pad 8', 'pad 16', 'xor gray>>0 & 1']
    """
    everything = [Candidate(padding) for padding in PADDINGS]
    for gray in (True, False):
        everything += [Candidate(0, bits, shift, gray) for bits in (1, 2, 3) for shift in range(4)]
    yield from (candidate for candidate in everything if candidate.fits(width))


def score(
    candidate: Candidate, stores: list[tuple[Place, NDArray[np.bool_]]], loads: list[Place], width: int
) -> Score:
    """Count one candidate's wavefronts over given accesses."""
    patterns, cost, least = set(), [0, 0], [0, 0]
    for place, active in stores:
        cost[0] += wavefronts(candidate.address(place, width), place.width, active=active)
        least[0] += ideal(place.width, active=active)
    for place in loads:
        address = candidate.address(place, width)
        cost[1] += wavefronts(address, place.width)
        least[1] += ideal(place.width)
        patterns.add((address - address[0]).tobytes())
    return Score(cost[0], cost[1], least[0], least[1], len(patterns), 2 * candidate.padding)


def accesses(
    atom: Atom, name: str, width: int, keys: int = 32
) -> tuple[list[tuple[Place, NDArray[np.bool_]]], list[Place]]:
    """Return the stores and one warp's loads of a tile: Q of the warp's rows, K or V of `keys` keys, or P.

    The tile's `width` is D for Q and K, Dv for V, and for P its keys.
    """
    rows = atom.warp_rows if name in "QP" else keys
    tile = SharedTile(name, rows, width, _no_place)
    if isinstance(atom, TwoByTwo) and name == "P":
        everyone = np.ones(32, np.bool_)
        return [(place, everyone) for place in atom.p_writes(width)], list(atom.reads(tile))
    return list(stored(rows, width // HALVES)), list(atom.reads(tile))


def search(atom: Atom, name: str, width: int) -> list[tuple[Candidate, Score]]:
    """Return all candidates for one tile with their scores, the best first.

    Examples
    --------
    >>> best, result = search(QuadPairs(), "K", 64)[0]
    >>> str(best), result.free, result.bases, result.wasted
    ('pad 8', True, 1, 16)
    >>> best, result = search(TwoByTwo(), "P", 64)[0]
    >>> str(best), result.free, result.wasted
    ('xor gray>>0 & 7', True, 0)
    """
    stores, loads = accesses(atom, name, width)
    results = [(candidate, score(candidate, stores, loads, width)) for candidate in candidates(width)]
    return sorted(results, key=lambda result: result[1].order)  # stable: simplest first


def table(atom: Atom, widths: tuple[int, ...] = (64, 96, 128, 256)) -> str:
    """Return the search for one dataflow as text: nothing done, padding, the best swizzle, and the winner."""
    head = f"{'tile':4} {'width':>5}  {'layout':18} {'stores':>11} {'loads':>11} {'bases':>5} {'wasted':>6}"
    lines = [atom.name, head + "   (wavefronts: counted/ideal)"]
    for width in widths:
        for name in ("Q", "K", "V", "P") if atom.uses_p else ("Q", "K", "V"):
            step = {"V": atom.value_depth, "P": atom.key_depth}.get(name, atom.depth)
            if width % step:
                continue
            results = search(atom, name, width)
            for kind in (_is_none, _is_padding, _is_xor, _is_gray):
                candidate, result = next(entry for entry in results if kind(entry[0]))
                lines.append(
                    f"{name:4} {width:5}  {candidate!s:18} {result.stores:5}/{result.ideal_stores:<5} "
                    f"{result.loads:5}/{result.ideal_loads:<5} {result.bases:5} {result.wasted:6}"
                    + ("   <- best" if candidate == results[0][0] else "")
                )
    return "\n".join(lines)


def main() -> None:
    """Print the search for every dataflow."""
    print(*(table(atom) for atom in (QuadPairs(), TwoByTwo(), Mma16())), sep="\n\n")


def _is_none(candidate: Candidate) -> bool:
    return candidate == Candidate()


def _is_padding(candidate: Candidate) -> bool:
    return candidate.padding > 0


def _is_xor(candidate: Candidate) -> bool:
    return candidate.bits > 0 and not candidate.gray


def _is_gray(candidate: Candidate) -> bool:
    return candidate.gray


def _no_place(row: Lanes, chunk: Lanes, chunks: int) -> Lanes:
    raise AssertionError("the search brings its own layouts")
