"""Split-KV decode: one or a few queries against a long cache, the keys shared out among workers.

With one query there are no query blocks to work on in parallel, so the keys are split instead. Each worker
runs attention over its own range of keys and hands back (out, lse); `online_softmax.merge_normalised` joins
these exactly. The result does not depend on the number of splits, on their order, or on some of them seeing
no key. (Flash-Decoding; the same merge joins a CPU's and a GPU's share of one layer.)

A split needs no code of its own: only j - p_i enters the formula, so keys from `start` on are a problem in
which every position is smaller by `start`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import standard
from ._check import check
from .online_softmax import merge_normalised
from .visibility import Window


def split_ranges(k_len: int, num_splits: int) -> list[tuple[int, int]]:
    """Return `num_splits` ranges (start, stop) that share out k_len keys evenly; some may be empty.

    Raises
    ------
    ValueError
        When `num_splits` is below 1.

    Examples
    --------
    >>> split_ranges(10, 4)
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    if num_splits < 1:
        raise ValueError(f"num_splits must be at least 1, got {num_splits}")
    return [(k_len * i // num_splits, k_len * (i + 1) // num_splits) for i in range(num_splits)]


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    causal: bool = False,
    window: Window = None,
    mask: np.ndarray | None = None,
    alibi_slopes: np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: np.ndarray | None = None,
    kv_lengths: np.ndarray | None = None,
    q_offset: int | np.ndarray | None = None,
    num_splits: int = 4,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact attention over `num_splits` ranges of keys, merged. Otherwise the same as `standard.attention`.

    Parameters
    ----------
    q, k, v, causal, window, mask, alibi_slopes, scale, softcap, sinks, kv_lengths, q_offset
        As in `standard.attention`. Meant for small Sq; right for any.
    num_splits : int
        Ranges of keys, at least 1; may exceed Sk.

    Returns
    -------
    out, lse : ndarray of float64
        (B, Hq, Sq, Dv) and (B, Hq, Sq).

    Raises
    ------
    ValueError
        As `standard.attention`, and when `num_splits` is below 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((1, heads, length, 8)) for heads, length in ((4, 1), (2, 50), (2, 50)))
    >>> out, lse = attention(q, k, v, num_splits=7, kv_lengths=[33])
    >>> bool(np.allclose(out, standard.attention(q, k, v, kv_lengths=[33])[0], rtol=1e-13, atol=1e-13))
    True
    """
    x = check(
        q, k, v, causal=causal, window=window, mask=mask, alibi_slopes=alibi_slopes, scale=scale,
        softcap=softcap, sinks=sinks, kv_lengths=kv_lengths, q_offset=q_offset,
    )  # fmt: skip
    lengths = np.array(x.kv_lengths, dtype=np.int64)  # (B,)
    offsets = np.array(x.q_offsets, dtype=np.int64)  # (B,)
    parts = [
        standard.attention(
            x.q,
            x.k[:, :, start:stop],  # (B, Hkv, keys, D)
            x.v[:, :, start:stop],  # (B, Hkv, keys, Dv)
            causal=causal,
            window=window,
            mask=None if x.mask is None else x.mask[..., start:stop],  # (B, Hq, Sq, keys)
            alibi_slopes=x.slopes,
            scale=x.scale,
            softcap=x.softcap,
            kv_lengths=np.clip(lengths - start, 0, stop - start),
            q_offset=offsets - start,
        )
        for start, stop in split_ranges(x.k.shape[2], num_splits)
    ]
    out, lse = merge_normalised(parts)
    if x.sinks is None:
        return out, lse
    # A sink is one more part: a key with that logit and a value of zero. It must join once, not once a split.
    sink = np.where(lse == -np.inf, -np.inf, x.sinks[:, None])  # (Hq, 1) against (B, Hq, Sq): (B, Hq, Sq)
    return merge_normalised([(out, lse), (np.zeros_like(out), sink)])
