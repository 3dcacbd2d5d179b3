"""Keys and values in pages: a pool of equal pages, and a table that says which page comes when.

A sequence of n tokens takes ceil(n / page_size) pages of the pool, in any order and place. Row b of the block
table lists them: key j of sequence b lies in page table[b, j // page_size], row j % page_size. So a sequence
grows without being moved, gives its pages back when it ends, and wastes less than one page. (Kwon et al.,
"Efficient Memory Management for Large Language Model Serving with PagedAttention", arXiv:2309.06180.)

Attention needs no new mathematics. The softmax does not mind the order in which keys come, and a page is a
piece of the keys like any split of `decode`: keys from `start` on are a problem in which every position is
smaller by `start`. `attention` below works on each page where it lies and merges; `gather` lays the pages end
to end first. Both must agree with `standard.attention`.

Shapes: a pool of K is (pages, Hkv, page_size, D), of V (pages, Hkv, page_size, Dv), of int8 scales
(pages, Hkv, page_size); the block table is (B, most pages of a sequence), integers. What the table holds
behind a sequence's pages, and a page behind the sequence's length, is never read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import standard
from .online_softmax import merge_normalised
from .quantize import dequantize
from .visibility import Window


def pages_needed(length: int, page_size: int) -> int:
    """Return how many pages hold `length` tokens.

    Examples
    --------
    >>> [pages_needed(n, 16) for n in (0, 1, 16, 17)]
    [0, 1, 1, 2]
    """
    return -(-length // page_size)


def waste(lengths: Sequence[int], page_size: int) -> int:
    """Return how many rows of the sequences' pages hold nothing: each wastes below one page.

    Examples
    --------
    Padded to the longest, these three would waste 95 + 60 rows:

    >>> waste([5, 100, 40], page_size=16)
    31
    """
    return sum(pages_needed(n, page_size) * page_size - n for n in lengths)


def gather(pages: np.ndarray, table_row: np.ndarray, length: int) -> np.ndarray:
    """Return one sequence's rows in order.

    Parameters
    ----------
    pages : ndarray
        (pages, Hkv, page_size, D), or (pages, Hkv, page_size) for scales: the pool.
    table_row : ndarray of int
        (n,): the sequence's pages, at least as many as `length` takes.
    length : int
        Tokens of the sequence.

    Returns
    -------
    ndarray
        (Hkv, length, D) or (Hkv, length), a copy.

    Raises
    ------
    ValueError
        When the row lists too few pages, or one that is not in the pool.

    Examples
    --------
    >>> pool = np.arange(6).reshape(3, 1, 2, 1)  # three pages of two rows
    >>> gather(pool, np.array([2, 0]), 3).ravel().tolist()
    [4, 5, 0]
    """
    rows = np.moveaxis(pages[_pages_of(pages, table_row, length)], 0, 1)  # (Hkv, n, page_size, ...)
    _, n, page_size = rows.shape[:3]
    return rows.reshape(rows.shape[0], n * page_size, *rows.shape[3:])[:, :length]


def attention(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    block_table: np.ndarray,
    kv_lengths: np.ndarray,
    *,
    k_scales: np.ndarray | None = None,
    v_scales: np.ndarray | None = None,
    causal: bool = False,
    window: Window = None,
    mask: np.ndarray | None = None,
    alibi_slopes: np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: np.ndarray | None = None,
    q_offset: int | np.ndarray | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact attention over pages, each worked on where it lies.

    Parameters
    ----------
    q : ndarray
        (B, Hq, Sq, D).
    k_pages, v_pages : ndarray
        (pages, Hkv, page_size, D) and (pages, Hkv, page_size, Dv).
    block_table : ndarray of int
        (B, n): row b lists the pages of sequence b.
    kv_lengths : ndarray of int
        (B,): tokens of each sequence.
    k_scales, v_scales : ndarray of float32, optional
        (pages, Hkv, page_size), with int8 pages: what `quantize.quantize` gives.
    causal, window, mask, alibi_slopes, scale, softcap, sinks, q_offset
        As in `standard.attention`; the mask's key axis is as long as the longest sequence.

    Returns
    -------
    out, lse : ndarray of float64
        (B, Hq, Sq, Dv) and (B, Hq, Sq).

    Raises
    ------
    ValueError
        As `standard.attention` and `gather`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((1, 4, 2, 8))
    >>> pool = rng.standard_normal((5, 2, 16, 8))
    >>> out, lse = attention(q, pool, pool, np.array([[3, 0, 4]]), [37], causal=True)
    >>> rows = gather(pool, np.array([3, 0, 4]), 37)[None]
    >>> bool(np.allclose(out, standard.attention(q, rows, rows, causal=True)[0], rtol=1e-13, atol=1e-13))
    True
    """
    B, Hq, Sq, D = q.shape
    page_size, Dv = v_pages.shape[2:]
    lengths = [int(n) for n in kv_lengths]
    longest = max(lengths, default=0)
    offsets = [n - Sq for n in lengths] if q_offset is None else np.broadcast_to(q_offset, (B,)).tolist()
    masks = None if mask is None else np.broadcast_to(mask, (B, Hq, Sq, longest))
    slopes = None if alibi_slopes is None else np.broadcast_to(alibi_slopes, (B, Hq))
    out, lse = np.zeros((B, Hq, Sq, Dv)), np.full((B, Hq, Sq), -np.inf)
    for b, (n, offset) in enumerate(zip(lengths, offsets, strict=True)):
        parts = []
        for i, page in enumerate(_pages_of(k_pages, block_table[b], n)):
            start = i * page_size
            rows = slice(0, min(page_size, n - start))
            K, V = k_pages[page, :, rows], v_pages[page, :, rows]  # (Hkv, rows, D), (Hkv, rows, Dv)
            if k_scales is not None and v_scales is not None:
                K = dequantize(K, k_scales[page, :, rows])
                V = dequantize(V, v_scales[page, :, rows])
            part = standard.attention(
                q[b : b + 1], K[None], V[None], causal=causal, window=window,
                mask=None if masks is None else masks[b : b + 1, ..., start : start + K.shape[1]],
                alibi_slopes=None if slopes is None else slopes[b],
                scale=1 / math.sqrt(D) if scale is None else scale, softcap=softcap, q_offset=offset - start,
            )  # fmt: skip
            parts.append(part)
        if not parts:
            continue
        O, L = merge_normalised(parts)
        if sinks is not None:  # one more part of the denominator, joined once; see decode.attention
            sink = np.where(np.isneginf(L), -np.inf, np.asarray(sinks)[:, None])  # (1, Hq, Sq)
            O, L = merge_normalised([(O, L), (np.zeros_like(O), sink)])
        out[b], lse[b] = O[0], L[0]
    return out, lse


def _pages_of(pages: np.ndarray, table_row: np.ndarray, length: int) -> NDArray[np.intp]:
    """Return the pages that hold a sequence; raise ValueError where the table does not say."""
    needed = pages_needed(length, pages.shape[2])
    used = np.asarray(table_row)[:needed].astype(np.intp)
    if len(used) < needed:
        raise ValueError(f"{length} tokens need {needed} pages, the block table has {len(used)}")
    if used.size and not 0 <= used.min() <= used.max() < len(pages):
        raise ValueError(f"the block table names a page outside of 0..{len(pages) - 1}: {used.tolist()}")
    return used
