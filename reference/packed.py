"""Sequences of different lengths laid end to end, without padding.

Sequence b is the rows cu_seqlens[b] <= t < cu_seqlens[b + 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import standard
from .visibility import Window


def attention_varlen(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    *,
    causal: bool = False,
    window: Window = None,
    alibi_slopes: np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: np.ndarray | None = None,
    q_offset: int | np.ndarray | None = None,
    attention: Callable[..., Any] = standard.attention,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Attention within each of several packed sequences.

    Parameters
    ----------
    q, k, v : ndarray
        (Tq, Hq, D), (Tk, Hkv, D), (Tk, Hkv, Dv).
    cu_seqlens_q, cu_seqlens_k : ndarray of int
        (B + 1,): where each sequence starts, from 0 to Tq and to Tk, never decreasing.
    causal, window, alibi_slopes, scale, softcap, sinks, q_offset
        As in `standard.attention`, positions counted within each sequence.
    attention : callable
        What to run on each sequence: `standard.attention`, or `tiling.attention` to save memory.

    Returns
    -------
    out, lse : ndarray of float64
        (Tq, Hq, Dv) and (Tq, Hq).

    Raises
    ------
    ValueError
        When shapes do not fit together or the starts do not cover the rows.

    Examples
    --------
    >>> q = k = np.zeros((5, 1, 1))  # two sequences, of 2 and 3 tokens; equal scores: running means
    >>> v = np.arange(1.0, 6.0).reshape(5, 1, 1)
    >>> out, lse = attention_varlen(q, k, v, [0, 2, 5], [0, 2, 5], causal=True)
    >>> out.ravel().tolist()
    [1.0, 1.5, 3.0, 3.5, 4.0]
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3:
            raise ValueError(f"{name} must have three axes (tokens, heads, head_dim), got shape {x.shape}")
    starts_q = _starts("cu_seqlens_q", cu_seqlens_q, len(q))
    starts_k = _starts("cu_seqlens_k", cu_seqlens_k, len(k))
    B = len(starts_q) - 1
    if len(starts_k) != B + 1 or len(v) != len(k):
        raise ValueError(
            f"cu_seqlens_q has {B} sequences, cu_seqlens_k {len(starts_k) - 1}; k {k.shape}, v {v.shape}"
        )
    slopes = None if alibi_slopes is None else np.broadcast_to(alibi_slopes, (B, q.shape[1]))
    offsets = None if q_offset is None else np.broadcast_to(q_offset, (B,))

    out = np.empty((*q.shape[:2], v.shape[2]))
    lse = np.empty(q.shape[:2])
    for b in range(B):
        rows, keys = slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])
        O, L = attention(
            *(x.swapaxes(0, 1)[None] for x in (q[rows], k[keys], v[keys])),  # (T, H, D): (1, H, T, D)
            causal=causal, window=window, scale=scale, softcap=softcap, sinks=sinks,
            alibi_slopes=None if slopes is None else slopes[b],
            q_offset=None if offsets is None else offsets[b],
        )  # fmt: skip
        out[rows] = O[0].swapaxes(0, 1)  # (Hq, Sq, Dv): (Sq, Hq, Dv)
        lse[rows] = L[0].T  # (Hq, Sq): (Sq, Hq)
    return out, lse


def _starts(name: str, value: np.ndarray, tokens: int) -> list[int]:
    starts = [int(x) for x in np.asarray(value)]
    if not starts or starts[0] != 0 or starts[-1] != tokens or sorted(starts) != starts:
        raise ValueError(f"{name} must rise from 0 to {tokens}, got {starts}")
    return starts
