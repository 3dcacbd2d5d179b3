"""Bank conflicts by hand and by a second way to count; loads, stores and ldmatrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.volta.bank_conflicts import bank_counts, ideal, phases, wavefronts
from reference.volta.fragments import FRAGMENTS, distribute, ldmatrix_row
from reference.volta.shared_memory import Access, Counts, SharedMemory
from reference.volta.warp import Warp

LANE = np.arange(32)
WIDTHS = (2, 4, 8, 16)


def by_simulation(addresses, width, active):
    """Serve word by word: each cycle every bank gives one word to all who want it."""
    cycles = 0
    lanes_of_a_phase = 32 // max(1, width // 4)
    for first in range(0, 32, lanes_of_a_phase):
        wanted = {
            word
            for lane in range(first, first + lanes_of_a_phase)
            if active[lane]
            for word in range(addresses[lane] // 4, (addresses[lane] + width - 1) // 4 + 1)
        }
        while wanted:
            served = {}
            for word in sorted(wanted):
                served.setdefault(word % 32, word)
            wanted -= set(served.values())
            cycles += 1
    return cycles


@settings(deadline=None)
@given(
    st.sampled_from(WIDTHS),
    st.lists(st.integers(0, 300), min_size=32, max_size=32),
    st.lists(st.booleans(), min_size=32, max_size=32),
)
def test_wavefronts_against_a_simulation(width, units, active):
    addresses, active = width * np.array(units), np.array(active)
    assert wavefronts(addresses, width, active=active) == by_simulation(addresses, width, active)
    assert wavefronts(addresses, width, active=active) >= ideal(width, active=active)
    everyone = np.ones(32, bool)
    assert wavefronts(addresses, width) == by_simulation(addresses, width, everyone)
    assert wavefronts(addresses + 128 * 7, width) == wavefronts(addresses, width)


@pytest.mark.parametrize("stride", range(1, 65))
def test_words_a_stride_apart(stride):
    """The textbook rule: a stride of s words takes gcd(s, 32) cycles."""
    assert wavefronts(4 * stride * LANE, 4) == np.gcd(stride, 32)


@pytest.mark.parametrize("width", WIDTHS)
def test_neighbours_and_broadcast_are_ideal(width):
    assert wavefronts(width * LANE, width) == ideal(width) == phases(width) == max(1, width // 4)
    assert wavefronts(0 * LANE, width) == phases(width)


def test_halves_of_one_word_are_one_word():
    assert wavefronts(2 * (LANE ^ 1), 2) == 1
    assert wavefronts(2 * LANE + 64 * (LANE & 1), 2) == 1  # words 0 to 15 and 16 to 31
    assert wavefronts(2 * LANE + 128 * (LANE & 1), 2) == 2  # neighbours now 32 words apart: one bank


def test_phases_do_not_disturb_each_other():
    """Lanes 0 and 8 want different words of a bank: one phase of 4-byte accesses, two of 16-byte ones."""
    far = np.where(LANE < 8, 16 * LANE, 128 + 16 * (LANE % 8))
    assert wavefronts(far, 16) == 4
    assert wavefronts(far, 4) == 2
    assert bank_counts(far, 4).tolist()[:8] == [2, 0, 0, 0, 2, 0, 0, 0]


def test_merging_where_it_is_known():
    pairs, crossed = 16 * (LANE >> 1), 16 * ((LANE & 1) + (LANE >> 2) * 2)
    for addresses in (pairs, crossed, 0 * LANE):
        assert wavefronts(addresses, 16) == 4
        assert wavefronts(addresses, 16, merging=True) == 2
        assert wavefronts(addresses // 2, 8) == 2
        assert wavefronts(addresses // 2, 8, merging=True) == 1
    assert wavefronts(4 * LANE, 4, merging=True) == 1
    keys = 144 * ((LANE & 3) + 4 * (LANE >> 4))  # m8n8k4's own repetition, over lanes ^ 4 and ^ 8
    assert wavefronts(keys, 16, merging=True) == wavefronts(keys, 16) == 4


def test_bad_accesses_are_refused():
    with pytest.raises(ValueError, match="multiples of 16 bytes"):
        wavefronts(8 * LANE, 16)
    with pytest.raises(ValueError, match="width must be one of"):
        wavefronts(8 * LANE, 32)
    with pytest.raises(ValueError, match="32 lanes"):
        wavefronts(LANE[:16] * 4, 4)
    shared = SharedMemory(512)
    with pytest.raises(IndexError, match="leave the 512 bytes"):
        shared.load("K", 16 * LANE + 16, 16)
    with pytest.raises(ValueError, match="matrices must be 1, 2 or 4"):
        shared.ldmatrix("K", 16 * LANE, 3)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_stored_is_loaded(width, rng):
    shared = SharedMemory(32 * width)
    values = rng.standard_normal((32, width // 2)).astype(np.float16)
    where = width * rng.permutation(32)
    shared.store("V", where, values)
    np.testing.assert_array_equal(shared.load("V", where, width), values)


def test_lanes_that_take_no_part_store_nothing():
    shared = SharedMemory(128)
    shared.store("P", 4 * LANE, np.ones((32, 1), np.float32), LANE < 3)
    words = shared.load("P", 4 * LANE, 4, np.float32)[:, 0]
    assert words[:3].tolist() == [1, 1, 1]
    assert np.isnan(words[3:]).all()  # never stored


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans, rng):
    matrices = rng.standard_normal((count, 8, 8)).astype(np.float16)
    shared = SharedMemory(128 * 4)
    shared.store(
        "K", 16 * LANE, np.vstack([matrices.reshape(-1, 8), np.zeros((32 - 8 * count, 8), np.float16)])
    )
    matrix, row = ldmatrix_row(LANE)
    address = np.where(
        matrix < count, 128 * matrix + 16 * row, 10**6
    )  # the others' addresses are not looked at
    got = shared.ldmatrix("K", address, count, trans=trans)
    fragment = FRAGMENTS["ldmatrix"]
    for i, M in enumerate(matrices):
        np.testing.assert_array_equal(got[:, 2 * i : 2 * i + 2], distribute(M.T if trans else M, fragment))
    assert shared.counts.wavefronts("K", "load") == count


def test_four_matrices_are_an_operand_of_ampere(rng):
    A = rng.standard_normal((16, 16)).astype(np.float16)
    shared = SharedMemory(512)
    for half in (0, 1):  # chunks of a row next to each other
        shared.store("Q", 32 * (LANE % 16) + 16 * half, A[LANE % 16, 8 * half : 8 * half + 8], LANE < 16)
    a = shared.ldmatrix("Q", 32 * (LANE & 15) + 16 * (LANE >> 4))
    np.testing.assert_array_equal(a, distribute(A, FRAGMENTS["m16n8k16 A"]))


def test_counts_add_up_by_tile_and_kind():
    shared = SharedMemory(4096)
    shared.store("Q", 16 * LANE, np.zeros((32, 8), np.float16))
    shared.load("Q", 128 * LANE, 4)
    shared.load("K", 4 * LANE, 4)
    counts = shared.counts
    assert counts.wavefronts() == 4 + 32 + 1
    assert counts.ideal() == 4 + 1 + 1
    assert counts.wavefronts("Q") == 36
    assert counts.wavefronts(kind="load") == 33
    assert counts.instructions("Q", "load") == 1
    assert counts.accesses[Access("Q", "load", 4, 32, 1)] == 1


def test_the_warp_counts_what_it_does():
    warp = Warp(SharedMemory(0, Counts()))
    half, single = np.zeros((32, 4), np.float16), np.zeros((32, 8), np.float32)
    warp.mma_m8n8k4(half, half, single)
    warp.mma_m8n8k4(half, half, single, "row")
    warp.shfl_xor(np.zeros((32, 2, 2), np.float32), 1)
    assert (warp.counts.mma, warp.counts.shuffles) == (2, 4)
