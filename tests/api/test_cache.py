"""A KV cache holds what was appended, attends like attention over all of it, and survives every mistake."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import fastattention
from fastattention import KVCache
from fastattention.cache_contiguous import Contiguous

B, HQ, HKV, D, DV = 2, 4, 2, 8, 5
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def tokens(count, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((B, HKV, count, D)).astype(dtype)
    v = rng.standard_normal((B, HKV, count, DV)).astype(dtype)
    return k, v


def queries(count, dtype=np.float32):
    return np.random.default_rng(9).standard_normal((B, HQ, count, D)).astype(dtype)


def cache(dtype=np.float32, max_length=200):
    return KVCache(B, HKV, D, dtype=dtype, v_dim=DV, max_length=max_length)


def alike(got, expected, place):
    """Equal where the CPU's kernels compute both; on a GPU, as close as other sums and 16-bit weights are."""
    if place == "gpu":
        tolerance = 1e-5 if expected.dtype == np.float32 else 2e-2
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(got, expected)


def state(c):
    return c.lengths.tolist(), c.keys.copy(), c.values.copy(), c.nbytes


def same_state(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pieces", [[150], [1] * 150, [64, 1, 63, 22], [0, 7, 0, 143]])
def test_what_is_appended_is_kept_through_growth(dtype, pieces, place):
    k, v = tokens(150, dtype)
    c, at = cache(dtype), 0
    for n in pieces:
        c.append(k[:, :, at : at + n], v[:, :, at : at + n])
        at += n
        assert c.lengths.tolist() == [at, at]
    assert c.lengths.dtype == np.int64
    assert c.keys.dtype == c.values.dtype == dtype
    np.testing.assert_array_equal(c.keys, k)
    np.testing.assert_array_equal(c.values, v)
    q = queries(3, dtype)
    alike(c.attend(q), fastattention.attention(q, k, v, causal=True), place)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_dtype", ["float32", "cache"])
def test_ragged_batches(dtype, q_dtype, backend, place):
    if place != "cpu" and backend == "reference":
        pytest.skip("the reference is for arrays in CPU memory")
    k, v = tokens(30, dtype)
    c = cache(dtype)
    c.append(k[:, :, :10], v[:, :, :10], np.array([10, 4]))
    c.append(k[:, :, 10:15], v[:, :, 10:15], np.array([0, 5], np.int32))
    c.append(k[:, :, 15:20], v[:, :, 15:20])
    assert c.lengths.tolist() == [15, 14]
    kept = [[*range(10), *range(15, 20)], [*range(4), *range(10, 20)]]
    q = queries(3, np.float32 if q_dtype == "float32" else dtype)
    slopes = np.linspace(0, 1, HQ, dtype=np.float32)
    out, lse = c.attend(q, alibi_slopes=slopes, window=(9, None), return_lse=True, backend=backend)
    assert (out.dtype, lse.dtype) == (q.dtype, np.float32)
    for b, rows in enumerate(kept):
        np.testing.assert_array_equal(c.keys[b, :, : len(rows)], k[b][:, rows])
        expected, expected_lse = fastattention.reference.standard.attention(
            q[b : b + 1], k[b : b + 1][:, :, rows], v[b : b + 1][:, :, rows], causal=True,
            alibi_slopes=slopes, window=(9, None),
        )  # fmt: skip
        tolerance = 1e-5 if q_dtype == "float32" or dtype == np.float32 else 2e-2
        np.testing.assert_allclose(out[b].astype(float), expected[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(lse[b], expected_lse[0], rtol=1e-5, atol=1e-5)


def test_lengths_that_turn_out_equal_are_not_ragged(place):
    k, v = tokens(9)
    c = cache()
    c.append(k, v, np.array([4, 6]))
    c.append(k, v, np.array([3, 1]))
    assert c.lengths.tolist() == [7, 7]
    c.append(k[:, :, :2], v[:, :, :2], np.array([1, 1]))
    assert c.lengths.tolist() == [8, 8]
    np.testing.assert_array_equal(c.keys[:, :, 7], k[:, :, 0])
    np.testing.assert_array_equal(c.keys[0, :, 4:7], k[0, :, :3])


def test_float32_is_rounded_to_the_cache(place):
    k, v = tokens(5)
    c = cache(ml_dtypes.bfloat16)
    c.append(k, v)
    np.testing.assert_array_equal(c.keys, k.astype(ml_dtypes.bfloat16))


def test_attend_options_reach_the_kernel(place):
    k, v = tokens(12)
    c = cache()
    c.append(k, v)
    q = queries(4)
    mask = np.random.default_rng(4).random((4, 12)) < 0.7
    options = {
        "causal": False, "window": (5, 2), "mask": mask, "scale": 0.5, "softcap": 2.0,
        "sinks": np.ones(HQ, np.float32), "q_offset": np.array([3, 8]),
    }  # fmt: skip
    expected = fastattention.attention(q, k, v, **options)
    out = np.empty((B, HQ, 4, DV), np.float32)
    assert c.attend(q, **options, out=out, num_threads=1) is out
    alike(out, expected, place)
    assert not np.allclose(expected, c.attend(q))


def test_empty_cache(place):
    out, lse = cache().attend(queries(2), return_lse=True)
    assert out.shape == (B, HQ, 2, DV)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


def test_truncate_and_reset(place):
    k, v = tokens(20)
    c = cache()
    c.append(k, v, np.array([20, 6]))
    c.truncate(30)
    assert c.lengths.tolist() == [20, 6]
    c.truncate(9)
    assert c.lengths.tolist() == [9, 6]
    c.truncate(np.int64(6))
    c.append(k[:, :, 10:12], v[:, :, 10:12])
    assert c.lengths.tolist() == [8, 8]
    np.testing.assert_array_equal(c.keys[:, :, 6:], k[:, :, 10:12])
    held = c.nbytes
    c.reset()
    assert c.lengths.tolist() == [0, 0]
    assert c.keys.shape == (B, HKV, 0, D)
    assert c.nbytes == held
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="length: expected"):
            c.truncate(wrong)


def test_free_empties_one_sequence(place):
    k, v = tokens(6)
    c = cache()
    c.append(k, v)
    c.free(0)
    assert c.lengths.tolist() == [0, 6]
    c.append(k[:, :, :2], v[:, :, :2])
    assert c.lengths.tolist() == [2, 8]
    np.testing.assert_array_equal(c.keys[0, :, :2], k[0, :, :2])
    for wrong, error in ((2, ValueError), (-1, ValueError), (0.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="sequence: expected"):
            c.free(wrong)
    assert c.lengths.tolist() == [2, 8]


def test_nothing_of_pages_and_scales(place):
    c = cache()
    assert (c.page_size, c.max_pages, c.pages_in_use, c.block_table) == (None, None, None, None)
    assert (c.key_scales, c.value_scales) == (None, None)


def test_views_are_read_only_and_lengths_a_copy():
    c = cache()
    c.append(*tokens(3))
    with pytest.raises(ValueError, match="read-only"):
        c.keys[:] = 0
    c.lengths[:] = 99
    assert c.lengths.tolist() == [3, 3]
    with pytest.raises(ValueError, match="out: shares memory with k"):
        c.attend(queries(3)[:, :HKV], out=c._storage.planes[0][:, :, :3, :DV])


def test_it_fills_to_the_last_token_and_no_further(place):
    k, v = tokens(100)
    c = cache(max_length=100)
    c.append(k[:, :, :99], v[:, :, :99], np.array([99, 98]))
    before = state(c)
    with pytest.raises(
        ValueError, match=r"k: appending would make the longest sequence 101; max_length is 100.*\[99, 98\]"
    ):
        c.append(k[:, :, :2], v[:, :, :2])
    assert same_state(before, state(c))
    c.append(k[:, :, :2], v[:, :, :2], np.array([1, 2]))
    assert c.lengths.tolist() == [100, 100]
    with pytest.raises(ValueError, match="max_length"):
        c.append(k[:, :, :1], v[:, :, :1])
    c.append(k[:, :, :0], v[:, :, :0])


BAD_APPENDS = {
    "k list": (lambda k, v: ([1.0], v), {}, TypeError, "k: expected an array"),
    "v none": (lambda k, v: (k, None), {}, TypeError, "v: expected an array"),
    "rank": (lambda k, v: (k[0], v), {}, ValueError, r"k: expected shape .*\(2, 2, S, 8\), got \(2, 3, 8\)"),
    "batch": (lambda k, v: (k[:1], v), {}, ValueError, r"k: .*got \(1, 2, 3, 8\)"),
    "heads": (lambda k, v: (k, v[:, :1]), {}, ValueError, r"v: .*got \(2, 1, 3, 5\)"),
    "dim": (lambda k, v: (v, v), {}, ValueError, r"k: .*got \(2, 2, 3, 5\)"),
    "v dim": (lambda k, v: (k, k), {}, ValueError, r"v: .*got \(2, 2, 3, 8\)"),
    "count": (lambda k, v: (k, v[:, :, :2]), {}, ValueError, r"v: expected as many tokens as k has, 3"),
    "float64": (lambda k, v: (k.astype(float), v), {}, TypeError, "k: expected float16 .*got float64"),
    "bfloat16": (lambda k, v: (k, v.astype(ml_dtypes.bfloat16)), {}, TypeError, "v: .*got bfloat16"),
    "int": (lambda k, v: (k.astype(int), v), {}, TypeError, "k: .*got int64"),
    "byte-swapped": (lambda k, v: (k, v.astype(">f4")), {}, TypeError, "v: byte-swapped"),
    "lengths list": (lambda k, v: (k, v), {"lengths": [1, 2]}, TypeError, "lengths: expected an array"),
    "lengths float": (lambda k, v: (k, v), {"lengths": np.ones(2)}, TypeError, "lengths: expected integers"),
    "lengths shape": (
        lambda k, v: (k, v),
        {"lengths": np.ones(3, int)},
        ValueError,
        r"lengths: .*got \(3,\)",
    ),
    "lengths long": (
        lambda k, v: (k, v),
        {"lengths": np.array([0, 4])},
        ValueError,
        "lengths: .*S = 3, got 0 to 4",
    ),
    "lengths short": (
        lambda k, v: (k, v),
        {"lengths": np.array([-1, 2])},
        ValueError,
        "lengths: .*got -1 to 2",
    ),
}


@pytest.mark.parametrize("case", BAD_APPENDS)
def test_a_bad_append_changes_nothing(case, place):
    if case == "byte-swapped" and place != "cpu":
        pytest.skip("there is no such array on a GPU")
    change, options, error, message = BAD_APPENDS[case]
    c = cache(np.float16)
    c.append(*tokens(5), np.array([5, 3]))
    before = state(c)
    with pytest.raises(error, match=message):
        c.append(*change(*tokens(3, seed=1)), **options)
    assert same_state(before, state(c))


def test_running_out_of_memory_changes_nothing(monkeypatch, place):
    c = cache()
    c.append(*tokens(60))
    before = state(c)

    def refuse(self, capacity):
        raise MemoryError

    monkeypatch.setattr(Contiguous, "_allocate", refuse)
    with pytest.raises(MemoryError):
        c.append(*tokens(60))
    assert same_state(before, state(c))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"batch": 0}, ValueError, "batch: expected 1 to"),
        ({"batch": 1.0}, TypeError, "batch: expected an integer, got float"),
        ({"kv_heads": -1}, ValueError, "kv_heads: .*got -1"),
        ({"head_dim": 257}, ValueError, "head_dim: expected 1 to 256, got 257"),
        ({"v_dim": 0}, ValueError, "v_dim: expected 1 to 256, got 0"),
        ({"max_length": 0}, ValueError, "max_length: expected 1 to"),
        ({"max_length": 2**31}, ValueError, "max_length: .*got 2147483648"),
        ({"max_length": None}, TypeError, "max_length: expected an integer, got NoneType"),
        ({"dtype": np.float64}, TypeError, "dtype: expected float32, float16, bfloat16 or int8"),
        ({"dtype": None}, TypeError, "dtype: expected"),
        ({"dtype": ">f4"}, TypeError, "dtype: expected .*native"),
        ({"dtype": "float7"}, TypeError, "dtype: expected .*'float7'"),
        ({"dtype": np.uint8}, TypeError, "dtype: expected .*or int8.*uint8"),
        ({"page_size": 4}, ValueError, "page_size: expected a power of two from 8 to 1024, got 4"),
        ({"page_size": 24}, ValueError, "page_size: .*got 24"),
        ({"page_size": 2048}, ValueError, "page_size: .*got 2048"),
        ({"page_size": 16.0}, TypeError, "page_size: expected None or a power of two, got float"),
        ({"max_pages": 3}, ValueError, "max_pages: only with a page_size, got 3"),
        ({"page_size": 16, "max_pages": 0}, ValueError, "max_pages: expected 1 to .*got 0"),
    ],
)
def test_bad_construction(wrong, error, message, place):
    good = {"batch": 1, "kv_heads": 1, "head_dim": 8, "dtype": np.float32, "max_length": 10}
    with pytest.raises(error, match=message):
        KVCache(**{**good, **wrong})


