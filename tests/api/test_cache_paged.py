"""A paged cache: pages are taken, filled, given back and taken again, and hold what a list would hold."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastattention.reference import paged, standard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fastattention import KVCache
from fastattention.cache_paged import Paged

from .. import pretended
from ..conftest import CACHES
from ..gpu_arrays import DeviceCache

B, HQ, HKV, D, DV = 3, 4, 2, 8, 5
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, "int8"]


def tokens(count, seed=0, batch=B):
    rng = np.random.default_rng(seed)
    shapes = (batch, HKV, count, D), (batch, HKV, count, DV)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def queries(count, seed=9):
    return np.random.default_rng(seed).standard_normal((B, HQ, count, D)).astype(np.float32)


def cache(dtype=np.float32, page_size=8, **options):
    options = {"max_length": 200, **options}
    return KVCache(B, HKV, D, dtype=dtype, v_dim=DV, page_size=page_size, **options)


def gathered(c, planes, b):
    return paged.gather(planes, c.block_table[b], int(c.lengths[b]))


def state(c):
    views = (c.keys, c.values, c.key_scales, c.value_scales)
    return (
        c.lengths.tolist(),
        c.block_table.tolist(),
        c.pages_in_use,
        [np.copy(x) for x in views if x is not None],
    )


def same_state(first, second):
    return first[:3] == second[:3] and all(map(np.array_equal, first[3], second[3]))


@pytest.mark.parametrize("page_size", [8, 16, 64, 1024])
@pytest.mark.parametrize("pieces", [[150], [1] * 150, [7, 1, 8, 0, 16, 9, 64, 45], [15, 1, 1, 133]])
def test_what_is_appended_is_kept(pieces, page_size, place):
    k, v = tokens(150)
    c, at = cache(page_size=page_size), 0
    for n in pieces:
        c.append(k[:, :, at : at + n], v[:, :, at : at + n])
        at += n
        assert c.lengths.tolist() == [at] * B
        assert c.pages_in_use == B * paged.pages_needed(at, page_size)
    assert c.page_size == page_size
    assert c.keys.shape[1:] == (HKV, page_size, D)
    assert c.block_table.dtype == np.int32
    for b in range(B):
        np.testing.assert_array_equal(gathered(c, c.keys, b), k[b])
        np.testing.assert_array_equal(gathered(c, c.values, b), v[b])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_hold_what_a_contiguous_cache_holds(dtype, place):
    """The same appends to both; then every plane, row by row, and attention by the reference."""
    k, v = tokens(60)
    one, two = cache(dtype), KVCache(B, HKV, D, dtype=dtype, v_dim=DV, max_length=200)
    for c in (one, two):
        c.append(k[:, :, :20], v[:, :, :20], np.array([20, 3, 0]))
        c.append(k[:, :, 20:21], v[:, :, 20:21])
        c.append(k[:, :, 21:60], v[:, :, 21:60], np.array([1, 39, 17]))
        c.truncate(30)
        c.append(k[:, :, :2], v[:, :, :2], np.array([1, 2, 0]))
    assert one.lengths.tolist() == two.lengths.tolist()
    for b in range(B):
        n = one.lengths[b]
        for name in ("keys", "values", "key_scales", "value_scales"):
            if getattr(two, name) is not None:
                np.testing.assert_array_equal(
                    gathered(one, getattr(one, name), b), getattr(two, name)[b, :, :n]
                )
    q = queries(2)
    mask = np.random.default_rng(3).random((B, 1, 2, int(one.lengths.max()))) < 0.8
    slopes = np.linspace(0, 1, HQ, dtype=np.float32)
    options = {
        "causal": True, "window": (25, 4), "mask": mask, "alibi_slopes": slopes,
        "scale": 0.3, "softcap": 4.0, "sinks": np.ones(HQ, np.float32), "q_offset": np.array([20, 25, 16]),
        "return_lse": True, "backend": "reference",
    }  # fmt: skip
    got, got_lse = one.attend(q, **options)
    expected, expected_lse = two.attend(q, **options)
    if place == "cpu":  # the reference; else kernels, of which those for pages may be others
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(got_lse, expected_lse)
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got_lse, expected_lse, rtol=1e-4, atol=1e-5)
    assert not np.allclose(got, one.attend(q, backend="reference"))


def test_pages_come_back_and_are_taken_again(place):
    c = cache(max_pages=7)
    k, v = tokens(24)
    c.append(k, v, np.array([24, 8, 17]))
    assert c.block_table.tolist() == [[0, 1, 2], [3, -1, -1], [4, 5, 6]]
    assert (c.pages_in_use, c.max_pages) == (7, 7)
    c.free(0)
    assert c.pages_in_use == 4
    assert c.lengths.tolist() == [0, 8, 17]
    c.append(k[:, :, :9], v[:, :, :9], np.array([0, 9, 0]))
    assert c.block_table.tolist() == [[-1, -1, -1], [3, 0, 1], [4, 5, 6]]
    np.testing.assert_array_equal(gathered(c, c.keys, 1), np.concatenate((k[1, :, :8], k[1, :, :9]), 1))
    np.testing.assert_array_equal(gathered(c, c.keys, 2), k[2, :, :17])
    c.truncate(16)
    assert c.block_table.tolist() == [[-1, -1], [3, 0], [4, 5]]
    c.truncate(9)
    assert c.pages_in_use == 4
    c.reset()
    assert c.pages_in_use == 0
    assert c.block_table.shape == (B, 0)
    c.append(k[:, :, :8], v[:, :, :8])
    assert c.pages_in_use == 3
    assert len(set(c.block_table.ravel().tolist())) == 3


def test_the_pool_runs_out_and_nothing_changes(place):
    c = cache(max_pages=4)
    k, v = tokens(20)
    c.append(k, v, np.array([20, 0, 0]))
    before = state(c)
    message = r"k: 2 more pages are needed, and 1 of max_pages = 4 are free; give some back with free\(\)"
    with pytest.raises(ValueError, match=message):
        c.append(k, v, np.array([4, 1, 1]))
    assert same_state(before, state(c))
    c.append(k, v, np.array([4, 8, 0]))
    with pytest.raises(ValueError, match="k: 3 more pages are needed, and 0 of max_pages = 4 are free"):
        c.append(k[:, :, :1], v[:, :, :1])
    c.free(0)
    c.append(k[:, :, :1], v[:, :, :1])
    assert c.lengths.tolist() == [1, 9, 1]


def test_max_length_holds_with_pages_too(place):
    c = cache(max_length=20)
    k, v = tokens(21)
    with pytest.raises(ValueError, match="k: appending would make the longest sequence 21; max_length is 20"):
        c.append(k, v)
    assert c.pages_in_use == 0
    assert c.max_pages == B * 3
    c.append(k[:, :, :20], v[:, :, :20])


@pytest.mark.parametrize("dtype", [np.float32, "int8"])
def test_what_goes_wrong_while_writing_changes_nothing(dtype, monkeypatch):
    c = cache(dtype)
    k, v = tokens(20)
    c.append(k, v, np.array([20, 3, 0]))
    before = state(c)
    with monkeypatch.context() as patch:
        patch.setattr(Paged, "_write", lambda *args: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            c.append(k, v, np.array([5, 20, 6]))
    assert (c.lengths.tolist(), c.block_table.tolist(), c.pages_in_use) == before[:3]
    c.append(k[:, :, :9], v[:, :, :9])
    assert c.lengths.tolist() == [29, 12, 9]


def test_running_out_of_memory_changes_nothing(monkeypatch, place):
    c = cache()
    k, v = tokens(100)
    c.append(k[:, :, :30], v[:, :, :30])
    before, held = state(c), c.nbytes
    with monkeypatch.context() as patch:
        patch.setattr(Paged, "_allocate", lambda self, pages: bytearray(2**62))
        with pytest.raises(MemoryError):
            c.append(k, v)
    assert same_state(before, state(c))
    assert c.nbytes == held
    c.append(k, v)
    np.testing.assert_array_equal(gathered(c, c.values, 2)[:, 30:], v[2])


def test_growth_copies_a_constant_number_of_times(monkeypatch, place):
    copied = []
    grow = Paged._grow

    def counting(self, pages, columns):
        before = self.planes
        grow(self, pages, columns)
        if self.planes is not before:
            copied.append(self.reached)

    monkeypatch.setattr(Paged, "_grow", counting)
    c = KVCache(1, 1, 1, dtype=np.float16, max_length=50_000, page_size=8)
    eight = np.ones((1, 1, 8, 1), np.float16)
    for _ in range(4096):
        c.append(eight, eight)
    assert 5 <= len(copied) <= 10
    assert sum(copied) <= 4096


def test_a_page_is_memory_for_who_needs_it(place):
    """Room for what is there: one long sequence of three does not make the others long."""
    k, v = tokens(4096)
    c = cache(page_size=16, max_length=5000)
    c.append(k, v, np.array([4096, 5, 5]))
    contiguous = KVCache(B, HKV, D, dtype=np.float32, v_dim=DV, max_length=5000)
    contiguous.append(k, v, np.array([4096, 5, 5]))
    assert c.pages_in_use == 256 + 2
    assert c.nbytes < contiguous.nbytes / 2


def test_views_are_read_only_and_tables_a_copy():
    c = cache()
    c.append(*tokens(3))
    with pytest.raises(ValueError, match="read-only"):
        c.keys[:] = 0
    c.block_table[:] = 99
    assert c.block_table.tolist() == [[0], [1], [2]]
    pool = c._storage.planes[0]
    with pytest.raises(ValueError, match="out: shares memory with k"):
        c.attend(queries(8)[:, :HKV, :, :], out=pool[:3, :, :, :DV], backend="reference")
    assert "page_size=8, max_pages=75" in repr(c)


def test_an_empty_cache_and_empty_sequences(place):
    c = cache()
    out, lse = c.attend(queries(2), return_lse=True)
    assert (out == 0).all()
    assert (lse == -np.inf).all()
    k, v = tokens(9)
    c.append(k, v, np.array([0, 9, 0]))
    out, lse = c.attend(queries(2), return_lse=True, backend="reference")
    assert (out[[0, 2]] == 0).all()
    expected, _ = standard.attention(queries(2)[1:2], k[1:2], v[1:2], causal=True)
    np.testing.assert_allclose(out[1], expected[0], rtol=1e-5, atol=1e-5)
    c.reset()
    assert (c.attend(queries(2)) == 0).all()


def test_bad_queries_name_the_cache(place):
    c = cache(np.float16)
    c.append(*tokens(9))
    for q, error, message in [
        (
            queries(2)[:2],
            ValueError,
            r"q: expected shape \(B, Hq, Sq, D\) = \(3, Hq, Sq, 8\) to fit the cache",
        ),
        (queries(2)[:, :3], ValueError, "q: its number of heads"),
        (queries(2).astype(ml_dtypes.bfloat16), TypeError, "q: expected float32 or the cache's float16"),
    ]:
        with pytest.raises(error, match=message):
            c.attend(q)
    with pytest.raises(ValueError, match=r"mask: shape \(10,\) does not broadcast to .* \(3, 4, 2, 9\)"):
        c.attend(queries(2), mask=np.ones(10, bool))


class PagedAgainstLists(RuleBasedStateMachine):
    """Appending, freeing and truncating in any order: the cache holds what plain lists hold."""

    make = KVCache

    @initialize(page_size=st.sampled_from([8, 16]), max_pages=st.sampled_from([None, 9]))
    def start(self, page_size, max_pages):
        self.cache = self.make(
            B, 1, 2, dtype=np.float32, v_dim=1, max_length=100, page_size=page_size, max_pages=max_pages
        )
        self.lists = [[] for _ in range(B)]
        self.next = 1.0

    @rule(counts=st.lists(st.integers(0, 40), min_size=B, max_size=B), ragged=st.booleans())
    def append(self, counts, ragged):
        counts = counts if ragged else [counts[0]] * B
        width = max(counts)
        k = self.next + np.arange(B * width * 2, dtype=np.float32).reshape(B, 1, width, 2)
        before = self.cache.block_table.tolist()
        size = self.cache.page_size
        new = [len(rows) + n for rows, n in zip(self.lists, counts, strict=True)]
        fits = max(new) <= 100 and sum(paged.pages_needed(n, size) for n in new) <= self.cache.max_pages
        lengths = np.array(counts) if ragged else None
        if not fits:
            with pytest.raises(ValueError, match="k: "):
                self.cache.append(k, k[..., :1], lengths)
            assert self.cache.block_table.tolist() == before
            return
        self.cache.append(k, k[..., :1], lengths)
        self.next += k.size
        for b, n in enumerate(counts):
            self.lists[b].extend(k[b, 0, :n].tolist())

    @rule(b=st.integers(0, B - 1))
    def free(self, b):
        self.cache.free(b)
        self.lists[b] = []

    @rule(length=st.integers(0, 100))
    def truncate(self, length):
        self.cache.truncate(length)
        self.lists = [rows[:length] for rows in self.lists]

    @rule()
    def reset(self):
        self.cache.reset()
        self.lists = [[] for _ in range(B)]

    @invariant()
    def holds_the_lists(self):
        if not hasattr(self, "cache"):
            return
        c, table = self.cache, self.cache.block_table
        assert c.lengths.tolist() == [len(rows) for rows in self.lists]
        owned = table[table >= 0].tolist()
        needed = [paged.pages_needed(len(rows), c.page_size) for rows in self.lists]
        assert (table >= 0).sum(axis=1).tolist() == needed
        assert len(set(owned)) == len(owned) == c.pages_in_use
        for b, rows in enumerate(self.lists):
            assert gathered(c, c.keys, b)[0].tolist() == rows
            assert gathered(c, c.values, b)[0, :, 0].tolist() == [row[0] for row in rows]


TestPagedAgainstLists = PagedAgainstLists.TestCase
TestPagedAgainstLists.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("where", CACHES[1:])
def test_on_a_device_against_lists(where, monkeypatch):
    if where == "pretended":
        pretended.pretend(monkeypatch)
    machine = type("DeviceAgainstLists", (PagedAgainstLists,), {"make": DeviceCache})
    few = settings(max_examples=20, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(machine, settings=few)


@pytest.mark.peers
def test_torch_in_and_out():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    k, v = (torch.from_numpy(x).bfloat16() for x in tokens(20))
    c = cache("bfloat16")
    c.append(k, v, torch.tensor([20, 2, 9]))
    np.testing.assert_array_equal(gathered(c, c.keys, 0).astype(np.float32), k[0].float().numpy())
    out = c.attend(torch.from_numpy(queries(1)), backend="reference")
    assert isinstance(out, torch.Tensor)
