"""FastAttention's tiling-mask: one small triangle holds the causal mask of every tile.

Storing the S x S mask is hopeless (4 GiB for 64K tokens at a byte each). FastAttention (arXiv 2410.16663)
keeps one lower triangle of (2M) x (2M) cells, the M-mask, for tiles of at most M x M, and takes each tile's
mask, its B-mask, from it as a window: the same cells at another address, nothing copied or computed.

Why it works: in a tile that starts at query position s1 and key s2, cell (r, c) is visible when
s2 + c <= s1 + r, that is c <= r + delta with delta = s1 - s2. In the triangle, the window that starts at
(row, column) holds c <= r + row - column. So any window with row - column = delta will do, and beyond
delta = b2 or delta = -b1, where a tile is all visible or all hidden, every delta looks the same. The M-mask
of a b1 x b2 tile needs b1 + b2 cells a side, no more.

The window formula is ours (the paper's body was not at hand); the tests hold it against the definition for
all offsets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def m_mask(size: int) -> NDArray[np.bool_]:
    """Return the M-mask: a (size, size) lower triangle, True where visible. b1 + b2 serves b1 x b2 tiles.

    Examples
    --------
    >>> m_mask(3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    return np.tri(size, dtype=np.bool_)


def window_start(delta: int, b1: int, b2: int) -> tuple[int, int]:
    """Return (row, column) where the causal mask of a b1 x b2 tile at offset delta lies in the M-mask.

    Examples
    --------
    >>> [window_start(delta, 2, 3) for delta in (-9, -1, 0, 1, 9)]
    [(0, 2), (0, 1), (0, 0), (1, 0), (3, 0)]
    """
    return (min(delta, b2), 0) if delta > 0 else (0, min(-delta, b1))


def b_mask(triangle: NDArray[np.bool_], delta: int, b1: int, b2: int) -> NDArray[np.bool_]:
    """Return the causal mask of one tile as a view into the M-mask.

    Parameters
    ----------
    triangle : ndarray of bool
        `m_mask` of at least b1 + b2 cells a side.
    delta : int
        Position of the tile's first query minus its first key, any sign and size.
    b1, b2 : int
        Queries and keys of the tile.

    Returns
    -------
    ndarray of bool
        (b1, b2), True where visible. Shares memory with `triangle`.

    Raises
    ------
    ValueError
        When the triangle is too small.

    Examples
    --------
    >>> triangle = m_mask(5)
    >>> tile = b_mask(triangle, -1, 2, 3)  # queries from position 4, keys from 5
    >>> tile.astype(int).tolist()
    [[0, 0, 0], [1, 0, 0]]
    >>> np.shares_memory(tile, triangle)
    True
    """
    if min(triangle.shape) < b1 + b2:
        raise ValueError(
            f"tiles of {b1} x {b2} need an M-mask of {b1 + b2} cells a side, got {triangle.shape}"
        )
    row, column = window_start(delta, b1, b2)
    return triangle[row : row + b1, column : column + b2]  # (b1, b2)


def window_mask(
    triangle: NDArray[np.bool_], delta: int, b1: int, b2: int, *, left: int, right: int
) -> NDArray[np.bool_]:
    """Return the mask of one tile under a sliding window: two B-masks of one triangle, the second inverted.

    j <= p + right is the causal mask moved by `right`; j >= p - left hides what the causal mask moved by
    -left - 1 shows.

    Examples
    --------
    >>> window_mask(m_mask(8), 0, 4, 4, left=1, right=0).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    not_after = b_mask(triangle, delta + right, b1, b2)  # (b1, b2)
    before = b_mask(triangle, delta - left - 1, b1, b2)  # (b1, b2)
    return not_after & ~before


def full_mask_bytes(length: int, itemsize: int = 1) -> int:
    """Return the bytes of the whole mask, length x length.

    Examples
    --------
    >>> full_mask_bytes(64 * 1024) / 2**30, full_mask_bytes(64 * 1024, itemsize=2) / 2**30  # GiB
    (4.0, 8.0)
    """
    return length * length * itemsize


def m_mask_bytes(M: int, itemsize: int = 1) -> int:
    """Return the bytes of the M-mask for tiles of up to M x M: (2M)^2 cells, whatever the sequence length.

    Examples
    --------
    >>> m_mask_bytes(512) / 2**20, m_mask_bytes(256) / 2**10  # 1 MiB, 256 KiB: it grows with the square of M
    (1.0, 256.0)
    """
    return (2 * M) ** 2 * itemsize


def saving(length: int, M: int) -> float:
    """Return the share of the full mask's memory that the M-mask saves, 0 to 1.

    Examples
    --------
    >>> f"{saving(64 * 1024, 512):.4%}"
    '99.9756%'
    """
    return 1.0 - m_mask_bytes(M) / full_mask_bytes(length)