def test_dtype_by_name():
    assert KVCache(1, 1, 8, dtype="bfloat16", max_length=10).keys.dtype == ml_dtypes.bfloat16


def test_bad_queries(place):
    c = cache(np.float16)
    c.append(*tokens(5), np.array([5, 3]))
    for q, error, message in [
        (
            queries(2, ml_dtypes.bfloat16),
            TypeError,
            "q: expected float32 or the cache's float16, got bfloat16",
        ),
        (queries(2, np.float64), TypeError, "q: .*float64"),
        (queries(2)[:1], ValueError, r"q: expected shape .* = \(2, Hq, Sq, 8\) to fit the cache, got \(1,"),
        (queries(2)[..., :4], ValueError, r"q: expected shape .*got \(2, 4, 2, 4\)"),
        (queries(2)[:, :3], ValueError, "q: its number of heads"),
        ([1.0], TypeError, "q: expected an array"),
    ]:
        with pytest.raises(error, match=message):
            c.attend(q)
    if place == "cpu":
        with pytest.raises(TypeError, match="q: expected float32 or the cache's float16, got float64"):
            c.attend(queries(2, np.float64), backend="reference")


def test_growth_copies_a_constant_number_of_times(monkeypatch, place):
    # Count the tokens that growth copies while 4096 are appended one by one: fewer than all of them, once.
    copied = []
    reserve = Contiguous.reserve

    def counting(self, lengths, longest, held):
        before = self.planes
        reserve(self, lengths, longest, held)
        if self.planes is not before:
            copied.append(held)

    monkeypatch.setattr(Contiguous, "reserve", counting)
    c = KVCache(1, 1, 1, dtype=np.float16, max_length=10_000)
    one = np.ones((1, 1, 1, 1), np.float16)
    for _ in range(4096):
        c.append(one, one)
    assert sum(copied) <= 4096
    assert len(copied) <= 7


