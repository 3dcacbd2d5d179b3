"""The lanes' attention against the oracle on every dataflow, its counts against closed forms; mistakes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import standard
from reference.visibility import Tile
from reference.volta import quad_pairs, tile, two_by_two
from reference.volta.counts import balance, expected, visit
from reference.volta.kernel import Kernel
from reference.volta.mma16 import Mma16
from reference.volta.quad_pairs import QuadPairs
from reference.volta.tile import attention
from reference.volta.two_by_two import TwoByTwo
from reference.volta.warp import Warp
from tests.tolerances import Problem, error_in_tolerances, tolerances

ATOMS = [
    QuadPairs(), QuadPairs(value_width=8), QuadPairs(tiles=2),
    TwoByTwo(), TwoByTwo(tiles=1), TwoByTwo(uses_p=False), Mma16(), Mma16(tiles=2), Mma16(step=8),
]  # fmt: skip
each_atom = pytest.mark.parametrize("atom", ATOMS, ids=str)


def make(rng, Sq, Sk, D, Dv):
    return tuple(rng.standard_normal(shape).astype(np.float16) for shape in ((Sq, D), (Sk, D), (Sk, Dv)))


def check(q, k, v, result, **options):
    """Return the largest error of out and lse in tolerances."""
    n = options.pop("kv_length", None)
    if n is not None:
        options["kv_lengths"] = np.array([n])
    problem = Problem(q[None, None], k[None, None], v[None, None], options)
    out, lse = standard.attention(problem.q, problem.k, problem.v, **options)
    limits = tolerances(problem, out, lse, "float16", "half weights")
    pairs = ((result.out, out, limits[0]), (result.lse, lse, limits[1]))
    return max(error_in_tolerances(got[None, None], want, limit).tolerances for got, want, limit in pairs)


def check_counts(kernel, q, k, v, counts, **options):
    options.pop("scale", None)
    work = expected(kernel, (*q.shape[:1], *k.shape[:1], q.shape[1], v.shape[1]), **options)
    assert (counts.mma, counts.shuffles) == (work.mma, work.shuffles)
    done = {(a.tile, a.kind) for a in counts.accesses}
    assert done == set(work.wavefronts)
    for key in done:
        assert counts.instructions(*key) == work.instructions[key], key
        assert counts.wavefronts(*key) == work.wavefronts[key], key
        assert counts.ideal(*key) == work.wavefronts[key], key  # no bank conflict


@each_atom
@settings(deadline=None, max_examples=15)
@given(
    sizes=st.tuples(st.integers(1, 80), st.integers(0, 100)),
    dims=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    key_blocks=st.integers(1, 3),
    warps=st.integers(1, 3),
    causal=st.booleans(),
    window=st.sampled_from([None, (7, 3), (0, 0), (40, None), (None, 5)]),
    length=st.none() | st.integers(0, 100),
    offset=st.none() | st.integers(-20, 60),
    seed=st.integers(0, 99),
)
def test_any_problem(atom, sizes, dims, key_blocks, warps, causal, window, length, offset, seed):
    q, k, v = make(np.random.default_rng(seed), *sizes, 8 * dims[0], 8 * dims[1])
    kernel = Kernel(atom, warps, key_blocks * atom.key_depth)
    options = {"causal": causal, "window": window, "q_offset": offset}
    if length is not None:
        options["kv_length"] = min(length, sizes[1])
    result = attention(q, k, v, kernel=kernel, **options)
    assert check(q, k, v, result, **options) <= 1
    check_counts(kernel, q, k, v, result.counts, **options)


@each_atom
@pytest.mark.parametrize(("D", "Dv"), [(256, 256), (256, 8), (8, 256), (96, 128), (13, 5)])
def test_head_dimensions(atom, D, Dv, rng):
    """Up to 256, unequal, and any size at all: what is missing to whole chunks is zeros."""
    q, k, v = make(rng, 20, 40, D, Dv)
    kernel = Kernel(atom, 1, 32)
    result = attention(q, k, v, kernel=kernel, causal=True)
    assert result.out.dtype == np.float16
    assert check(q, k, v, result, causal=True) <= 1
    check_counts(kernel, q, k, v, result.counts, causal=True)


@each_atom
def test_queries_without_a_key(atom, rng):
    q, k, v = make(rng, 40, 24, 16, 16)
    result = attention(q, k, v, kernel=Kernel(atom, 2, 32), causal=True, q_offset=-10)
    assert (result.out[:10] == 0).all()
    assert np.isneginf(result.lse[:10]).all()
    assert check(q, k, v, result, causal=True, q_offset=-10) <= 1
    nothing = attention(q, k, v, kernel=Kernel(atom, 2, 32), kv_length=0)
    assert (nothing.out == 0).all()
    assert nothing.counts.mma == 0


@each_atom
def test_keys_behind_the_length_are_not_read(atom, rng):
    q, k, v = make(rng, 10, 50, 24, 24)
    clean = attention(q, k, v, kernel=Kernel(atom, 1, 32), kv_length=33)
    k[33:], v[33:] = np.nan, np.inf
    poisoned = attention(q, k, v, kernel=Kernel(atom, 1, 32), kv_length=33)
    np.testing.assert_array_equal(poisoned.out, clean.out)


@each_atom
@pytest.mark.parametrize("scale", [100.0, -0.5, 0.0])
def test_scales(atom, scale, rng):
    q, k, v = make(rng, 33, 70, 32, 16)
    result = attention(q, k, v, kernel=Kernel(atom, 1, 32), scale=scale)
    assert check(q, k, v, result, scale=scale) <= 1


def test_rising_scores_rescale_every_time(rng):
    """Each tile of keys brings a larger maximum, which the online softmax must follow."""
    q, k, v = make(rng, 16, 128, 8, 8)
    q[:], k[:] = 1, (np.arange(128) / 16)[:, None]
    for atom in ATOMS:
        result = attention(q, k, v, kernel=Kernel(atom, 1, 32))
        assert check(q, k, v, result) <= 1, atom


def test_grouped_queries_are_the_callers_loop(rng):
    q = rng.standard_normal((4, 20, 16)).astype(np.float16)
    k, v = (rng.standard_normal((2, 30, 16)).astype(np.float16) for _ in range(2))
    out, _ = standard.attention(q[None], k[None], v[None], causal=True)
    for head in range(4):
        result = attention(q[head], k[head // 2], v[head // 2], causal=True)
        np.testing.assert_allclose(result.out, out[0, head], atol=4e-3)


def test_all_dataflows_agree_closely(rng):
    q, k, v = make(rng, 40, 90, 64, 64)
    results = [attention(q, k, v, kernel=Kernel(atom, 1, 32)) for atom in ATOMS]
    for result in results[1:]:
        np.testing.assert_allclose(result.lse, results[0].lse, rtol=0, atol=4e-6)


@each_atom
def test_full_tiles_do_no_work_for_the_mask(atom, rng, monkeypatch):
    """hide is called for partial tiles alone, and empty ones cost nothing."""
    hidden = []
    original = tile._Cta.hide
    monkeypatch.setattr(tile._Cta, "hide", lambda self, *a: (hidden.append(a[1:]), original(self, *a))[1])
    q, k, v = make(rng, 64, 64, 16, 16)
    kernel = Kernel(atom, 1, 32)
    attention(q, k, v, kernel=kernel)
    assert hidden == []
    causal = attention(q, k, v, kernel=kernel, causal=True)
    visits = [(row, key) for row in range(0, 64, atom.warp_rows) for key in (0, 32)]
    partial = [(row, key) for row, key in visits if row - 32 < key < row + atom.warp_rows]
    assert len(hidden) == len(partial)
    empty = [(row, key) for row, key in visits if key >= row + atom.warp_rows]
    assert causal.counts.mma == (len(visits) - len(empty)) * visit(kernel, 16, 16).mma


def _no_rescale(monkeypatch):
    original = tile._State.update

    def update(self, warp, atom, s):
        self.m = np.where(np.isneginf(self.m), self.m, np.float32(0))  # alpha forgets the old maximum
        return original(self, warp, atom, s)

    monkeypatch.setattr(tile._State, "update", update)


def _block_diagonal(monkeypatch):
    """The classic mistake: blocks of queries see their own block of keys only."""
    monkeypatch.setattr(
        tile._Cta, "kind", lambda self, warp, key: Tile.FULL if key == 32 * warp else Tile.EMPTY
    )


def _every_shuffle(change):
    def mutate(monkeypatch):
        original = Warp.shfl_xor
        monkeypatch.setattr(Warp, "shfl_xor", lambda self, x, mask: original(self, x, change(mask)))

    return mutate


def _shuffle_of_weights(monkeypatch):
    def operand(warp, weights, half):
        warp = Warp(warp.shared)
        warp.shfl_xor = lambda x, mask: Warp.shfl_xor(warp, x, 1)
        return original(warp, weights, half)

    original = quad_pairs.operand
    monkeypatch.setattr(quad_pairs, "operand", operand)


def _weights_not_traded(monkeypatch):
    monkeypatch.setattr(
        quad_pairs, "operand", lambda warp, w, half: w.astype(np.float16)[:, 4 * half : 4 * half + 4]
    )


def _halves_of_v_swapped(monkeypatch):
    original = quad_pairs.QuadPairs.output_columns

    def columns(self, blocks):
        return original(self, blocks) ^ 4

    monkeypatch.setattr(quad_pairs.QuadPairs, "output_columns", columns)


def _lines_in_a_row(monkeypatch):
    """Quad-pairs' rows taken one after the other when scores are read, though loads take them in turns."""
    monkeypatch.setattr(quad_pairs, "interleave", lambda line, part, parts: 8 * part + line)


