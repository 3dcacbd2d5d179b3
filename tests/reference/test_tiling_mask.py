"""Every B-mask, at every offset and block shape in a range, against the definition; and that it is a view."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import tiling_mask, visibility
from reference.tiling_mask import b_mask, full_mask_bytes, m_mask, m_mask_bytes, saving, window_mask


def causal(delta, b1, b2):
    return np.array([[c <= r + delta for c in range(b2)] for r in range(b1)], dtype=bool).reshape(b1, b2)


def test_every_offset_of_every_small_block_shape():
    for b1, b2 in itertools.product(range(1, 8), repeat=2):
        triangle = m_mask(b1 + b2)
        for delta in range(-2 * (b1 + b2), 2 * (b1 + b2) + 1):
            tile = b_mask(triangle, delta, b1, b2)
            np.testing.assert_array_equal(tile, causal(delta, b1, b2), err_msg=f"{b1, b2, delta}")
            assert np.shares_memory(tile, triangle)
            assert tile.base is not None


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(-400, 400), st.integers(0, 40))
def test_any_offset_of_any_block_shape(b1, b2, delta, spare):
    triangle = m_mask(b1 + b2 + spare)  # a larger M-mask serves smaller tiles
    tile = b_mask(triangle, delta, b1, b2)
    np.testing.assert_array_equal(tile, visibility.visible(b1, b2, causal=True, q_offset=delta))
    assert np.shares_memory(tile, triangle)


@pytest.mark.parametrize("q_offset", [-3, 0, 6])
def test_the_tiles_of_one_triangle_make_up_the_whole_mask(q_offset):
    (Sq, Sk), (b1, b2) = (17, 23), (4, 6)
    triangle, whole = m_mask(b1 + b2), np.zeros((Sq, Sk), bool)
    for i, j in itertools.product(range(0, Sq, b1), range(0, Sk, b2)):
        rows, keys = min(b1, Sq - i), min(b2, Sk - j)  # the tiles at the edge are smaller
        whole[i : i + rows, j : j + keys] = b_mask(triangle, q_offset + i - j, rows, keys)
    np.testing.assert_array_equal(whole, visibility.visible(Sq, Sk, causal=True, q_offset=q_offset))


def test_windows_from_the_same_triangle():
    for b1, b2, left, right in itertools.product((1, 3, 4), (1, 2, 5), (0, 1, 6), (0, 2, 7)):
        triangle = m_mask(b1 + b2)
        for delta in range(-16, 17):
            got = window_mask(triangle, delta, b1, b2, left=left, right=right)
            want = visibility.visible(b1, b2, window=(left, right), q_offset=delta)
            np.testing.assert_array_equal(got, want, err_msg=f"{b1, b2, left, right, delta}")


def test_one_row_fewer_is_not_enough():
    with pytest.raises(ValueError, match="tiles of 4 x 3 need an M-mask of 7 cells a side"):
        b_mask(m_mask(6), 0, 4, 3)


def test_equal_aligned_blocks_have_three_kinds():
    kinds = {b_mask(m_mask(8), delta, 4, 4).tobytes() for delta in range(-40, 44, 4)}
    assert len(kinds) == 3


def test_memory():
    GiB, MiB, KiB = 2**30, 2**20, 2**10
    assert full_mask_bytes(64 * 1024) == 4 * GiB
    assert full_mask_bytes(64 * 1024, itemsize=2) == 8 * GiB
    assert full_mask_bytes(256 * 1024) == 64 * GiB
    assert full_mask_bytes(256 * 1024, itemsize=2) == 128 * GiB
    assert m_mask_bytes(512) == 1 * MiB
    assert m_mask_bytes(512, itemsize=2) == 2 * MiB
    assert m_mask_bytes(256) == 256 * KiB
    assert m_mask(1024).nbytes == m_mask_bytes(512)
    assert f"{saving(64 * 1024, 512):.6f}" == "0.999756"
    assert tiling_mask.m_mask_bytes(1024) == 4 * m_mask_bytes(512)  # the square of M, not M
