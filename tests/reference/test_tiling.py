"""Tiling against the oracle, and against its own promises: what it skips, masks and holds in memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import standard, tiling, visibility
from reference.tiling import TileCounts, count_tiles
from reference.visibility import Tile

BLOCK = 4
AWKWARD = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 13]


@pytest.mark.parametrize("Sq", AWKWARD)
@pytest.mark.parametrize("Sk", AWKWARD)
def test_every_option_at_lengths_around_the_tile(feature, rng, make, close, Sq, Sk):
    q, k, v = make(B=3, Hq=4, Hkv=2, Sq=Sq, Sk=Sk)
    options = feature(rng, 3, 4, Sq, Sk)
    got = tiling.attention(q, k, v, block_q=BLOCK, block_k=BLOCK, **options)
    close(got, standard.attention(q, k, v, **options))


@pytest.mark.parametrize(("block_q", "block_k"), [(1, 1), (1, 5), (3, 2), (7, 64), (64, 7), (64, 64)])
def test_block_sizes_do_not_change_the_result(feature, rng, make, close, block_q, block_k):
    q, k, v = make(B=2, Hq=6, Hkv=2, Sq=11, Sk=17, D=5, Dv=1)
    options = feature(rng, 2, 6, 11, 17)
    got = tiling.attention(q, k, v, block_q=block_q, block_k=block_k, **options)
    close(got, standard.attention(q, k, v, **options))


@pytest.mark.parametrize(
    ("B", "Hq", "Hkv", "Dv"),
    [(1, 1, 1, 1), (0, 2, 1, 3), (2, 0, 0, 3), (2, 0, 1, 3), (1, 3, 1, 0), (1, 4, 4, 2)],
)
def test_awkward_shapes(feature, rng, make, close, B, Hq, Hkv, Dv):
    q, k, v = make(B=B, Hq=Hq, Hkv=Hkv, Sq=5, Sk=9, D=1, Dv=Dv)
    options = feature(rng, B, Hq, 5, 9)
    got = tiling.attention(q, k, v, block_q=2, block_k=4, **options)
    close(got, standard.attention(q, k, v, **options))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_narrow_types(make, close, dtype):
    q, k, v = (x.astype(dtype) for x in make(Sq=70, Sk=130))
    close(tiling.attention(q, k, v, causal=True), standard.attention(q, k, v, causal=True))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_reaches_nobody_it_is_hidden_from(make, close, poison):
    q, k, v = make(B=2, Sq=9, Sk=12)
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[0, :, 5:] = bad_v[0, :, 5:] = poison
    bad_k[1, :, 8:] = bad_v[1, :, 8:] = poison
    blocks, lengths = {"block_q": 4, "block_k": 4}, {"kv_lengths": [5, 8]}
    want = standard.attention(q, k, v, **lengths)
    close(tiling.attention(q, bad_k, bad_v, **blocks, **lengths), want)

    bad_k, bad_v = k.copy(), v.copy()
    bad_k[:, :, 6] = bad_v[:, :, 6] = poison  # query 3 stands at position 6
    got = tiling.attention(q, bad_k, bad_v, causal=True, **blocks)
    want = standard.attention(q, k, v, causal=True)
    close([x[:, :, :3] for x in got], [x[:, :, :3] for x in want])


def test_an_infinite_score_hurts_its_own_row_only(make):
    q, k, v = make(B=1, Hq=1, Hkv=1, Sq=3, Sk=5)
    q[0, 0, 1] = np.inf
    out, _ = tiling.attention(q, k, v, block_k=2)
    assert np.isnan(out[0, 0, 1]).all()
    assert np.isfinite(out[0, 0, [0, 2]]).all()


def spy(monkeypatch, name):
    """Count the calls of tiling's `name`; keep their arguments."""
    calls = []
    inner = getattr(tiling, name)

    def wrapped(*args, **kwargs):
        calls.append((args, kwargs))
        return inner(*args, **kwargs)

    monkeypatch.setattr(tiling, name, wrapped)
    return calls


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": (20, 5)}, {"causal": True, "q_offset": 0}, {"kv_lengths": [37]}],
    ids=str,
)
def test_empty_tiles_are_skipped_and_full_ones_not_masked(make, monkeypatch, options):
    q, k, v = make(B=1, Hq=2, Hkv=1, Sq=50, Sk=70)
    computed, masked = spy(monkeypatch, "scores"), spy(monkeypatch, "visible")
    tiling.attention(q, k, v, block_q=8, block_k=16, **options)
    named = {name: value for name, value in options.items() if name != "kv_lengths"}
    kv_length = options.get("kv_lengths", [70])[0]
    counts = count_tiles(50, 70, kv_length=kv_length, block_q=8, block_k=16, **named)
    assert len(computed) == counts.full + counts.partial
    assert len(masked) == counts.partial
    assert sum(kwargs["visible"] is None for _, kwargs in computed) == counts.full


