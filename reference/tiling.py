"""FlashAttention-2 tiling: exact attention that never holds more than one tile of scores.

The outer loop takes a block of queries, the inner loop walks over blocks of keys and feeds the online
softmax. Nothing is divided before the inner loop ends (FlashAttention-2, arXiv 2307.08691, section 3.1).
Tiles without a visible pair are skipped; tiles that are wholly visible get no mask at all; only those on an
edge of the band pay for one.

All heads go through a tile together, in the shape (B, Hkv, G, block_q, D): the G query heads of a group read
the same K and V, which are upcast to float64 a tile at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._check import Inputs, check
from .online_softmax import State, finish, update
from .scores import scores
from .visibility import Tile, Window, classify, positions, visible


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
    block_q: int = 64,
    block_k: int = 64,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact attention, tile by tile. Arguments, results and errors are those of `standard.attention`.

    Parameters
    ----------
    q, k, v, causal, window, mask, alibi_slopes, scale, softcap, sinks, kv_lengths, q_offset
        As in `standard.attention`.
    block_q, block_k : int
        Queries and keys a tile. The result does not depend on them but for rounding; memory does:
        B * Hq * block_q * (block_k + Dv) float64 numbers, a few times over.

    Returns
    -------
    out, lse : ndarray of float64
        (B, Hq, Sq, Dv) and (B, Hq, Sq).

    Raises
    ------
    ValueError
        As `standard.attention`, and when a block size is below 1.

    Examples
    --------
    >>> from .standard import attention as standard
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((2, heads, 100, 16)) for heads in (6, 2, 2))
    >>> options = dict(causal=True, window=(20, 0), sinks=np.zeros(6))
    >>> out, lse = attention(q, k, v, block_q=32, block_k=48, **options)
    >>> bool(np.allclose(out, standard(q, k, v, **options)[0], rtol=1e-13, atol=1e-13))
    True
    """
    x = check(
        q, k, v, causal=causal, window=window, mask=mask, alibi_slopes=alibi_slopes, scale=scale,
        softcap=softcap, sinks=sinks, kv_lengths=kv_lengths, q_offset=q_offset,
    )  # fmt: skip
    _check_blocks(block_q, block_k)
    B, Hq, Sq, _ = x.q.shape
    Hkv, Dv = x.v.shape[1], x.v.shape[3]
    sinks = None if x.sinks is None else x.sinks.reshape(Hkv, x.group, 1)  # against m, (b, Hkv, G, rows)
    out = np.empty((B, Hq, Sq, Dv))
    lse = np.empty((B, Hq, Sq))
    for batch, n, offset in _alike(x):  # batch: a slice of sequences, b of them, that share length and offset
        for i in range(0, Sq, block_q):
            rows = slice(i, min(i + block_q, Sq))
            Q = _grouped(x, x.q[batch, :, rows]).astype(np.float64)  # (b, Hkv, G, rows, D)
            state = State.empty(Q.shape[:-1], Dv)
            for cols, kind in _key_tiles(rows, n, block_k, causal=causal, window=window, q_offset=offset):
                if kind is Tile.EMPTY:
                    continue
                K = x.k[batch, :, None, cols].astype(np.float64)  # (b, Hkv, 1, keys, D)
                V = x.v[batch, :, None, cols].astype(np.float64)  # (b, Hkv, 1, keys, Dv)
                S = scores(
                    Q,
                    K,
                    scale=x.scale,
                    softcap=x.softcap,
                    alibi=None if x.slopes is None else _alibi(x, batch, rows, cols, offset),
                    mask=None if x.mask is None else _grouped(x, x.mask[batch, :, rows, cols]),
                    visible=None if kind is Tile.FULL else _visible_tile(rows, cols, causal, window, offset),
                )  # (b, Hkv, G, rows, keys)
                state = update(state, S, V)
            O, L = finish(state, sinks)  # (b, Hkv, G, rows, Dv), (b, Hkv, G, rows)
            out[batch, :, rows] = O.reshape(out[batch, :, rows].shape)  # (b, Hq, rows, Dv)
            lse[batch, :, rows] = L.reshape(lse[batch, :, rows].shape)  # (b, Hq, rows)
    return out, lse


