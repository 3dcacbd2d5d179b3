"""FastAttention's two-level tiling: large blocks to hand over rarely, small tiles inside to fit the buffers.

On an NPU with decoupled units (Ascend) matrices are multiplied by one core, the Cube, and exponentials taken
by others, the Vector cores, and what one makes the other gets through memory, with a flag. With one size of
block for everything ("unified" tiling), the small buffers of the Cube set it, and flags are waited for all
the time. FastAttention (arXiv 2410.16663, from its abstract) has two: a **level-1 block**, of `block_q`
queries and `block_k` keys, is what the units hand each other; **level-2 tiles**, of `tile_q` x `tile_k`, are
what the Cube's buffers hold, and pieces of `vector_rows` rows what the Vector's buffer holds. For each
level-1 block

1. the Cube multiplies S = Q K^T, tile by tile, into the workspace, and says so (hand-over S);
2. the Vector reads rows of S, masks, updates the maximum, writes P = exp(S - m) (hand-over P);
3. the Cube multiplies P V, summing over the block's keys in place, into the workspace (hand-over O);
4. the Vector rescales its own O and adds.

On a GPU the same loop has other names: the level-1 block is a thread block's, in shared memory, the level-2
tile a warp's, in registers; S, P and O stay in the registers that made them, so nothing moves between
"units", and the hand-overs are the two barriers after K and V are stored. `Form` holds the names, `run` is
one function.

Tiles without a visible pair are skipped at both levels. A tile on an edge gets its mask as a window of one
small triangle, the M-mask of `tiling_mask`, of tile_q + tile_k cells a side. What exactly moves between which
buffers is counted by `run` as it happens, and by `two_level_counts` in closed form. How sizes were split in
the paper was not at hand; the order of loops and the buffers of each operand are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ._check import Inputs, check
from .online_softmax import State, finish
from .scores import scores, weighted_sum
from .tiling import _alibi, _alike, _grouped
from .tiling_mask import b_mask, m_mask
from .visibility import Tile, Window, band, classify


@dataclass(frozen=True)
class Blocks:
    """The sizes of both levels; none needs to divide another or the lengths.

    Attributes
    ----------
    block_q, block_k : int
        Queries and keys of a level-1 block: what the units hand each other.
    tile_q, tile_k : int
        Queries and keys of a level-2 tile: what is multiplied at a time. Tiles start anew in each block.
    vector_rows : int
        Rows of scores in a piece, cut from a row of tiles: what softmax works on at a time.
    """

    block_q: int = 128
    block_k: int = 512
    tile_q: int = 128
    tile_k: int = 128
    vector_rows: int = 16

    def __post_init__(self) -> None:
        if min(self.block_q, self.block_k, self.tile_q, self.tile_k, self.vector_rows) < 1:
            raise ValueError(f"every size must be at least 1, got {self}")
        if self.tile_q > self.block_q or self.tile_k > self.block_k or self.vector_rows > self.tile_q:
            raise ValueError(f"a tile lies in a block, a piece in a row of tiles, got {self}")

    @classmethod
    def unified(cls, block_q: int, block_k: int, vector_rows: int | None = None) -> Blocks:
        """Return one-level tiling: the tile is the block."""
        rows = min(block_q, 16) if vector_rows is None else vector_rows
        return cls(block_q, block_k, block_q, block_k, rows)


@dataclass(frozen=True)
class Form:
    """Names of the buffers that the loop runs through, and what is waited for.

    Attributes
    ----------
    memory, level1, left, right, sums, vector : str
        Where arrays lie, where a level-1 block does, the two operands and the sums of a product, and scores
        during softmax. A move from a buffer to itself is none.
    workspace : str
        Where S, P and O lie between the units.
    waits : tuple of str
        The tensors of a level-1 block after which one unit waits for another.
    """

    memory: str
    level1: str
    left: str
    right: str
    sums: str
    vector: str
    workspace: str
    waits: tuple[str, ...]


#: Ascend: the hand-overs between Cube and Vector cores go through global memory (in practice, its L2 cache).
NPU = Form("GM", "L1", "L0A", "L0B", "L0C", "UB", "workspace", ("S", "P", "O"))
#: A GPU: thread block and warp. A barrier after K, one after V.
GPU = Form("global", "shared", "A", "B", "C", "C", "C", ("K", "V"))

#: Bytes an element in 16-bit attention with float32 scores and sums.
ITEMSIZE = {"Q": 2, "K": 2, "V": 2, "P": 2, "S": 4, "O": 4, "out": 2, "lse": 4, "B-mask": 1, "mask": 2}


@dataclass
class Counts:
    """What was moved and waited for.

    Attributes
    ----------
    moved : Counter of (str, str, str)
        Elements by (tensor, from, to).
    waits : Counter of str
        Hand-overs by tensor.
    """

    moved: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def bytes(self, source: str, target: str) -> int:
        """Return the bytes moved from one buffer to another, by `ITEMSIZE`."""
        return sum(n * ITEMSIZE[name] for (name, a, b), n in self.moved.items() if (a, b) == (source, target))

    @property
    def handovers(self) -> int:
        """Hand-overs of all tensors."""
        return self.waits.total()

    def move(self, name: str, n: int, *path: str) -> None:
        """Count n elements of a tensor going from buffer to buffer."""
        for a, b in pairwise(path):
            if a != b and n:
                self.moved[name, a, b] += n

    def wait(self, form: Form, name: str, n: int) -> None:
        """Count a tensor's hand-overs, where the form has them."""
        if name in form.waits and n:
            self.waits[name] += n


