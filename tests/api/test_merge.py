"""merge joins attention over parts of the keys into attention over all of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fastattention
from fastattention import attention, merge

INF = float("inf")
# Rounding of the storage type: a few units in the last place of values about 1.
TOLERANCE = {np.float64: 1e-14, np.float32: 2e-6, np.float16: 2e-3, ml_dtypes.bfloat16: 2e-2}


def tensors(dtype=np.float32, k_len=11):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 4, 3, 8)).astype(dtype)
    k = rng.standard_normal((2, 2, k_len, 8)).astype(dtype)
    return q, k, rng.standard_normal((2, 2, k_len, 5)).astype(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cuts", [[11], [4, 11], [1, 2, 11], [5, 5, 11], [0, 11]])
def test_parts_make_the_whole(dtype, cuts):
    q, k, v = tensors(dtype)
    backend = "reference" if dtype == np.float64 else "auto"
    parts, start = [], 0
    for end in cuts:
        part = attention(q, k[:, :, start:end], v[:, :, start:end], return_lse=True, backend=backend)
        parts.append(part)
        start = end
    out, lse = merge(part for part in parts)
    assert (out.dtype, lse.dtype) == (q.dtype, parts[0][1].dtype)
    expected, expected_lse = fastattention.reference.standard.attention(q, k, v)
    np.testing.assert_allclose(out.astype(float), expected, rtol=0, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-5 if dtype != np.float64 else 1e-13)


def test_packed_parts():
    q, k, v = (x[0].swapaxes(0, 1).copy() for x in tensors())
    starts = np.array([0, 3])

    def part(rows):
        return fastattention.attention_varlen(
            q, k[rows], v[rows], starts, np.array([0, len(k[rows])]), return_lse=True
        )

    out, lse = merge([part(slice(0, 6)), part(slice(6, 11))])
    expected, expected_lse = part(slice(0, 11))
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-5)


def test_no_key_anywhere():
    out, lse = np.zeros((3, 5), np.float32), np.full(3, -INF, np.float32)
    merged, merged_lse = merge([(out, lse), (out, lse)])
    assert (merged == 0).all()
    assert (merged_lse == -INF).all()


def test_a_part_without_keys_has_no_say_whatever_it_holds():
    out, lse = np.ones((3, 5), np.float32), np.array([0.0, -2.0, 100.0], np.float32)
    poison = np.full((3, 5), np.nan, np.float32)
    merged, merged_lse = merge([(poison, np.full(3, -INF, np.float32)), (out, lse)])
    np.testing.assert_array_equal(merged, out)
    np.testing.assert_array_equal(merged_lse, lse)


def test_logits_far_apart_and_far_from_zero():
    a, b = np.full((2, 1), 1, np.float32), np.full((2, 1), 3, np.float32)
    merged, lse = merge([(a, np.array([900, -900], np.float32)), (b, np.array([900, 900], np.float32))])
    np.testing.assert_allclose(merged[:, 0], [2, 3])
    np.testing.assert_allclose(lse, [900 + np.log(2), 900], rtol=1e-7)


def test_half_precision_is_not_accumulated_in_half():
    # 3000 equal parts of 1: a float16 sum would stop at 2048 and an average of it be far from 1.
    part = (np.ones((1, 4), np.float16), np.zeros(1, np.float32))
    merged, lse = merge([part] * 3000)
    assert (merged == 1).all()
    assert lse[0] == pytest.approx(np.log(3000), abs=1e-5)


def test_an_undefined_lse_shows():
    out = np.ones((2, 4), np.float32)
    merged, lse = merge([(out, np.array([np.nan, 0], np.float32)), (out, np.zeros(2, np.float32))])
    assert np.isnan(merged[0]).all()
    assert np.isnan(lse[0])
    assert (merged[1] == 1).all()


def test_inputs_stay_as_they_are_and_the_result_is_new():
    out, lse = np.ones((2, 4), np.float32), np.zeros(2, np.float32)
    merged, merged_lse = merge([(out, lse)])
    assert not np.shares_memory(merged, out)
    assert not np.shares_memory(merged_lse, lse)
    np.testing.assert_array_equal(merged, out)


GOOD = (np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], ValueError, "parts: expected at least one"),
        ([GOOD, GOOD[0]], TypeError, r"parts\[1\]: expected a pair \(out, lse\), got ndarray"),
        ([(*GOOD, None)], TypeError, r"parts\[0\]: expected a pair"),
        ([GOOD, ([1.0], GOOD[1])], TypeError, r"parts\[1\] out: expected an array .*list"),
        ([GOOD, (GOOD[0][:1], GOOD[1][:1])], ValueError, r"parts\[1\] out: expected the shape of parts\[0\]"),
        ([GOOD, (GOOD[0], GOOD[1][:1])], ValueError, r"parts\[1\] lse: expected out's shape \(2, 3, 4\)"),
        ([(GOOD[1][0, 0], GOOD[1])], TypeError, r"parts\[0\] out: expected an array"),
        (
            [(GOOD[0].astype(int), GOOD[1])],
            TypeError,
            r"parts\[0\] out: expected a floating dtype, got int64",
        ),
        ([(GOOD[0], GOOD[1].astype(np.float16))], TypeError, r"parts\[0\] lse: expected float32 or float64"),
        ([GOOD, (GOOD[0].astype(np.float16), GOOD[1])], TypeError, r"parts\[1\]: .*got float16 and float32"),
        ([GOOD, (GOOD[0], GOOD[1].astype(float))], TypeError, r"parts\[1\]: .*got float32 and float64"),
        ([(GOOD[0].astype(">f4"), GOOD[1])], TypeError, r"parts\[0\] out: byte-swapped"),
    ],
)
def test_bad_parts(parts, error, message):
    with pytest.raises(error, match=message):
        merge(parts)
