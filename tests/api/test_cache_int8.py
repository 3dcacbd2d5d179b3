"""An int8 cache: rounded as the specification says when appended, and never by accident of inf or NaN."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import pytest
from fastattention.reference import quantize, standard

from fastattention import KVCache, cpu_kernels

B, HQ, HKV, D, DV = 2, 4, 2, 8, 5
FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def tokens(count, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, HKV, count, D), (B, HKV, count, DV)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def queries(count, dtype=np.float32):
    return np.random.default_rng(9).standard_normal((B, HQ, count, D)).astype(dtype)


def cache(page_size=None):
    return KVCache(B, HKV, D, dtype="int8", v_dim=DV, max_length=200, page_size=page_size)


def state(c):
    return c.lengths.tolist(), c.keys.copy(), c.values.copy(), c.key_scales.copy(), c.nbytes, c.pages_in_use


def same_state(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pieces", [[100], [1] * 100, [64, 1, 35]])
def test_rows_are_rounded_as_the_specification_says(dtype, pieces, place):
    k, v = tokens(100, dtype)
    c, at = cache(), 0
    for n in pieces:
        c.append(k[:, :, at : at + n], v[:, :, at : at + n])
        at += n
    for x, integers, scales in ((k, c.keys, c.key_scales), (v, c.values, c.value_scales)):
        expected, expected_scales = quantize.quantize(x)
        assert (integers.dtype, scales.dtype) == (np.int8, np.float32)
        np.testing.assert_array_equal(integers, expected)
        np.testing.assert_array_equal(scales, expected_scales)
        error = np.abs(x.astype(np.float64) - quantize.dequantize(integers, scales))
        assert (error <= quantize.error_bound(scales)[..., None]).all()
        with pytest.raises(ValueError, match="read-only"):
            scales[:] = 0


@pytest.mark.parametrize("q_dtype", FLOATS)
def test_attention_is_that_of_the_rounded_rows(q_dtype, place):
    k, v = tokens(30)
    c = cache()
    c.append(k, v, np.array([30, 7]))
    q = queries(3, q_dtype)
    out, lse = c.attend(q, backend="reference", return_lse=True)
    rows = [quantize.dequantize(*quantize.quantize(x)) for x in (k, v)]
    expected, expected_lse = standard.attention(q, *rows, causal=True, kv_lengths=[30, 7])
    assert out.dtype == q_dtype
    if place == "cpu":  # the reference; else kernels
        np.testing.assert_array_equal(out, expected.astype(q_dtype))
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-7)
    else:
        tolerance = 2e-5 if q_dtype == np.float32 else 2e-2
        np.testing.assert_allclose(out.astype(float), expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-3, atol=1e-3)
    exact, _ = standard.attention(q, k, v, causal=True, kv_lengths=[30, 7])
    assert 1e-4 < np.abs(expected - exact).max() < 0.05, "nothing was rounded, or far too much"


def test_strided_rows_and_rows_of_zeros(place):
    fused = np.random.default_rng(1).standard_normal((B, 9, HKV, D + DV)).astype(np.float32)
    fused[1, 4] = 0
    k, v = fused[..., :D].swapaxes(1, 2), fused[..., D:].swapaxes(1, 2)
    c = cache()
    c.append(k, v)
    np.testing.assert_array_equal(c.keys, quantize.quantize(k)[0])
    assert (c.key_scales[1, :, 4] == 0).all()
    assert np.isfinite(c.attend(queries(2), backend="reference")).all()
    if place == "pretended":
        return  # CuPy copies where the last axis is not contiguous: on a GPU only
    c.append(k[..., ::-1], v[:, :, ::-1])
    np.testing.assert_array_equal(c.keys[:, :, 9:], quantize.quantize(k[..., ::-1])[0])
    np.testing.assert_array_equal(c.values[:, :, 9:], quantize.quantize(v[:, :, ::-1])[0])


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["k", "v"])
def test_what_is_not_finite_is_refused_before_anything_changes(name, bad, page_size):
    c = cache(page_size)
    c.append(*tokens(5), np.array([5, 3]))
    before = state(c)
    new = dict(zip("kv", tokens(90, seed=1), strict=True))
    new[name][1, 1, 40, 2] = bad
    with pytest.raises(
        ValueError, match=f"{name}: expected finite numbers for an int8 cache, got inf or NaN"
    ):
        c.append(**new)
    assert same_state(before, state(c))
    c.append(**new, lengths=np.array([90, 40]))  # the bad token is taken by nobody
    assert c.lengths.tolist() == [95, 43]
    with pytest.raises(ValueError, match=f"{name}: expected finite"):
        c.append(**new, lengths=np.array([1, 41]))
    assert c.lengths.tolist() == [95, 43]


def test_other_dtypes_are_refused():
    c = cache()
    k, v = tokens(3)
    for wrong in (k.astype(np.float64), k.astype(np.int8), k.astype(">f4")):
        with pytest.raises(
            TypeError, match=r"k: (expected float32, float16 or bfloat16, to be|byte-swapped)"
        ):
            c.append(wrong, v)
    c.append(k, v.astype(np.float16))
    for q in (queries(1).astype(np.float64), queries(1).astype(np.int8)):
        for backend in ("cpu", "reference"):
            with pytest.raises(TypeError, match="q: "):
                c.attend(q, backend=backend)
    with pytest.raises(TypeError, match="q: expected float32, float16, bfloat16, got float64"):
        c.attend(queries(1).astype(np.float64), backend="reference")


def test_memory_is_a_quarter_of_float32_and_the_scales(place):
    sizes = {
        dtype: KVCache(2, 4, 64, dtype=dtype, max_length=64).nbytes
        for dtype in ("float32", "float16", "int8")
    }
    assert sizes["float32"] == 2 * 2 * 4 * 64 * 64 * 4
    assert sizes["float32"] == 2 * sizes["float16"]
    assert sizes["int8"] == sizes["float32"] // 4 + 2 * 2 * 4 * 64 * 4


@pytest.mark.parametrize("page_size", [None, 16])
def test_one_token_costs_microseconds(page_size):
    """Generous, for busy machines: it catches a pass over the whole cache, not a microsecond."""
    c = KVCache(1, 3, 64, dtype="int8", max_length=10_000, page_size=page_size)
    rows = np.random.default_rng(0).standard_normal((1, 3, 6000, 64)).astype(np.float32)
    c.append(rows, rows)
    one, times = rows[:, :, :1].copy(), []
    for _ in range(500):
        start = time.perf_counter()
        c.append(one, one)
        times.append(time.perf_counter() - start)
    assert min(times) < 300e-6


@pytest.mark.parametrize("width", [1, 2, 3, 7, 16, 33, 64, 80, 129, 256])
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-36, 1.0, 1e4, 3e38])
def test_the_kernel_rounds_like_the_specification_bit_for_bit(width, size):
    rng = np.random.default_rng(width)
    x = np.clip(rng.standard_normal((2, 3, 11, width)), -1, 1).astype(np.float32) * np.float32(size)
    x[0, 1, 2] = 0
    x[1, 0, 3] = np.arange(width) % 128 - 63.5  # halves of its scale
    x[1, 0, 3, 0] = 127
    for view in (x, x[:, ::-1, ::2], x.swapaxes(0, 1)):
        integers, scales = cpu_kernels.quantize(view)
        expected, expected_scales = quantize.quantize(view)
        np.testing.assert_array_equal(integers, expected)
        np.testing.assert_array_equal(scales, expected_scales)


def test_a_quotient_just_below_a_half_is_not_rounded_to_it_first():
    """In float32 these quotients, 1.5 less a little, would become 1.5, and then 2."""
    scale = np.float32(1 + 3 * 2.0**-23)
    row = np.full((1, 1, 1, 5), 1.5 + 4 * 2.0**-23, np.float32)
    row[..., 0] = np.float32(127 * np.float64(scale))
    assert np.rint(row[..., 1] / scale) == 2
    integers, scales = cpu_kernels.quantize(row)
    assert scales == scale
    assert integers.ravel().tolist() == [127, 1, 1, 1, 1]
    np.testing.assert_array_equal(quantize.quantize(row)[0], integers)