def test_keys_behind_the_length_are_not_even_loaded(make, monkeypatch):
    q, k, v = make(B=2, Sq=3, Sk=20)
    computed = spy(monkeypatch, "scores")
    tiling.attention(q, k, v, kv_lengths=[3, 9], block_k=4)
    assert [args[1].shape[3] for args, _ in computed] == [3, 4, 4, 1]


def test_sequences_that_are_alike_share_the_tiles(make, monkeypatch):
    q, k, v = make(B=5, Sq=3, Sk=4)
    computed = spy(monkeypatch, "scores")
    tiling.attention(q, k, v, kv_lengths=[4, 4, 2, 4, 4])
    assert [args[0].shape[0] for args, _ in computed] == [2, 1, 2]


def test_the_score_matrix_is_never_in_memory(rng):
    S = 1024
    q, k, v = (rng.standard_normal((1, 2, S, 16)).astype(np.float32) for _ in range(3))
    tiling.attention(q[:, :, :64], k[:, :, :64], v[:, :, :64])  # whatever is allocated once, is
    tracemalloc.start()
    tiling.attention(q, k, v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    scores = 2 * S * S * 8
    assert peak < scores / 10, f"{peak} bytes at peak, the scores alone would be {scores}"


@settings(deadline=None)
@given(
    q_len=st.integers(0, 40),
    k_len=st.integers(0, 40),
    length=st.integers(0, 40),
    q_offset=st.none() | st.integers(-50, 50),
    causal=st.booleans(),
    window=st.none() | st.tuples(*[st.none() | st.integers(-1, 20)] * 2),
    block_q=st.integers(1, 12),
    block_k=st.integers(1, 12),
)
def test_counts_against_the_mask(q_len, k_len, length, q_offset, causal, window, block_q, block_k):
    n = min(length, k_len)
    options = {"causal": causal, "window": window, "kv_length": n, "q_offset": q_offset}
    mask = visibility.visible(q_len, k_len, **options)[:, :n]
    kinds = Counter()
    for i in range(0, q_len, block_q):
        for j in range(0, n, block_k):
            tile = mask[i : i + block_q, j : j + block_k]
            kinds[Tile.FULL if tile.all() else Tile.PARTIAL if tile.any() else Tile.EMPTY] += 1
    got = count_tiles(q_len, k_len, block_q=block_q, block_k=block_k, **options)
    assert got == TileCounts(kinds[Tile.EMPTY], kinds[Tile.FULL], kinds[Tile.PARTIAL])


def test_the_counts_of_64k():
    counts = count_tiles(65536, 65536, causal=True, block_q=512, block_k=512)
    assert sum(counts) == 16384
    assert counts.full + counts.partial == 8256
    assert counts.partial == 128


def test_blocks_below_one_are_refused(make):
    q, k, v = make()
    with pytest.raises(ValueError, match="block sizes"):
        tiling.attention(q, k, v, block_q=0)
    with pytest.raises(ValueError, match="block sizes"):
        count_tiles(4, 4, block_k=-1)
