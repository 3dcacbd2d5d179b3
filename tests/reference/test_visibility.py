"""Intervals, masks and tile kinds against the definition, cell by cell."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.visibility import Tile, band, classify, intervals, positions, visible

BANDS = [
    {"causal": False, "window": None},
    {"causal": True, "window": None},
    {"causal": False, "window": (0, 0)},
    {"causal": False, "window": (2, 1)},
    {"causal": False, "window": (None, 2)},
    {"causal": False, "window": (3, -1)},
    {"causal": True, "window": (2, 4)},
    {"causal": True, "window": (-1, 0)},
]


def by_definition(q_len, k_len, causal, window, kv_length, q_offset):
    mask = np.zeros((q_len, k_len), bool)
    for i, j in np.ndindex(q_len, k_len):
        p = q_offset + i
        ok = j < kv_length and (not causal or j <= p)
        if window is not None:
            left, right = window
            ok = ok and (left in (None, -1) or j >= p - left) and (right in (None, -1) or j <= p + right)
        mask[i, j] = ok
    return mask


@pytest.mark.parametrize("options", BANDS, ids=str)
def test_masks_and_intervals_at_every_offset_and_length(options):
    for q_len, k_len, kv_length, offset in itertools.product(
        (0, 1, 4), (0, 1, 6), (0, 1, 3, 6), range(-8, 10)
    ):
        if kv_length > k_len:
            continue
        want = by_definition(q_len, k_len, kv_length=kv_length, q_offset=offset, **options)
        got = visible(q_len, k_len, kv_length=kv_length, q_offset=offset, **options)
        np.testing.assert_array_equal(got, want)

        first, last = intervals(q_len, k_len, kv_length=kv_length, q_offset=offset, **options)
        assert first.shape == last.shape == (q_len,)
        for i in range(q_len):
            assert list(range(first[i], last[i] + 1)) == np.flatnonzero(want[i]).tolist()
        assert (np.diff(first) >= 0).all()
        assert (np.diff(last) >= 0).all()


def test_the_last_query_stands_at_the_last_key_by_default():
    np.testing.assert_array_equal(visible(2, 5, causal=True), visible(2, 5, causal=True, q_offset=3))
    np.testing.assert_array_equal(
        visible(4, 9, causal=True, kv_length=6), visible(4, 9, causal=True, kv_length=6, q_offset=2)
    )
    assert positions(2, -1).tolist() == [-1, 0]


@pytest.mark.parametrize("options", BANDS, ids=str)
def test_tile_kinds_at_every_offset(options):
    for b1, b2, i, j, kv_length, offset in itertools.product(
        (1, 2, 3), (1, 2, 4), (0, 3), (0, 2, 4), (0, 3, 5, 9), range(-9, 12)
    ):
        tile = by_definition(i + b1, j + b2, kv_length=kv_length, q_offset=offset, **options)[i:, j:]
        want = Tile.FULL if tile.all() else Tile.PARTIAL if tile.any() else Tile.EMPTY
        got = classify((i, i + b1), (j, j + b2), kv_length=kv_length, q_offset=offset, **options)
        assert got is want, (b1, b2, i, j, kv_length, offset)


@settings(deadline=None)
@given(
    rows=st.tuples(st.integers(0, 40), st.integers(1, 20)),
    cols=st.tuples(st.integers(0, 40), st.integers(1, 20)),
    kv_length=st.integers(0, 60),
    q_offset=st.integers(-70, 70),
    causal=st.booleans(),
    window=st.none() | st.tuples(*[st.none() | st.integers(-1, 30)] * 2),
)
def test_tile_kinds_of_any_tile(rows, cols, kv_length, q_offset, causal, window):
    (i, b1), (j, b2) = rows, cols
    options = {"causal": causal, "window": window, "kv_length": kv_length, "q_offset": q_offset}
    tile = by_definition(i + b1, j + b2, **options)[i:, j:]
    want = Tile.FULL if tile.all() else Tile.PARTIAL if tile.any() else Tile.EMPTY
    assert classify((i, i + b1), (j, j + b2), **options) is want


def test_a_tile_without_cells_is_empty():
    assert classify((3, 3), (0, 4), kv_length=9, q_offset=0) is Tile.EMPTY
    assert classify((0, 4), (3, 3), kv_length=9, q_offset=0) is Tile.EMPTY


def test_band_joins_causal_and_window():
    assert band(causal=False, window=None) == (None, None)
    assert band(causal=False, window=(-1, 3)) == (None, 3)
    assert band(causal=True, window=(5, None)) == (5, 0)
    with pytest.raises(ValueError, match="window must hold"):
        band(causal=False, window=(-2, 0))
