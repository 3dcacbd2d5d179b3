"""Attention over pages is attention over the rows they hold, whatever order they lie in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import paged, quantize, standard


def scatter(rng, rows, lengths, page_size, poison=np.nan):
    """Lay rows (B, Hkv, S, ...) in pages in random order; return (pool, table). The rest is poison."""
    needed = [paged.pages_needed(n, page_size) for n in lengths]
    pages = rng.permutation(sum(needed) + 3)  # three that nobody uses
    pool = np.full((len(pages), rows.shape[1], page_size, *rows.shape[3:]), poison, rows.dtype)
    table = np.full((len(lengths), max(needed, default=0) + 1), -1)
    at = 0
    for b, n in enumerate(lengths):
        for i in range(needed[b]):
            page, start = pages[at], i * page_size
            table[b, i], at = page, at + 1
            part = rows[b, :, start : min(start + page_size, n)]
            pool[page, :, : part.shape[1]] = part
    return pool, table


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_every_option(feature, rng, make, close, page_size):
    q, k, v = make(B=3, Hq=6, Hkv=2, Sq=3, Sk=13)
    options = feature(rng, 3, 6, 3, 13)
    lengths = np.asarray(options.pop("kv_lengths", [13, 13, 13]))
    if "mask" in options and max(lengths) < 13:
        options["mask"] = options["mask"][..., : max(lengths)]
    state = rng.bit_generator.state
    k_pages, table = scatter(rng, k, lengths, page_size)
    rng.bit_generator.state = state  # the same order for V
    v_pages, _ = scatter(rng, v, lengths, page_size)
    got = paged.attention(q, k_pages, v_pages, table, lengths, **options)
    longest = max(lengths)
    want = standard.attention(q, k[:, :, :longest], v[:, :, :longest], kv_lengths=lengths, **options)
    close(got, want)


def test_int8_pages(rng, make, close):
    q, k, v = make(B=2, Sq=2, Sk=11)
    lengths, pools, rows = [11, 6], [], []
    for x in (k, v):
        integers, scales = quantize.quantize(x)
        state = rng.bit_generator.state
        for part, poison in ((integers, 99), (scales, np.nan)):
            rng.bit_generator.state = state
            pool, table = scatter(rng, part, lengths, 4, poison)
            pools.append(pool)
        rng.bit_generator.state = state
        rows.append(quantize.dequantize(integers, scales))
    got = paged.attention(
        q, pools[0], pools[2], table, lengths, k_scales=pools[1], v_scales=pools[3], causal=True
    )
    close(got, standard.attention(q, *rows, kv_lengths=lengths, causal=True))
    assert np.abs(got[0] - standard.attention(q, k, v, kv_lengths=lengths, causal=True)[0]).max() > 1e-4


@given(st.lists(st.integers(0, 100), max_size=5), st.sampled_from([1, 2, 8, 16]), st.integers(0, 99))
def test_gather_undoes_scatter(lengths, page_size, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((len(lengths), 2, max(lengths, default=0), 3))
    pool, table = scatter(rng, rows, lengths, page_size)
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(paged.gather(pool, table[b], n), rows[b, :, :n])
    held = sum(paged.pages_needed(n, page_size) for n in lengths) * page_size
    assert paged.waste(lengths, page_size) == held - sum(lengths)
    assert 0 <= paged.waste(lengths, page_size) <= len(lengths) * (page_size - 1)


def test_a_table_that_does_not_cover_the_sequence():
    pool = np.zeros((3, 1, 4, 2))
    with pytest.raises(ValueError, match="9 tokens need 3 pages, the block table has 2"):
        paged.gather(pool, np.array([0, 1]), 9)
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=r"names a page outside of 0..2: \[0, "):
            paged.gather(pool, np.array([0, wrong]), 8)
    with pytest.raises(ValueError, match="1 tokens need 1 pages, the block table has 0"):
        paged.attention(np.zeros((1, 1, 1, 2)), pool, pool, np.zeros((1, 0), int), [1])


def test_no_sequence_and_no_key():
    pool = np.zeros((2, 1, 4, 3))
    out, lse = paged.attention(np.zeros((0, 2, 1, 3)), pool, pool, np.zeros((0, 1), int), [])
    assert out.shape == (0, 2, 1, 3)
    out, lse = paged.attention(np.zeros((1, 2, 1, 3)), pool, pool, np.zeros((1, 1), int), [0], sinks=[1, 2])
    assert (out == 0).all()
    assert (lse == -np.inf).all()