@dataclass(frozen=True, eq=False)
class Result:
    """Of `run`: out (B, Hq, Sq, Dv) and lse (B, Hq, Sq) in float64, and what it took."""

    out: NDArray[np.float64]
    lse: NDArray[np.float64]
    counts: Counts


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, blocks: Blocks | None = None, **options: object
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact attention in two levels of tiles.

    Parameters
    ----------
    q, k, v, **options
        As in `standard.attention`.
    blocks : Blocks, optional
        The sizes; the result does not depend on them but for rounding.

    Returns
    -------
    out, lse : ndarray of float64
        (B, Hq, Sq, Dv) and (B, Hq, Sq).

    Raises
    ------
    ValueError
        As `standard.attention`.

    Examples
    --------
    >>> from .standard import attention as standard
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((1, 2, 100, 16)) for _ in range(3))
    >>> out, lse = attention(q, k, v, causal=True, blocks=Blocks(48, 40, 16, 24, 8))
    >>> bool(np.allclose(out, standard(q, k, v, causal=True)[0], rtol=1e-13, atol=1e-13))
    True
    """
    result = run(q, k, v, blocks=blocks, **options)  # type: ignore[arg-type]
    return result.out, result.lse


@np.errstate(over="ignore", invalid="ignore")  # inf and NaN go in and out as IEEE 754 says, without a warning
def run(
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
    blocks: Blocks | None = None,
    form: Form = NPU,
) -> Result:
    """Do what `attention` does, and count what moves between the buffers of `form`.

    Each query head is worked on by itself, as one core or thread block would: heads that share a key/value
    head go through a tile together here only to spare NumPy's time, and count once each.

    Returns
    -------
    Result
        The answer, and the counts over all sequences and query heads.

    Examples
    --------
    >>> x = np.ones((1, 1, 256, 32))
    >>> one = run(x, x, x, blocks=Blocks.unified(64, 64)).counts
    >>> two = run(x, x, x, blocks=Blocks(128, 256, 64, 64)).counts
    >>> one.handovers, two.handovers
    (48, 6)
    """
    x = check(
        q, k, v, causal=causal, window=window, mask=mask, alibi_slopes=alibi_slopes, scale=scale,
        softcap=softcap, sinks=sinks, kv_lengths=kv_lengths, q_offset=q_offset,
    )  # fmt: skip
    blocks = Blocks() if blocks is None else blocks
    B, Hq, Sq, D = x.q.shape
    Hkv, Dv = x.v.shape[1], x.v.shape[3]
    sinks = None if x.sinks is None else x.sinks.reshape(Hkv, x.group, 1)  # against m, (b, Hkv, G, rows)
    out, lse, counts = np.empty((B, Hq, Sq, Dv)), np.empty((B, Hq, Sq)), Counts()
    triangle = m_mask(blocks.tile_q + blocks.tile_k)
    for batch, n, offset in _alike(x):  # batch: a slice of sequences, b of them, that share length and offset
        heads = (batch.stop - batch.start) * Hq
        for rows in _cut(0, Sq, blocks.block_q):
            Q = _grouped(x, x.q[batch, :, rows]).astype(np.float64)  # (b, Hkv, G, rows, D)
            state = State.empty(Q.shape[:-1], Dv)
            at_work = False
            for cols in _cut(0, n, blocks.block_k):
                work = _Block(x, batch, rows, cols, offset, causal, window, blocks, form, counts, heads)
                if work.kind(rows, cols) is Tile.EMPTY:
                    continue
                if not at_work:  # Q stays at level 1 while all keys pass by
                    counts.move("Q", heads * (rows.stop - rows.start) * D, form.memory, form.level1)
                at_work = True
                S = work.scores(
                    Q, triangle
                )  # the Cube; the masks are the Vector's, one float64 score does both
                m, P = work.softmax(state.m, S)  # the Vector
                O = work.product(P, S)  # the Cube
                state = work.rescale(state, m, P, O)  # the Vector
            O, L = finish(state, sinks)  # (b, Hkv, G, rows, Dv), (b, Hkv, G, rows)
            counts.move("out", heads * (rows.stop - rows.start) * Dv, form.vector, form.memory)
            counts.move("lse", heads * (rows.stop - rows.start), form.vector, form.memory)
            out[batch, :, rows] = O.reshape(out[batch, :, rows].shape)  # (b, Hq, rows, Dv)
            lse[batch, :, rows] = L.reshape(lse[batch, :, rows].shape)  # (b, Hq, rows)
    return Result(out, lse, counts)


@dataclass(frozen=True, eq=False)
class _Block:
    """One level-1 block of all heads of a run of sequences, and its four steps."""

    x: Inputs
    batch: slice
    rows: slice
    cols: slice
    offset: int
    causal: bool
    window: Window
    blocks: Blocks
    form: Form
    counts: Counts
    heads: int

    def kind(self, rows: slice, cols: slice) -> Tile:
        return classify(
            (rows.start, rows.stop), (cols.start, cols.stop),
            causal=self.causal, window=self.window, kv_length=cols.stop, q_offset=self.offset,
        )  # fmt: skip

    def tiles(self) -> Iterator[tuple[slice, list[tuple[slice, Tile]]]]:
        """Yield each row of tiles, with its tiles that are not empty, if it has any."""
        for rows in _cut(self.rows.start, self.rows.stop, self.blocks.tile_q):
            cols = _cut(self.cols.start, self.cols.stop, self.blocks.tile_k)
            seen: list[tuple[slice, Tile]] = [
                (c, kind) for c in cols if (kind := self.kind(rows, c)) is not Tile.EMPTY
            ]
            if seen:
                yield rows, seen

    def seen(self) -> int:
        """Return the keys in tiles that some row of tiles reads: the others do not even reach level 1."""
        tiles = _cut(self.cols.start, self.cols.stop, self.blocks.tile_k)
        return sum(c.stop - c.start for c in tiles if self.kind(self.rows, c) is not Tile.EMPTY)

    def at(self, rows: slice) -> slice:
        """Return where rows of the problem are in this block."""
        return slice(rows.start - self.rows.start, rows.stop - self.rows.start)

    def across(self, cols: slice) -> slice:
        """Return where keys of the problem are in this block."""
        return slice(cols.start - self.cols.start, cols.stop - self.cols.start)

    def scores(self, Q: NDArray[np.float64], triangle: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return S of the block, (b, Hkv, G, rows, keys), -inf in tiles that are skipped."""
        x, form, move = self.x, self.form, self.counts.move
        D = Q.shape[-1]
        S = np.full((*Q.shape[:-1], self.cols.stop - self.cols.start), -np.inf)
        move("K", self.heads * self.seen() * D, form.memory, form.level1)
        self.counts.wait(form, "K", self.heads)
        for rows, tiles in self.tiles():
            tile_rows = rows.stop - rows.start
            move("Q", self.heads * tile_rows * D, form.level1, form.left)
            for cols, kind in tiles:
                keys = cols.stop - cols.start
                move("K", self.heads * keys * D, form.level1, form.right)
                move("S", self.heads * tile_rows * keys, form.sums, form.workspace)
                if x.mask is not None:
                    move("mask", self.heads * tile_rows * keys, form.memory, form.vector)
                S[..., self.at(rows), self.across(cols)] = scores(
                    Q[..., self.at(rows), :],
                    x.k[self.batch, :, None, cols].astype(np.float64),
                    scale=x.scale,
                    softcap=x.softcap,
                    alibi=None if x.slopes is None else _alibi(x, self.batch, rows, cols, self.offset),
                    mask=None if x.mask is None else _grouped(x, x.mask[self.batch, :, rows, cols]),
                    visible=None if kind is Tile.FULL else self.b_masks(rows, cols, triangle),
                )  # (b, Hkv, G, tile_q, tile_k)
        self.counts.wait(form, "S", self.heads)
        return S

    def b_masks(self, rows: slice, cols: slice, triangle: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the mask of a tile, (rows, keys), a window of the M-mask for each edge of the band."""
        left, right = band(self.causal, self.window)
        shape = rows.stop - rows.start, cols.stop - cols.start
        delta = self.offset + rows.start - cols.start
        mask = np.ones(shape, dtype=np.bool_)
        for edge, shift in (("right", right), ("left", None if left is None else -left - 1)):
            if shift is not None:
                self.counts.move("B-mask", self.heads * mask.size, self.form.memory, self.form.vector)
                window = b_mask(triangle, delta + shift, *shape)
                mask &= window if edge == "right" else ~window
        return mask

    def softmax(
        self, m_old: NDArray[np.float64], S: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the new maximum, (b, Hkv, G, rows), and P, (b, Hkv, G, rows, keys), piece by piece."""
        form, m, P = self.form, m_old.copy(), np.zeros_like(S)
        for rows, tiles in self.tiles():
            keys = sum(cols.stop - cols.start for cols, _ in tiles)
            for piece in _cut(rows.start, rows.stop, self.blocks.vector_rows):
                size = self.heads * (piece.stop - piece.start) * keys
                self.counts.move("S", size, form.workspace, form.vector)
                here = self.at(piece)
                m[..., here] = np.maximum(m_old[..., here], S[..., here, :].max(axis=-1))
                safe = np.where(np.isneginf(m[..., here]), 0.0, m[..., here])  # a row that sees nothing yet
                P[..., here, :] = np.exp(S[..., here, :] - safe[..., None])
                self.counts.move("P", size, form.vector, form.workspace)
        self.counts.wait(form, "P", self.heads)
        return m, P

    def product(self, P: NDArray[np.float64], S: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P V of the block, (b, Hkv, G, rows, Dv): each row of tiles sums over its keys in place."""
        form, move = self.form, self.counts.move
        Dv = self.x.v.shape[3]
        O = np.zeros((*P.shape[:-1], Dv))
        move("V", self.heads * self.seen() * Dv, form.memory, form.level1)
        self.counts.wait(form, "V", self.heads)
        via = (
            () if form.workspace == form.sums else (form.level1,)
        )  # registers to registers goes by no memory
        for rows, tiles in self.tiles():
            tile_rows = rows.stop - rows.start
            for cols, _ in tiles:
                keys = cols.stop - cols.start
                move("P", self.heads * tile_rows * keys, form.workspace, *via, form.left)
                move("V", self.heads * keys * Dv, form.level1, form.right)
                V = self.x.v[self.batch, :, None, cols].astype(np.float64)  # (b, Hkv, 1, tile_k, Dv)
                here = ..., self.at(rows), self.across(cols)
                O[..., self.at(rows), :] += weighted_sum(P[here], V, S[here])
            move("O", self.heads * tile_rows * Dv, form.sums, form.workspace)
        self.counts.wait(form, "O", self.heads)
        return O

    def rescale(
        self, state: State, m: NDArray[np.float64], P: NDArray[np.float64], O: NDArray[np.float64]
    ) -> State:
        """Return the state with the block's sums in it."""
        for rows, _ in self.tiles():
            size = self.heads * (rows.stop - rows.start) * O.shape[-1]
            self.counts.move("O", size, self.form.workspace, self.form.vector)
        alpha = np.exp(state.m - np.where(np.isneginf(m), 0.0, m))  # (b, Hkv, G, rows)
        return State(m, state.l * alpha + P.sum(axis=-1), state.O * alpha[..., None] + O)


def _cut(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield start..stop in slices of `size`, the last one shorter if need be."""
    for i in range(start, stop, size):
        yield slice(i, min(i + size, stop))
