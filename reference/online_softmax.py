"""Softmax over keys that arrive piece by piece: the state (m, l, O).

For the keys seen so far, with scores s_j and values v_j,

    m = max s_j,     l = sum exp(s_j - m),     O = sum exp(s_j - m) v_j,

and the answer is O / l with lse = m + log l. New keys with a larger maximum only rescale l and O by
exp(m_old - m_new). Hence the order of the pieces is free, and pieces worked on apart can be merged: `merge`
is associative and commutative, and the state that has seen no key (m = -inf, l = 0, O = 0) is its neutral
element. That element needs care in one place only: with m = -inf the difference m - m is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .scores import weighted_sum


@dataclass(frozen=True, eq=False)
class State:
    """What there is to know about the keys seen so far. Unnormalised.

    Attributes
    ----------
    m : ndarray of float64
        (..., rows): largest score, -inf before any key.
    l : ndarray of float64
        (..., rows): sum of exp(score - m).
    O : ndarray of float64
        (..., rows, Dv): sum of exp(score - m) * value.
    """

    m: NDArray[np.float64]
    l: NDArray[np.float64]
    O: NDArray[np.float64]

    @classmethod
    def empty(cls, rows: int | tuple[int, ...], v_dim: int) -> State:
        """Return the state of `rows` queries (an int, or a shape that ends in them) that have seen no key."""
        shape = (rows,) if isinstance(rows, int) else rows
        return cls(np.full(shape, -np.inf), np.zeros(shape), np.zeros((*shape, v_dim)))


def update(state: State, scores: NDArray[np.float64], values: NDArray[np.float64]) -> State:
    """Return the state after some more keys: one step of FlashAttention's inner loop.

    Parameters
    ----------
    state : State
        Of the keys so far.
    scores : ndarray of float64
        (..., rows, keys); -inf hides a key, the number of keys may be 0.
    values : ndarray of float64
        (..., keys, Dv), broadcast against the leading axes of `scores`.

    Examples
    --------
    >>> state = State.empty(1, v_dim=1)
    >>> state = update(state, np.array([[0.0, 0.0]]), np.array([[1.0], [3.0]]))
    >>> state.m.tolist(), state.l.tolist(), state.O.tolist()
    ([0.0], [2.0], [[4.0]])
    >>> state = update(state, np.array([[np.log(2.0)]]), np.array([[5.0]]))  # new maximum: old sums halve
    >>> state.l.tolist(), state.O.tolist()
    ([2.0], [[7.0]])
    """
    m = np.maximum(state.m, scores.max(axis=-1, initial=-np.inf))  # (..., rows)
    alpha = np.exp(state.m - _finite(m))  # (..., rows): 0 when nothing was seen before
    P = np.exp(scores - _finite(m)[..., None])  # (..., rows, keys): 0 where hidden
    l = state.l * alpha + P.sum(axis=-1)
    O = state.O * alpha[..., None] + weighted_sum(P, values, scores)  # (..., rows, Dv)
    return State(m, l, O)


def merge(a: State, b: State) -> State:
    """Return the state of the keys of `a` and `b` together, which must be different keys.

    Examples
    --------
    >>> one = update(State.empty(1, 1), np.array([[0.0]]), np.array([[4.0]]))
    >>> two = update(State.empty(1, 1), np.array([[np.log(3.0)]]), np.array([[8.0]]))
    >>> out, lse = finish(merge(one, two))
    >>> out.round(6).tolist(), np.exp(lse).round(6).tolist()  # weights 1/4 and 3/4
    ([[7.0]], [4.0])
    """
    m = np.maximum(a.m, b.m)  # (..., rows)
    wa, wb = np.exp(a.m - _finite(m)), np.exp(b.m - _finite(m))  # (..., rows): 0 for a side without keys
    return State(m, a.l * wa + b.l * wb, a.O * wa[..., None] + b.O * wb[..., None])


def finish(state: State, sinks: ArrayLike | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (out, lse): divide by the denominator, once, at the very end.

    Parameters
    ----------
    state : State
        Of all keys.
    sinks : array_like, optional
        Logits that broadcast against `state.m`; exp(sink) joins the denominator of rows that saw a key.

    Returns
    -------
    out : ndarray of float64
        (..., rows, Dv); 0 where no key was seen.
    lse : ndarray of float64
        (..., rows); -inf where no key was seen, sink or not.

    Examples
    --------
    >>> state = update(State.empty(2, 1), np.array([[0.0], [-np.inf]]), np.array([[6.0]]))
    >>> out, lse = finish(state, sinks=np.log(2.0))
    >>> out.round(6).tolist(), np.exp(lse).round(6).tolist()
    ([[2.0], [0.0]], [3.0, 0.0])
    """
    no_key = np.isneginf(state.m)  # (..., rows)
    sink = np.where(no_key, -np.inf, -np.inf if sinks is None else np.asarray(sinks))  # (..., rows)
    m = np.where(no_key, 0.0, np.maximum(state.m, sink))  # a sink far above the scores must not overflow
    alpha = np.exp(state.m - m)  # (..., rows)
    l = np.where(no_key, 1.0, state.l * alpha + np.exp(sink - m))
    out = state.O * (alpha / l)[..., None]  # (..., rows, Dv)
    return out, np.where(no_key, -np.inf, m + np.log(l))


def merge_normalised(
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Merge finished results [(out, lse), ...] over different keys into (out, lse) over all of them.

    lse = log sum exp(lse_i) and out = sum exp(lse_i - lse) out_i: `merge` with m = lse, l = 1, O = out. A
    part's sink, if it has one, counts like a key: give a sink to one part only.

    Parameters
    ----------
    parts : iterable of (ndarray, ndarray)
        (..., rows, Dv) and (..., rows) each. Where lse is -inf the part saw no key and its `out` is not read.

    Raises
    ------
    ValueError
        Without any part, or when an `out` and its `lse` do not fit.

    Examples
    --------
    >>> one, two = (np.array([[4.0]]), np.log([1.0])), (np.array([[8.0]]), np.log([3.0]))
    >>> out, lse = merge_normalised([one, two])
    >>> out.round(6).tolist(), np.exp(lse).round(6).tolist()
    ([[7.0]], [4.0])
    """
    total: State | None = None
    for out, lse in parts:
        if out.shape[:-1] != lse.shape:
            raise ValueError(f"out {out.shape} and lse {lse.shape} must agree but for the last axis of out")
        seen = ~np.isneginf(lse.astype(np.float64))  # (..., rows)
        O = np.where(seen[..., None], out.astype(np.float64), 0.0)
        part = State(lse.astype(np.float64), seen.astype(np.float64), O)
        total = part if total is None else merge(total, part)
    if total is None:
        raise ValueError("parts is empty: there is nothing to merge")
    return finish(total)


def _finite(m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace -inf, the maximum of no keys, by 0: then exp(-inf - m) is 0, as it should be, and not NaN."""
    return np.where(np.isneginf(m), 0.0, m)