class TileCounts(NamedTuple):
    """How many tiles of each kind (`visibility.Tile`) a problem has."""

    empty: int
    full: int
    partial: int


def count_tiles(
    q_len: int,
    k_len: int,
    *,
    causal: bool = False,
    window: Window = None,
    kv_length: int | None = None,
    q_offset: int | None = None,
    block_q: int = 64,
    block_k: int = 64,
) -> TileCounts:
    """Count the tiles `attention` skips, computes without a mask, and with one, for one sequence and head.

    Keys from `kv_length` on are no tiles at all. Arguments as in `visibility.intervals`.

    Examples
    --------
    64K tokens in blocks of 512: 16,384 tiles, of which causal attention touches 8,256, and masks 128.

    >>> count_tiles(65536, 65536, causal=True, block_q=512, block_k=512)
    TileCounts(empty=8128, full=8128, partial=128)
    """
    _check_blocks(block_q, block_k)
    n = k_len if kv_length is None else kv_length
    offset = n - q_len if q_offset is None else q_offset
    count = dict.fromkeys(Tile, 0)
    for i in range(0, q_len, block_q):
        rows = slice(i, min(i + block_q, q_len))
        for _, kind in _key_tiles(rows, n, block_k, causal=causal, window=window, q_offset=offset):
            count[kind] += 1
    return TileCounts(count[Tile.EMPTY], count[Tile.FULL], count[Tile.PARTIAL])


def _key_tiles(
    rows: slice, n: int, block_k: int, *, causal: bool, window: Window, q_offset: int
) -> Iterator[tuple[slice, Tile]]:
    """Yield the key blocks of the query block `rows`, the last one cut at n, and what each holds."""
    for j in range(0, n, block_k):
        cols = slice(j, min(j + block_k, n))
        kind = classify(
            (rows.start, rows.stop), (cols.start, cols.stop),
            causal=causal, window=window, kv_length=n, q_offset=q_offset,
        )  # fmt: skip
        yield cols, kind


def _visible_tile(rows: slice, cols: slice, causal: bool, window: Window, offset: int) -> NDArray[np.bool_]:
    """Return `visible` of one tile, (rows, keys): the origin moves to the tile's corner."""
    shape = rows.stop - rows.start, cols.stop - cols.start
    return visible(*shape, causal=causal, window=window, q_offset=offset + rows.start - cols.start)


def _alibi(x: Inputs, batch: slice, rows: slice, cols: slice, offset: int) -> NDArray[np.float64]:
    assert x.slopes is not None
    p = positions(rows.stop - rows.start, offset + rows.start)  # (rows,)
    distance = np.arange(cols.start, cols.stop) - p[:, None]  # (rows, keys)
    return _grouped(x, x.slopes[batch])[..., None, None] * distance  # (b, Hkv, G, rows, keys)


def _grouped(x: Inputs, a: np.ndarray) -> np.ndarray:
    """Split the query heads of `a`, (b, Hq, ...), into groups of one key/value head: (b, Hkv, G, ...)."""
    return a.reshape(a.shape[0], x.k.shape[1], x.group, *a.shape[2:])


def _alike(x: Inputs) -> Iterator[tuple[slice, int, int]]:
    """Yield (slice of the batch, kv_length, q_offset) for each run of sequences that share both."""
    start = 0
    for (n, offset), run in groupby(zip(x.kv_lengths, x.q_offsets, strict=True)):
        stop = start + len(list(run))
        yield slice(start, stop), n, offset
        start = stop


def _check_blocks(block_q: int, block_k: int) -> None:
    if block_q < 1 or block_k < 1:
        raise ValueError(f"block sizes must be at least 1, got block_q={block_q}, block_k={block_k}")
