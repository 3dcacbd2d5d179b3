"""The index functions of the kernels, and that they are what the search finds."""

from __future__ import annotations

import numpy as np
import pytest

from reference.volta import shared_layouts
from reference.volta.layout import row_major
from reference.volta.mma16 import Mma16
from reference.volta.quad_pairs import QuadPairs
from reference.volta.search import Candidate, accesses, candidates, score, search, table
from reference.volta.shared_layouts import SharedTile, operand, padded, swizzled
from reference.volta.swizzle import Composed, Swizzle
from reference.volta.two_by_two import TwoByTwo

ATOMS = [
    QuadPairs(),
    QuadPairs(value_width=8),
    QuadPairs(tiles=2),
    TwoByTwo(),
    TwoByTwo(uses_p=False),
    Mma16(),
    Mma16(tiles=2),
]
NAMES = [f"{atom.name}, {getattr(atom, 'value_width', 16)}" for atom in ATOMS]
PLACES = {
    "q": (shared_layouts.q_index, operand),
    "k": (shared_layouts.k_index, operand),
    "v": (shared_layouts.v_index, operand),
    "p": (shared_layouts.p_index, swizzled),
}


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", "QKVP")
@pytest.mark.parametrize("atom", ATOMS, ids=NAMES)
def test_a_warp_loads_all_of_a_tile_and_nothing_beside_it(atom, name, width):
    loads = accesses(atom, name, width)[1]
    if name == "P" and not loads:
        return  # this atom hands P on in registers
    found = {pair for at in loads for pair in zip(at.row.tolist(), at.chunk.tolist(), strict=True)}
    rows = atom.warp_rows if name in "QP" else 32
    assert found == {(row, chunk) for row in range(rows) for chunk in range(width // 8)}


@pytest.mark.parametrize("width", range(8, 257, 8))
@pytest.mark.parametrize("name", PLACES)
def test_every_chunk_has_a_place_of_its_own(name, width):
    index, place = PLACES[name]
    tile = SharedTile(name.upper(), 32, width, place)
    by_hand = [[index(row, chunk, width) for chunk in range(width // 8)] for row in range(32)]
    np.testing.assert_array_equal(tile.places, by_hand)  # plain integers and arrays alike
    assert len(set(tile.places.ravel().tolist())) == 32 * width // 8
    assert tile.places.min() >= 0
    assert tile.bytes == 16 * (tile.places.max() + 1)
    spare = 31 if place is operand and width % 64 == 0 else 0  # a chunk behind each row but the last
    assert tile.wasted == 16 * spare


def test_rows_are_aligned_and_addresses_count_bytes():
    tile = SharedTile("K", 16, 64, operand, base=4096)
    assert tile.address(np.array([2]), np.array([3]), half=4)[0] == 4096 + 16 * (2 * 9 + 3) + 8


@pytest.mark.parametrize("chunks", [8, 16, 32])
def test_the_layouts_in_terms_of_the_algebra(chunks):
    """Padding is a stride; the Gray code is two swizzles, of the rows' bits and of the bits above them."""
    row, chunk = np.indices((32, chunks))
    layout = row_major(32, chunks, chunks + 1)
    np.testing.assert_array_equal(
        padded(row, chunk, chunks), [[layout(r, c) for c in range(chunks)] for r in range(32)]
    )
    bits = chunks.bit_length() - 1
    once, twice = Swizzle(3, 0, bits), Swizzle(3, 0, bits + 1)
    gray = Composed(lambda address: once(twice(address)), row_major(32, chunks))
    np.testing.assert_array_equal(
        swizzled(row, chunk, chunks), [[gray(r, c) for c in range(chunks)] for r in range(32)]
    )


def used(atom, name, width):
    """The candidate of the search that is the layout the kernels use."""
    chunks = width // 8
    if name != "P" and chunks % 8 == 0:
        return Candidate(padding=8)
    bits = min(3, (chunks & -chunks).bit_length() - 1)
    return Candidate(0, bits, 3 - bits, gray=True) if bits else Candidate()


def widths(atom, name):
    step = {"V": atom.value_depth, "P": atom.key_depth}.get(name, atom.depth)
    return range(step, 257, step)


@pytest.mark.parametrize("atom", ATOMS, ids=NAMES)
@pytest.mark.parametrize("name", ["Q", "K", "V", "P"])
def test_the_kernels_layouts_are_free_of_conflicts_at_every_width(atom, name):
    if name == "P" and not atom.uses_p:
        return
    for width in widths(atom, name):
        candidate = used(atom, name, width)
        place = swizzled if name == "P" else operand
        np.testing.assert_array_equal(candidate.places(32, width), SharedTile(name, 32, width, place).places)
        assert score(candidate, *accesses(atom, name, width), width).free, (width, candidate)


@pytest.mark.parametrize("atom", ATOMS, ids=NAMES)
@pytest.mark.parametrize("width", [64, 128, 192, 256])
def test_the_search_finds_the_kernels_layouts(atom, width):
    """The widths that matter: exactly the winner."""
    for name in ("Q", "K", "V", "P") if atom.uses_p and width != 192 else ("Q", "K", "V"):
        best, result = search(atom, name, width)[0]
        assert best == used(atom, name, width), name
        assert result.free


def test_what_happens_without_a_layout():
    """Rows of 128 bytes all begin in bank 0: eight rows of Q meet, and the four of K and V that differ."""
    for name, times in (("Q", 8), ("K", 4), ("V", 4)):
        results = dict(search(QuadPairs(), name, 64))
        plain = results[Candidate()]
        assert plain.loads == times * plain.ideal_loads
        assert plain.stores == plain.ideal_stores
    results = dict(search(TwoByTwo(), "P", 64))
    assert not results[Candidate(padding=8)].free
    assert not results[Candidate(0, 3, 0)].free  # the row itself does not do for P; its Gray code does
    assert results[Candidate(0, 3, 0, gray=True)].free


def test_padding_conflicts_when_stores_run_over_the_ends_of_rows():
    results = dict(search(QuadPairs(), "K", 96))
    padding = results[Candidate(padding=8)]
    assert padding.loads == padding.ideal_loads
    assert padding.stores > padding.ideal_stores


def test_only_whole_chunks_of_padding_keep_accesses_aligned():
    assert [c.padding for c in candidates(64) if c.padding] == [8, 16]


def test_a_swizzle_must_stay_within_its_row():
    assert Candidate(0, 2, 0).fits(96)
    assert not Candidate(0, 3, 0).fits(96)
    assert not Candidate(0, 1, 0).fits(72)


def test_the_table_names_one_winner_for_each_tile():
    lines = table(TwoByTwo(), (64,)).splitlines()
    assert sum("<- best" in line for line in lines) == 4
    assert any(line.split()[:4] == ["K", "64", "pad", "8"] and "32/32" in line for line in lines)