def test_attend_makes_no_copy_of_the_cache():
    c = KVCache(1, 2, 64, dtype=np.float16, max_length=4096)
    k = np.ones((1, 2, 3000, 64), np.float16)
    c.append(k, k)
    q = np.ones((1, 4, 1, 64), np.float16)
    tracemalloc.start()
    c.attend(q)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < k.nbytes // 10


@pytest.mark.peers
def test_torch_in_and_out():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    k, v = (torch.from_numpy(x).bfloat16() for x in tokens(6))
    c = cache("bfloat16")
    c.append(k, v, torch.tensor([6, 2]))
    assert c.lengths.tolist() == [6, 2]
    np.testing.assert_array_equal(c.keys[0].astype(np.float32), k[0].float().numpy())
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.from_numpy(queries(1)).to(dtype)
        out = c.attend(q)
        assert isinstance(out, torch.Tensor)
        assert out.dtype == dtype
    with pytest.raises(TypeError, match="v: expected an array of the same kind"):
        c.append(k.float(), v.float().numpy())
    assert c.lengths.tolist() == [6, 2]


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_begin_at_cache_lines(dtype, page_size):
    cache = KVCache(2, 3, 64, dtype=dtype, max_length=5000, page_size=page_size)
    rng = np.random.default_rng(3)
    for count in (1, 70, 1000, 3000):  # the room grows
        k, v = rng.standard_normal((2, 2, 3, count, 64)).astype(np.float32)
        cache.append(k, v)
        assert cache.keys.ctypes.data % 64 == cache.values.ctypes.data % 64 == 0


