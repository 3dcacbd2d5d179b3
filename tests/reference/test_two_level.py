"""Two-level tiling against the oracle, and its closed-form counts against what happens."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import standard, two_level
from reference.tiling import count_tiles
from reference.two_level import GPU, NPU, Blocks, run
from reference.two_level_counts import expected

UNEVEN = Blocks(block_q=7, block_k=10, tile_q=3, tile_k=4, vector_rows=2)
SIZES = [Blocks(1, 1, 1, 1, 1), UNEVEN, Blocks(4, 6, 4, 3, 3), Blocks(64, 64, 5, 64, 1), Blocks.unified(4, 4)]


@pytest.mark.parametrize("Sq", [0, 1, 6, 7, 8, 15])
@pytest.mark.parametrize("Sk", [0, 1, 9, 10, 11, 23])
def test_every_option_at_lengths_around_the_block(feature, rng, make, close, Sq, Sk):
    q, k, v = make(B=3, Hq=4, Hkv=2, Sq=Sq, Sk=Sk)
    options = feature(rng, 3, 4, Sq, Sk)
    close(two_level.attention(q, k, v, blocks=UNEVEN, **options), standard.attention(q, k, v, **options))


@pytest.mark.parametrize("blocks", SIZES, ids=str)
def test_sizes_do_not_change_the_result(feature, rng, make, close, blocks):
    q, k, v = make(B=2, Hq=6, Hkv=2, Sq=11, Sk=17, D=5, Dv=1)
    options = feature(rng, 2, 6, 11, 17)
    close(two_level.attention(q, k, v, blocks=blocks, **options), standard.attention(q, k, v, **options))


@pytest.mark.parametrize(("B", "Hq", "Hkv", "Dv"), [(0, 2, 1, 3), (2, 0, 0, 3), (1, 3, 1, 0), (1, 4, 4, 2)])
def test_awkward_shapes(feature, rng, make, close, B, Hq, Hkv, Dv):
    q, k, v = make(B=B, Hq=Hq, Hkv=Hkv, Sq=5, Sk=9, D=1, Dv=Dv)
    options = feature(rng, B, Hq, 5, 9)
    got = two_level.attention(q, k, v, blocks=Blocks(4, 4, 2, 3, 1), **options)
    close(got, standard.attention(q, k, v, **options))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_narrow_types(make, close, dtype):
    q, k, v = (x.astype(dtype) for x in make(Sq=70, Sk=130))
    close(two_level.attention(q, k, v, causal=True), standard.attention(q, k, v, causal=True))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_reaches_nobody_it_is_hidden_from(make, close, poison):
    q, k, v = make(B=2, Sq=9, Sk=12)
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[0, :, 5:] = bad_v[0, :, 5:] = poison
    bad_k[1, :, 8:] = bad_v[1, :, 8:] = poison
    lengths = {"kv_lengths": [5, 8]}
    want = standard.attention(q, k, v, **lengths)
    close(two_level.attention(q, bad_k, bad_v, blocks=UNEVEN, **lengths), want)

    bad_k, bad_v = k.copy(), v.copy()
    bad_k[:, :, 6] = bad_v[:, :, 6] = poison  # query 3 stands at position 6
    got = two_level.attention(q, bad_k, bad_v, causal=True, blocks=UNEVEN)
    want = standard.attention(q, k, v, causal=True)
    close([x[:, :, :3] for x in got], [x[:, :, :3] for x in want])


@settings(deadline=None, max_examples=300)
@given(
    data=st.data(),
    q_len=st.integers(0, 30),
    k_len=st.integers(0, 30),
    length=st.integers(0, 30),
    q_offset=st.none() | st.integers(-40, 40),
    causal=st.booleans(),
    window=st.none() | st.tuples(*[st.none() | st.integers(-1, 20)] * 2),
    form=st.sampled_from([NPU, GPU]),
    with_mask=st.booleans(),
)
def test_counts_in_closed_form(data, q_len, k_len, length, q_offset, causal, window, form, with_mask):
    """What moves where, and what is waited for, counted while it happens: every buffer, every tensor."""
    block_q, block_k = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))
    tile_q, tile_k = data.draw(st.integers(1, block_q)), data.draw(st.integers(1, block_k))
    blocks = Blocks(block_q, block_k, tile_q, tile_k, data.draw(st.integers(1, tile_q)))
    n = min(length, k_len)
    q, k, v = np.ones((1, 2, q_len, 3)), np.ones((1, 1, k_len, 3)), np.ones((1, 1, k_len, 2))
    mask = np.ones((q_len, k_len), dtype=np.bool_) if with_mask else None
    band = {"causal": causal, "window": window, "q_offset": q_offset}
    got = run(q, k, v, blocks=blocks, form=form, kv_lengths=[n], mask=mask, **band).counts
    shape = q_len, k_len, 3, 2
    want = expected(shape, blocks, heads=2, kv_length=n, form=form, mask=with_mask, **band)
    assert got == want


def test_counts_add_up_over_the_batch(make):
    q, k, v = make(B=4, Hq=4, Hkv=2, Sq=20, Sk=30)
    got = run(q, k, v, causal=True, kv_lengths=[30, 30, 11, 7], blocks=UNEVEN).counts
    parts = [
        expected((20, 30, 3, 4), UNEVEN, heads=h, causal=True, kv_length=n)
        for h, n in ((8, 30), (4, 11), (4, 7))
    ]
    assert got.moved == sum((part.moved for part in parts), Counter())
    assert got.waits == sum((part.waits for part in parts), Counter())


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": (20, 5)}, {"causal": True, "q_offset": 0}]
)
def test_counts_against_the_tiles_of_one_level(options):
    """Elements of S, and hand-overs, from the counts of another module."""
    tiles = count_tiles(96, 128, block_q=8, block_k=16, **options)
    counts = expected((96, 128, 4, 4), Blocks.unified(8, 16), **options)
    assert counts.moved["S", "L0C", "workspace"] == (tiles.full + tiles.partial) * 8 * 16
    assert counts.handovers == (tiles.full + tiles.partial) * 3


def test_a_gpu_hands_nothing_over_in_memory():
    """S and O stay in the registers that made them, and no tensor but the output leaves for memory."""
    counts = expected((256, 256, 64, 64), Blocks(64, 64, 16, 64), form=GPU)
    assert {name for name, _, target in counts.moved if target == "global"} == {"out", "lse"}
    assert {name for name, source, _ in counts.moved if source == "C"} == {"P", "out", "lse"}
    assert counts.waits == {"K": 16, "V": 16}


def test_larger_blocks_hand_over_less_and_read_less():
    shape = 4096, 4096, 128, 128
    counts = [
        expected(shape, Blocks(block_q, block_k, 128, 128), causal=True)
        for block_q, block_k in ((128, 128), (128, 512), (256, 512), (512, 512))
    ]
    handovers = [c.handovers for c in counts]
    assert handovers == sorted(handovers, reverse=True)
    assert counts[0].bytes("GM", "L1") > counts[2].bytes("GM", "L1") > counts[3].bytes("GM", "L1")


def test_closed_form_of_256k_is_quick_and_right():
    n, b = 256 * 1024, 128
    counts = expected((n, n, 128, 128), Blocks(256, 1024, b, b), causal=True)
    blocks = n // b
    assert counts.moved["S", "L0C", "workspace"] == blocks * (blocks + 1) // 2 * b * b
    assert counts.moved["B-mask", "GM", "UB"] == blocks * b * b  # the tiles on the diagonal
    assert counts.handovers == 3 * sum(-(-(i + 1) * 256 // 1024) for i in range(n // 256))


@pytest.mark.parametrize(
    "sizes", [(0, 4, 1, 1, 1), (4, 4, 5, 4, 1), (4, 4, 4, 5, 1), (4, 4, 2, 2, 3), (4, 4, 4, 4, 0)]
)
def test_sizes_that_do_not_nest_are_refused(sizes):
    with pytest.raises(ValueError, match="got Blocks"):
        Blocks(*sizes)


def test_arguments_are_checked(make):
    q, k, v = make()
    with pytest.raises(ValueError, match="softcap"):
        two_level.attention(q, k, v, softcap=-1.0)
