"""Steps 1 to 4 of attention for any block of queries and keys, and the sum that comes after the softmax.

One convention carries every kind of masking: **a score of -inf means that the key is hidden from the query**,
whether by position, by a boolean mask or by a -inf in a float mask. What K and V hold at a hidden key, be it
NaN, has no effect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def scores(
    Q: NDArray[np.float64],
    K: NDArray[np.float64],
    *,
    scale: float,
    softcap: float = 0.0,
    alibi: NDArray[np.float64] | None = None,
    mask: np.ndarray | None = None,
    visible: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return S, the scores before the softmax.

    Parameters
    ----------
    Q, K : ndarray of float64
        (..., rows, D) and (..., keys, D); leading axes broadcast.
    scale : float
        Multiplies the dot products.
    softcap : float
        c of ``c * tanh(S / c)``; 0 is none.
    alibi : ndarray of float64, optional
        slope * (j - p_i), broadcast against S.
    mask : ndarray, optional
        bool (True: may attend) or floating point (added; -inf hides), broadcast against S.
    visible : ndarray of bool, optional
        (rows, keys) of `visibility.visible`. None: the whole block is visible and no time is spent on it.

    Returns
    -------
    ndarray of float64
        (..., rows, keys), -inf exactly where the key is hidden.

    Examples
    --------
    >>> Q, K = np.array([[2.0]]), np.array([[1.0], [np.nan], [3.0]])
    >>> scores(Q, K, scale=0.5, mask=np.array([0.0, -np.inf, 1.0])).tolist()
    [[1.0, -inf, 4.0]]
    """
    S = Q @ K.swapaxes(-1, -2)  # (..., rows, D) @ (..., D, keys): (..., rows, keys)
    S *= scale
    if softcap:
        S = softcap * np.tanh(S / softcap)
    if alibi is not None:
        S += alibi
    if mask is not None and mask.dtype == np.bool_:
        S = np.where(mask, S, -np.inf)
    elif mask is not None:
        bias = mask.astype(np.float64)
        S = np.where(np.isneginf(bias), -np.inf, S + bias)  # the sum alone would keep a NaN of a hidden key
    if visible is not None:
        S = np.where(visible, S, -np.inf)
    return S


def weighted_sum(
    P: NDArray[np.float64], V: NDArray[np.float64], S: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return P V, to which a hidden key adds nothing whatever its value holds.

    A plain product would do but for 0 * NaN = NaN and 0 * inf = NaN. Keys with such a value, if there are
    any, are taken out of the product and added one by one to the rows that see them.

    Parameters
    ----------
    P : ndarray of float64
        (..., rows, keys), 0 where hidden.
    V : ndarray of float64
        (..., keys, Dv).
    S : ndarray of float64
        (..., rows, keys), the scores; -inf says which keys are hidden.

    Returns
    -------
    ndarray of float64
        (..., rows, Dv).

    Examples
    --------
    >>> S, V = np.array([[0.0, -np.inf], [0.0, 0.0]]), np.array([[4.0], [np.inf]])
    >>> weighted_sum(np.exp(S), V, S).tolist()
    [[4.0], [inf]]
    """
    strange: NDArray[np.bool_] = np.asarray(~np.isfinite(V).all(axis=-1))  # (..., keys)
    if not strange.any():
        return P @ V  # (..., rows, keys) @ (..., keys, Dv): (..., rows, Dv)
    total = P @ np.where(strange[..., None], 0.0, V)  # (..., rows, Dv)
    for j in np.flatnonzero(strange.reshape(-1, V.shape[-2]).any(axis=0)):
        add = strange[..., None, j] & ~np.isneginf(S[..., :, j])  # (..., 1) & (..., rows): (..., rows)
        term = np.zeros_like(total)
        # (..., rows, 1) * (..., 1, Dv): (..., rows, Dv)
        np.multiply(P[..., :, j, None], V[..., None, j, :], out=term, where=add[..., None])
        total += term
    return total