def _mask_ignored(monkeypatch):
    monkeypatch.setattr(tile._Cta, "hide", lambda self, s, *_: s)


def _p_in_place(monkeypatch):
    """P stored as if each quad-pair's keys were eight in a row."""
    original = two_by_two.TwoByTwo.p_store_place

    def place(self, lane, t, block, i):
        at = original(self, lane, t, block, i)
        return at._replace(chunk=2 * block + two_by_two.pair_column(lane))

    monkeypatch.setattr(two_by_two.TwoByTwo, "p_store_place", place)


MISTAKES = {
    "block-diagonal": (_block_diagonal, QuadPairs()),
    "no rescale": (_no_rescale, QuadPairs()),
    "mask ignored": (_mask_ignored, QuadPairs()),
    "shuffles to the wrong lane": (_every_shuffle(lambda mask: mask ^ 3), QuadPairs()),
    "weights from the wrong lane": (_shuffle_of_weights, QuadPairs()),
    "weights not traded": (_weights_not_traded, QuadPairs()),
    "halves of V swapped": (_halves_of_v_swapped, QuadPairs()),
    "lines in a row": (_lines_in_a_row, QuadPairs()),
    "2 x 2: no shuffle across quad-pairs": (_every_shuffle(lambda mask: mask & 3), TwoByTwo()),
    "2 x 2: P in place": (_p_in_place, TwoByTwo()),
    "2 x 2: operands not traded": (_every_shuffle(lambda mask: mask & 3), TwoByTwo(uses_p=False)),
    "m16n8: maximum of half a row": (_every_shuffle(lambda mask: mask & 1), Mma16(tiles=2)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake, monkeypatch, rng):
    mutate, atom = MISTAKES[mistake]
    q, k, v = make(rng, 64, 96, 32, 64)
    k *= 4  # scores that differ: the maximum moves from tile to tile
    kernel = Kernel(atom, 2, 32)
    right = attention(q, k, v, kernel=kernel, causal=True)
    assert check(q, k, v, right, causal=True) <= 1
    mutate(monkeypatch)
    wrong = attention(q, k, v, kernel=kernel, causal=True)
    assert check(q, k, v, wrong, causal=True) > 10


def test_the_shared_memory_of_volta_holds_the_tiles():
    """96 KiB an SM: one CTA of four warps and 64 keys fits up to D = 128, and D = 256 with 32 keys."""
    for atom in (QuadPairs(), TwoByTwo()):
        for D, keys in ((64, 64), (128, 64), (256, 32)):
            tiles = Kernel(atom, 4, keys).shared_tiles(D, D)
            ends = sorted((t.base, t.base + t.bytes) for t in tiles.values())
            assert all(end <= start for (_, end), (start, _) in pairwise(ends))
            assert ends[-1][1] <= 96 * 1024 or D == 256


def test_the_balance_of_the_dataflows():
    """Quad-pairs of 32 rows wait for shared memory, at every head dimension; both remedies help."""
    for D in (64, 128, 256):
        narrow, wide, square = (balance(Kernel(a), D, D) for a in (QuadPairs(), QuadPairs(2), TwoByTwo()))
        assert narrow > 1 > square > wide


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((4, 8), np.float32)}, "q must be float16 of two axes, got float32"),
        ({"v": np.zeros((5, 8, 1), np.float16)}, "v must be float16 of two axes"),
        ({"k": np.zeros((5, 16), np.float16)}, "do not fit together"),
        ({"v": np.zeros((6, 8), np.float16)}, "do not fit together"),
        ({"kv_length": 6}, r"kv_length must lie in 0\.\.5, got 6"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {
        "q": np.zeros((4, 8), np.float16),
        "k": np.zeros((5, 8), np.float16),
        "v": np.zeros((5, 8), np.float16),
    }
    with pytest.raises(ValueError, match=message):
        attention(**{**given, **change})


@pytest.mark.parametrize(
    "build",
    [
        lambda: Kernel(TwoByTwo(), keys=48), lambda: Kernel(QuadPairs(), warps=0),
        lambda: QuadPairs(value_width=4), lambda: TwoByTwo(tiles=0), lambda: Mma16(step=4),
    ],
)  # fmt: skip
def test_shapes_that_no_kernel_has_are_refused(build):
    with pytest.raises(ValueError, match="got"):
        build()
