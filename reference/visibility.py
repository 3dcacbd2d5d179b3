"""Which keys a query may see, from positions alone.

Query i stands at position p_i = q_offset + i. Key j is visible when j < kv_length and
p_i - left <= j <= p_i + right; causal is right = 0. Without a `q_offset` the last query stands at the last
key (bottom-right alignment, right for a KV cache); ``q_offset=0`` aligns top left.

Both conditions speak of j - p_i only, so the visible keys of a query are one interval, and whether a whole
tile is visible, hidden or mixed follows from its corners. Masks given as data come on top and are not looked
at here.

Because only j - p_i counts, a piece of a problem is a problem itself: for rows from i0 and keys from j0 on,
use ``q_offset + i0 - j0`` and ``kv_length - j0``. `tiling` and `decode` live on this.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

#: (left, right): how many keys before and after its position a query sees; None or -1 is unbounded.
Window: TypeAlias = tuple[int | None, int | None] | None


class Tile(enum.Enum):
    """What a rectangle of the score matrix holds."""

    EMPTY = "no visible pair: skip it"
    FULL = "visible pairs only: needs no mask"
    PARTIAL = "both: needs a mask"


def band(causal: bool, window: Window) -> tuple[int | None, int | None]:
    """Return (left, right) of `causal` and `window` together; None is unbounded.

    Raises
    ------
    ValueError
        When `window` is not a pair of integers from -1 on, or of None.

    Examples
    --------
    >>> band(causal=True, window=(4, 4))
    (4, 0)
    """
    try:
        left, right = (None, None) if window is None else window
    except (TypeError, ValueError):
        raise ValueError(f"window must be a pair (left, right), got {window!r}") from None
    if any(x is not None and (not isinstance(x, int | np.integer) or x < -1) for x in (left, right)):
        raise ValueError(f"window must hold integers from -1 on or None, got {window!r}")
    left = None if left == -1 else left
    right = None if right == -1 else right
    return left, 0 if causal else right


def positions(q_len: int, q_offset: int) -> NDArray[np.int64]:
    """Return the positions p of the queries, (Sq,).

    Examples
    --------
    >>> positions(3, 5).tolist()
    [5, 6, 7]
    """
    return q_offset + np.arange(q_len, dtype=np.int64)


def intervals(
    q_len: int,
    k_len: int,
    *,
    causal: bool = False,
    window: Window = None,
    kv_length: int | None = None,
    q_offset: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last visible key of every query.

    Parameters
    ----------
    q_len, k_len : int
        Sq and Sk.
    causal : bool
        Hide keys after the query's position.
    window : (int or None, int or None), optional
        (left, right) reach around the position; None or -1 is unbounded.
    kv_length : int, optional
        How many of the keys count, `k_len` by default.
    q_offset : int, optional
        Position of query 0, any sign; ``kv_length - q_len`` by default.

    Returns
    -------
    first, last : ndarray of int64
        (Sq,) each. Query i sees ``first[i] <= j <= last[i]``: no key at all when ``first[i] > last[i]``.
        Neither ever decreases with i.

    Examples
    --------
    >>> first, last = intervals(4, 6, causal=True, window=(1, 0))
    >>> first.tolist(), last.tolist()
    ([1, 2, 3, 4], [2, 3, 4, 5])
    """
    left, right = band(causal, window)
    n = k_len if kv_length is None else kv_length
    p = positions(q_len, n - q_len if q_offset is None else q_offset)  # (Sq,)
    first = np.zeros_like(p) if left is None else np.maximum(p - left, 0)  # (Sq,)
    last = np.full_like(p, n - 1) if right is None else np.minimum(p + right, n - 1)  # (Sq,)
    return first, last


def visible(
    q_len: int,
    k_len: int,
    *,
    causal: bool = False,
    window: Window = None,
    kv_length: int | None = None,
    q_offset: int | None = None,
) -> NDArray[np.bool_]:
    """Return the mask itself: (Sq, Sk), True where query i sees key j. Arguments as in `intervals`.

    Examples
    --------
    >>> visible(2, 4, causal=True).astype(int).tolist()  # the last query stands at the last key
    [[1, 1, 1, 0], [1, 1, 1, 1]]
    >>> visible(2, 4, causal=True, q_offset=0).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0]]
    """
    first, last = intervals(
        q_len, k_len, causal=causal, window=window, kv_length=kv_length, q_offset=q_offset
    )
    j = np.arange(k_len)  # (Sk,)
    return (first[:, None] <= j) & (j <= last[:, None])  # (Sq, 1) against (Sk,): (Sq, Sk)


def classify(
    rows: tuple[int, int],
    cols: tuple[int, int],
    *,
    causal: bool = False,
    window: Window = None,
    kv_length: int,
    q_offset: int,
) -> Tile:
    """Say in O(1) what the tile of queries rows[0] <= i < rows[1] and keys cols[0] <= j < cols[1] holds.

    In a tile j - p_i takes every value from (first key - last position) to (last key - first position), so
    comparing these two ends with the band [-left, right] decides. A tile without rows or columns is empty.

    Examples
    --------
    >>> [classify((4, 8), (j, j + 4), causal=True, kv_length=12, q_offset=0).name for j in (0, 4, 8)]
    ['FULL', 'PARTIAL', 'EMPTY']
    """
    left, right = band(causal, window)
    first_p, last_p = q_offset + rows[0], q_offset + rows[1] - 1
    first_j, last_j = cols[0], min(cols[1], kv_length) - 1
    if first_p > last_p or first_j > last_j:
        return Tile.EMPTY
    lowest, highest = first_j - last_p, last_j - first_p
    if (right is not None and lowest > right) or (left is not None and highest < -left):
        return Tile.EMPTY
    inside = (right is None or highest <= right) and (left is None or lowest >= -left)
    return Tile.FULL if inside and cols[1] <= kv_length else Tile.PARTIAL