def test_room_that_is_taken_at_once(place):
    """Appending up to the reserved length moves nothing, and what was there before is still there."""
    for page_size in (None, 16):
        cache = KVCache(2, 2, 8, dtype=np.float32, max_length=1000, page_size=page_size)
        rows = np.random.default_rng(0).standard_normal((2, 2, 300, 8)).astype(np.float32)
        cache.append(rows[:, :, :5], rows[:, :, :5])
        cache.reserve(300)
        held = cache.nbytes
        for first in (5, 6, 150):
            stop = {5: 6, 6: 150, 150: 300}[first]
            cache.append(rows[:, :, first:stop], rows[:, :, first:stop])
        assert cache.nbytes == held
        q = rows[:, :, :1]
        got = np.asarray(cache.attend(q))
        np.testing.assert_allclose(got, fastattention.attention(q, rows, rows), atol=1e-5)
        cache.reserve(3)  # there already
        assert cache.nbytes == held
        assert cache.lengths.tolist() == [300, 300]


@pytest.mark.parametrize("page_size", [None, 16])
def test_room_that_cannot_be_taken(place, page_size):
    cache = KVCache(2, 2, 8, dtype=np.float32, max_length=100, page_size=page_size)
    for wrong, kind in ((101, ValueError), (-1, ValueError), (2.5, TypeError)):
        with pytest.raises(kind, match="length: expected"):
            cache.reserve(wrong)
    if page_size:
        small = KVCache(2, 2, 8, dtype=np.float32, max_length=100, page_size=16, max_pages=5)
        with pytest.raises(ValueError, match="length: 6 pages are needed, max_pages is 5"):
            small.reserve(40)
        small.reserve(32)


@pytest.mark.parametrize("page_size", [None, 16])
def test_more_room_than_memory_has(place, page_size):
    """A MemoryError, and the cache is as it was."""
    longest = 2**31 - 1 if page_size is None else 2**28  # in pages: as many as can be counted
    cache = KVCache(64, 8, 256, dtype=np.float32, max_length=longest, page_size=page_size)
    rows = np.random.default_rng(0).standard_normal((64, 8, 5, 256)).astype(np.float32)
    cache.append(rows, rows)
    held = cache.nbytes
    with pytest.raises(MemoryError):
        cache.reserve(longest)
    assert cache.nbytes == held
    assert cache.lengths.tolist() == [5] * 64
    cache.append(rows, rows)
    both = np.concatenate((rows, rows), 2)
    q = rows[:, :, :1]
    np.testing.assert_allclose(np.asarray(cache.attend(q)), fastattention.attention(q, both, both), atol=1e-5)
