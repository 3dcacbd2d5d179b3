"""The oracle: attention as the formula says it, in float64, with the whole score matrix in memory.

    O = softmax(scale * Q K^T + biases) V,     lse = log of the softmax's denominator

Everything that calls itself attention in this project is measured against `attention` below. It is made to be
obviously right: one sequence, one head at a time, plain matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._check import check
from .scores import scores, weighted_sum
from .visibility import Window, positions, visible


@np.errstate(over="ignore", invalid="ignore")  # inf and NaN go in and out as IEEE 754 says, without a warning
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
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact attention, every option, float64.

    Parameters
    ----------
    q, k, v : ndarray
        (B, Hq, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv), of any real dtype: upcast to float64 first. Hq is a
        multiple of Hkv; query head h reads key/value head h // (Hq // Hkv).
    causal : bool
        Hide keys after the query's position. Query i stands at p_i = q_offset + i.
    window : (int or None, int or None), optional
        Hide keys outside p_i - left <= j <= p_i + right; None or -1 is unbounded. Combines with `causal`.
    mask : ndarray, optional
        Broadcasts to (B, Hq, Sq, Sk). bool: True may attend. Floating point: added to the scores; -inf hides.
    alibi_slopes : ndarray, optional
        (Hq,) or (B, Hq): adds slope * (j - p_i).
    scale : float, optional
        Multiplier of the dot products, 1 / sqrt(D) by default.
    softcap : float, optional
        c of ``c * tanh(score / c)``, before any bias. None or 0: none.
    sinks : ndarray, optional
        (Hq,): adds exp(sink) to the denominator of rows that see a key.
    kv_lengths : ndarray of int, optional
        (B,): how many keys of each sequence count. What lies behind them is not read. All by default.
    q_offset : int or ndarray of int, optional
        Position of query 0, one for all or (B,), any sign. ``kv_length - Sq`` by default: the last query
        stands at the last key. 0 aligns top left.

    Returns
    -------
    out : ndarray of float64
        (B, Hq, Sq, Dv); 0 for a query that sees no key.
    lse : ndarray of float64
        (B, Hq, Sq): natural logarithm of the denominator; -inf for a query that sees no key, with sinks too.

    Raises
    ------
    ValueError
        When shapes do not fit together or an option is out of range.

    Notes
    -----
    Attention is Vaswani et al., arXiv 1706.03762; ALiBi Press et al., arXiv 2108.12409; grouped heads Ainslie
    et al., arXiv 2305.13245. `lse` is what exact merging of partial results needs (see `online_softmax`).

    Examples
    --------
    >>> q = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.float32)[None, None]  # (1, 1, 4, 2)
    >>> k = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], dtype=np.float32)[None, None]
    >>> v = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.float32)[None, None]
    >>> out, lse = attention(q, k, v, scale=1.0)
    >>> out[0, 0].round(4).tolist()
    [[3.5379, 4.5379], [3.0758, 4.0758], [2.6136, 3.6136], [4.0, 5.0]]
    >>> out, lse = attention(q, k, v, causal=True, kv_lengths=[2])  # queries at -2, -1, 0, 1
    >>> out[0, 0].round(4).tolist()
    [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [2.0, 3.0]]
    >>> lse[0, 0].round(4).tolist()
    [-inf, -inf, 1.4142, 0.6931]
    """
    x = check(
        q, k, v, causal=causal, window=window, mask=mask, alibi_slopes=alibi_slopes, scale=scale,
        softcap=softcap, sinks=sinks, kv_lengths=kv_lengths, q_offset=q_offset,
    )  # fmt: skip
    B, Hq, Sq, _ = x.q.shape
    out = np.empty((B, Hq, Sq, x.v.shape[3]))
    lse = np.empty((B, Hq, Sq))
    for b, h in np.ndindex(B, Hq):
        n, p = x.kv_lengths[b], positions(Sq, x.q_offsets[b])
        Q = x.q[b, h].astype(np.float64)  # (Sq, D)
        K = x.k[b, h // x.group, :n].astype(np.float64)  # (n, D)
        V = x.v[b, h // x.group, :n].astype(np.float64)  # (n, Dv)
        S = scores(
            Q,
            K,
            scale=x.scale,
            softcap=x.softcap,
            alibi=None if x.slopes is None else x.slopes[b, h] * (np.arange(n) - p[:, None]),  # (Sq, n)
            mask=None if x.mask is None else x.mask[b, h, :, :n],
            visible=visible(Sq, n, causal=causal, window=window, q_offset=x.q_offsets[b]),
        )  # (Sq, n)

        m = S.max(axis=-1, initial=-np.inf)  # (Sq,)
        no_key = np.isneginf(m)  # (Sq,)
        sink = -np.inf if x.sinks is None else x.sinks[h]
        m = np.where(no_key, 0.0, np.maximum(m, sink))  # (Sq,): where a key is seen no exponential exceeds 1
        P = np.exp(S - m[:, None])  # (Sq, n), 0 where hidden
        l = P.sum(axis=-1) + np.exp(sink - m)  # (Sq,)
        l = np.where(no_key, 1.0, l)
        O = weighted_sum(P, V, S)  # (Sq, Dv)
        out[b, h] = np.where(no_key[:, None], 0.0, O / l[:, None])
        lse[b, h] = np.where(no_key, -np.inf, m + np.log(l))
    return out, lse
