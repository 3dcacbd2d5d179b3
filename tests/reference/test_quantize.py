"""Int8 rows: the error bound holds exactly, nothing overflows, and a scale a token is worth its bytes."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import quantize

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def exact_error(x, integer, scale):
    """|x - scale * integer| without any rounding."""
    return abs(Fraction(float(x)) - Fraction(float(scale)) * int(integer))


@settings(deadline=None, max_examples=300)
@given(st.lists(FLOATS, min_size=1, max_size=12))
def test_no_element_is_off_by_more_than_half_a_scale(row):
    x = np.array(row, np.float32)
    integers, scales = quantize.quantize(x)
    assert integers.dtype == np.int8
    assert scales.dtype == np.float32
    assert -127 <= integers.min() <= integers.max() <= 127
    for value, integer in zip(x, integers, strict=True):
        assert exact_error(value, integer, scales) <= Fraction(float(scales)) / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_bound_is_reached_and_kept(dtype):
    x = np.random.default_rng(1).standard_normal((3, 5, 64)).astype(dtype)
    integers, scales = quantize.quantize(x)
    error = np.abs(x.astype(np.float64) - quantize.dequantize(integers, scales))
    share = error / quantize.error_bound(scales)[..., None]
    assert 0.95 < share.max() <= 1
    assert scales.shape == (3, 5)
    assert (np.abs(integers).max(axis=-1) == 127).all()


def test_halves_go_to_even():
    x = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5], np.float32)  # the scale is 1
    integers, scales = quantize.quantize(x)
    assert scales == 1
    assert integers.tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


def test_rows_of_zeros_and_rows_below_the_normal_numbers():
    tiny = np.finfo(np.float32).smallest_subnormal
    x = np.array([[0, 0], [-0.0, 0], [tiny, -tiny], [1e-37, 3e-38]], np.float32)
    integers, scales = quantize.quantize(x)
    assert scales[:2].tolist() == [0, 0]
    assert (scales[2:] == quantize.SMALLEST_SCALE).all()
    assert integers.tolist() == [[0, 0], [0, 0], [0, 0], [9, 3]]
    assert (quantize.dequantize(integers, scales)[:3] == 0).all()


def test_the_largest_numbers_do_not_overflow():
    most = np.finfo(np.float32).max
    integers, scales = quantize.quantize(np.array([most, -most, most / 2], np.float32))
    assert integers.tolist() == [127, -127, 63]  # s was rounded up, so x / s is just below 63.5
    assert np.isfinite(scales)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name_and_place(bad):
    x = np.ones((2, 3), np.float32)
    x[1, 2] = bad
    with pytest.raises(ValueError, match=rf"keys must be finite to be quantised, got {bad} at \(1, 2\)"):
        quantize.quantize(x, name="keys")


def test_shapes_at_the_edge():
    integers, scales = quantize.quantize(np.zeros((2, 0, 4)))
    assert integers.shape == (2, 0, 4)
    assert scales.shape == (2, 0)
    with pytest.raises(ValueError, match="k must have at least one axis"):
        quantize.quantize(np.float32(1), name="k")


def test_a_scale_a_token_beats_a_scale_a_block():
    """Alike tokens: a block costs little. One loud token: a block costs its neighbours their precision."""
    rng = np.random.default_rng(2)
    alike = rng.standard_normal((4, 64, 64))
    loud = alike.copy()
    loud[:, ::16] *= 20
    token, block = quantize.block_error(alike, 1), quantize.block_error(alike, 16)
    assert token < block < 1.5 * token
    assert quantize.block_error(loud, 1) == pytest.approx(token, rel=1e-12)
    assert quantize.block_error(loud, 16) > 10 * token


def test_block_error_is_the_error_of_quantize():
    x = np.random.default_rng(3).standard_normal((2, 7, 16))
    integers, scales = quantize.quantize(x)
    relative = (x - quantize.dequantize(integers, scales)) / np.abs(x).max(axis=-1, keepdims=True)
    assert quantize.block_error(x, 1) == pytest.approx(np.sqrt(np.mean(relative**2)), rel=1e-5)
    assert quantize.block_error(np.zeros((2, 5, 3)), 4) == 0
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        quantize.block_error(x, 0)
