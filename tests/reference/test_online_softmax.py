"""The state (m, l, O): any cut, order and tree of merges gives softmax; no key is the neutral element."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.online_softmax import State, finish, merge, merge_normalised, update

score = st.floats(-700, 700) | st.just(-np.inf)
value = st.floats(-100, 100)
key = st.tuples(score, value)
piece = st.lists(key, max_size=5)


def state_of(keys):
    S = np.array([[s for s, _ in keys]]).reshape(1, -1)
    V = np.array([[v] for _, v in keys]).reshape(-1, 1)
    return update(State.empty(1, 1), S, V)


def softmax(keys):
    seen = [(s, v) for s, v in keys if s > -np.inf]
    if not seen:
        return 0.0, -np.inf
    top = max(s for s, _ in seen)
    w = np.array([np.exp(s - top) for s, _ in seen])
    return float(w @ [v for _, v in seen] / w.sum()), float(top + np.log(w.sum()))


def same(a: State, b: State):
    for (x, y), tol in zip(zip(finish(a), finish(b), strict=True), (1e-10, 1e-12), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=tol)
    np.testing.assert_array_equal(a.m, b.m)
    np.testing.assert_allclose(a.l, b.l, rtol=1e-12)


@settings(deadline=None)
@given(st.lists(piece, max_size=5))
def test_updating_piece_by_piece_is_softmax(pieces):
    state = State.empty(1, 1)
    for keys in pieces:
        S = np.array([[s for s, _ in keys]]).reshape(1, -1)
        state = update(state, S, np.array([[v] for _, v in keys]).reshape(-1, 1))
    out, lse = finish(state)
    want_out, want_lse = softmax([key for keys in pieces for key in keys])
    np.testing.assert_allclose(out[0, 0], want_out, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(lse[0], want_lse, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(piece, piece, piece)
def test_merge_is_associative_and_commutative(x, y, z):
    a, b, c = state_of(x), state_of(y), state_of(z)
    same(merge(merge(a, b), c), merge(a, merge(b, c)))
    same(merge(a, b), merge(b, a))
    same(merge(merge(a, b), c), state_of([*x, *y, *z]))


@settings(deadline=None)
@given(piece)
def test_no_key_is_the_neutral_element(x):
    a, none = state_of(x), State.empty(1, 1)
    for merged in (merge(a, none), merge(none, a), update(a, np.empty((1, 0)), np.empty((0, 1)))):
        for got, want in ((merged.m, a.m), (merged.l, a.l), (merged.O, a.O)):
            np.testing.assert_array_equal(got, want)


@settings(deadline=None)
@given(st.lists(piece, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_merging_finished_parts_in_any_order(pieces, random):
    parts = [finish(state_of(keys)) for keys in pieces]
    random.shuffle(parts)
    out, lse = merge_normalised(parts)
    want_out, want_lse = softmax([key for keys in pieces for key in keys])
    np.testing.assert_allclose(out[0, 0], want_out, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(lse[0], want_lse, rtol=1e-12, atol=1e-12)


def test_state_without_keys():
    empty = State.empty((2, 3), 4)
    assert (empty.m.shape, empty.l.shape, empty.O.shape) == ((2, 3), (2, 3), (2, 3, 4))
    for state in (empty, merge(empty, empty), update(empty, np.full((2, 3, 5), -np.inf), np.ones((2, 5, 4)))):
        assert (state.m == -np.inf).all()
        assert (state.l == 0).all()
        assert (state.O == 0).all()
        for sinks in (None, 3.0, np.full((2, 1), 1e4)):
            out, lse = finish(state, sinks)
            assert (out == 0).all()
            assert (lse == -np.inf).all()


def test_rows_do_not_mix():
    rng = np.random.default_rng(0)
    S, V = rng.standard_normal((6, 9)), rng.standard_normal((9, 2))
    S[1] = -np.inf
    S[4] += 1e3
    whole = finish(update(State.empty(6, 2), S, V))
    for i in range(6):
        out, lse = finish(update(State.empty(1, 2), S[i : i + 1], V))
        np.testing.assert_allclose(whole[0][i : i + 1], out, rtol=1e-14)
        np.testing.assert_allclose(whole[1][i : i + 1], lse, rtol=1e-14)


def test_leading_axes_broadcast_values():
    rng = np.random.default_rng(0)
    S, V = rng.standard_normal((2, 3, 5, 7)), rng.standard_normal((2, 1, 7, 4))
    got = update(State.empty((2, 3, 5), 4), S, V)
    for b, g in np.ndindex(2, 3):
        want = update(State.empty(5, 4), S[b, g], V[b, 0])
        np.testing.assert_allclose(got.O[b, g], want.O, rtol=1e-14, atol=1e-14)


def test_strange_values_reach_only_the_rows_that_see_them():
    S = np.array([[0.0, -np.inf, 1.0], [0.0, 1.0, -np.inf]])
    V = np.array([[[1.0], [np.nan], [3.0]], [[1.0], [2.0], [np.inf]]])  # two batches of three values
    state = update(State.empty((2, 2), 1), np.stack([S, S]), V)
    out, _ = finish(state)
    assert np.isnan(out[0, 1, 0])
    assert out[1, 0, 0] == np.inf
    e = np.exp(1)
    np.testing.assert_allclose([out[0, 0, 0], out[1, 1, 0]], [(1 + 3 * e) / (1 + e), (1 + 2 * e) / (1 + e)])


def test_an_old_sum_is_rescaled_not_lost_nor_kept():
    """Scores that rise by 1 a step: every step rescales; forgetting it once is an error of a factor e."""
    S, V = np.arange(40.0)[None], np.arange(40.0)[:, None]
    state = functools.reduce(lambda s, j: update(s, S[:, [j]], V[[j]]), range(40), State.empty(1, 1))
    w = np.exp(S[0] - 39)
    np.testing.assert_allclose(state.l, w.sum(), rtol=1e-14)
    np.testing.assert_allclose(state.O[0], w @ V, rtol=1e-14)


def test_a_part_without_keys_is_not_read():
    parts = [(np.array([[2.0]]), np.array([0.5])), (np.array([[np.nan]]), np.array([-np.inf]))]
    for order in (parts, parts[::-1]):
        out, lse = merge_normalised(order)
        assert (out.item(), lse.item()) == (2.0, 0.5)


def test_bad_parts_are_named():
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_normalised([])
    with pytest.raises(ValueError, match=r"out \(2, 3\) and lse \(3,\)"):
        merge_normalised([(np.zeros((2, 3)), np.zeros(3))])
