"""Attention as a CTA of warps computes it, lane by lane: the dataflow of the tensor-core kernels.

A CTA takes the query rows of its warps through tiles of keys with online softmax (`..online_softmax`). Tiles
without a visible pair are skipped, tiles with visible pairs only do no work for the mask, and only the others
look at positions (`..visibility`). All that passes between lanes is written out: copies to shared memory,
loads of operands, matrix instructions, shuffles; and all of it is counted.

Numbers are the kernel's: float16 operands, float32 sums, softmax in powers of two, weights rounded to
float16 for the product with V but summed unrounded, one division at the end. Scores are scaled before their
maximum is taken, which is right for any scale; a kernel may scale within the exponential as long as the scale
is positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..visibility import Tile, Window, classify, intervals
from .atoms import Atom, stored
from .kernel import Kernel
from .quad_pairs import QuadPairs
from .shared_layouts import HALVES, SharedTile
from .shared_memory import Counts, SharedMemory
from .warp import Warp

LOG2E = np.float32(math.log2(math.e))
LN2 = np.float32(math.log(2.0))


@dataclass(frozen=True, eq=False)
class Result:
    """What comes out.

    Attributes
    ----------
    out : ndarray of float16
        (Sq, Dv).
    lse : ndarray of float32
        (Sq,).
    counts : Counts
        What it took, all CTAs together.
    """

    out: NDArray[np.float16]
    lse: NDArray[np.float32]
    counts: Counts


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    kernel: Kernel | None = None,
    causal: bool = False,
    window: Window = None,
    scale: float | None = None,
    kv_length: int | None = None,
    q_offset: int | None = None,
) -> Result:
    """Compute the attention of one head. Several heads, sharing keys or not, are the caller's loop.

    Parameters
    ----------
    q, k, v : ndarray of float16
        (Sq, D), (Sk, D), (Sk, Dv).
    kernel : Kernel, optional
        Volta's with quad-pairs, four warps and 64 keys by default.
    causal, window, scale, kv_length, q_offset
        As in `standard.attention`, for one sequence.

    Raises
    ------
    ValueError
        For other shapes or types.

    Notes
    -----
    Keys from `kv_length` on are not read. What is hidden before them takes part with a weight of 0, as in the
    kernels: an infinity there becomes a NaN.

    Examples
    --------
    >>> from ..standard import attention as standard
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((n, 16)).astype(np.float16) for n in (20, 50, 50))
    >>> result = attention(q, k, v, kernel=Kernel(QuadPairs(), warps=1, keys=32), causal=True)
    >>> out, lse = standard(q[None, None], k[None, None], v[None, None], causal=True)
    >>> bool(np.allclose(result.out, out[0, 0], atol=2e-3))
    True
    >>> result.counts.mma, result.counts.wavefronts() == result.counts.ideal()  # no bank conflict
    (64, True)
    """
    kernel = Kernel(QuadPairs()) if kernel is None else kernel
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 2 or x.dtype != np.float16:
            raise ValueError(f"{name} must be float16 of two axes, got {x.dtype} of shape {x.shape}")
    if k.shape[1] != q.shape[1] or k.shape[0] != v.shape[0]:
        raise ValueError(f"q, k and v do not fit together: {q.shape}, {k.shape}, {v.shape}")
    n = k.shape[0] if kv_length is None else kv_length
    if not 0 <= n <= k.shape[0]:
        raise ValueError(f"kv_length must lie in 0..{k.shape[0]}, got {n}")
    offset = n - q.shape[0] if q_offset is None else q_offset
    factor = np.float32(1.0 / math.sqrt(q.shape[1]) if scale is None else scale) * LOG2E
    out = np.empty((q.shape[0], v.shape[1]), np.float16)
    lse = np.empty(q.shape[0], np.float32)
    counts = Counts()
    for first in range(0, q.shape[0], kernel.rows):
        past = min(first + kernel.rows, q.shape[0])
        _Cta(kernel, q[first:past], k[:n], v[:n], counts, causal, window, factor, offset + first).run(
            out[first:past], lse[first:past]
        )
    return Result(out, lse, counts)


class _Cta:
    """One CTA: its rows of q and all keys that count."""

    def __init__(
        self, kernel: Kernel, q: np.ndarray, k: np.ndarray, v: np.ndarray, counts: Counts,
        causal: bool, window: Window, factor: np.float32, q_offset: int,
    ) -> None:  # fmt: skip
        self.kernel, self.atom, self.q, self.k, self.v = kernel, kernel.atom, q, k, v
        self.factor, self.q_offset = factor, q_offset
        self.causal, self.window = causal, window
        self.tiles = kernel.shared_tiles(q.shape[1], v.shape[1])
        shared = SharedMemory(max(tile.base + tile.bytes for tile in self.tiles.values()), counts)
        self.warps = [Warp(shared) for _ in range(kernel.warps)]
        ends = intervals(kernel.rows, len(k), causal=causal, window=window, q_offset=q_offset)
        self.first, self.last = ends  # of each row's visible keys

    def run(self, out: NDArray[np.float16], lse: NDArray[np.float32]) -> None:
        atom, keys = self.atom, self.kernel.keys
        states = [_State(atom, self.tiles["V"]) for _ in self.warps]
        self.copy("Q", self.q)
        for key in range(0, len(self.k), keys):
            kinds = [self.kind(warp, key) for warp in range(len(self.warps))]
            if all(kind is Tile.EMPTY for kind in kinds):
                continue
            self.copy("K", self.k[key : key + keys])
            self.copy("V", self.v[key : key + keys])
            for index, (warp, state, kind) in enumerate(zip(self.warps, states, kinds, strict=True)):
                if kind is Tile.EMPTY:
                    continue
                rows = index * atom.warp_rows
                s = atom.scores(warp, self.tiles["Q"], self.tiles["K"], rows) * self.factor
                if kind is Tile.PARTIAL:
                    s = self.hide(s, rows, key)
                weights = state.update(warp, atom, s)
                state.O = atom.output(warp, state.O, weights, self.tiles["V"], self.tiles.get(f"P{index}"))
        for index, (warp, state) in enumerate(zip(self.warps, states, strict=True)):
            state.finish(warp, atom, out, lse, index * atom.warp_rows)

    def kind(self, warp: int, key: int) -> Tile:
        """Say what the warp's rows see of a tile of keys."""
        first = warp * self.atom.warp_rows
        rows = (first, min(first + self.atom.warp_rows, len(self.q)))
        columns = (key, key + self.kernel.keys)
        return classify(
            rows, columns,
            causal=self.causal, window=self.window, kv_length=len(self.k), q_offset=self.q_offset,
        )  # fmt: skip

    def copy(self, name: str, rows: np.ndarray) -> None:
        """Copy rows to a tile, 16 bytes a lane; what there is not becomes zeros."""
        tile = self.tiles[name]
        whole = np.zeros((tile.rows, tile.width), np.float16)
        whole[: rows.shape[0], : rows.shape[1]] = rows
        chunks = whole.reshape(tile.rows, tile.chunks, HALVES)
        for place, active in stored(tile.rows, tile.chunks):
            address = tile.address(place.row, place.chunk)
            self.warps[0].shared.store(name, address, chunks[place.row, place.chunk], active)

    def hide(self, s: np.ndarray, first_row: int, key: int) -> np.ndarray:
        """Put -inf where a query does not see a key."""
        row = (first_row + self.atom.rows())[:, :, None, :]  # (32, tiles, 1, registers)
        column = (key + self.atom.score_columns(s.shape[2]))[:, None]  # (32, 1, blocks, registers)
        seen = (self.first[row] <= column) & (column <= self.last[row])
        return np.where(seen, s, np.float32(-np.inf))


class _State:
    """m, l and O of a warp's rows as its lanes hold them.

    m and l are (32, tiles, 2), two rows of each tile a lane. All lanes of a row have the same m; of l each
    has the part of its own columns, until the end.
    """

    def __init__(self, atom: Atom, v: SharedTile) -> None:
        self.m = np.full((32, atom.tiles, 2), -np.inf, np.float32)
        self.l = np.zeros((32, atom.tiles, 2), np.float32)
        self.O = np.zeros((32, atom.tiles, v.width // atom.block, atom.registers), np.float32)
        self.slot = np.arange(atom.registers) >> 1 & 1  # which of a lane's two rows a register belongs to

    def update(self, warp: Warp, atom: Atom, s: np.ndarray) -> np.ndarray:
        """Take scores in, rescale l and O, return weights: `online_softmax.update` in powers of two."""
        m = np.stack([s[..., self.slot == r].max(axis=(2, 3)) for r in (0, 1)], axis=-1)
        m = np.maximum(self.m, m)
        for mask in atom.row_masks:
            m = np.maximum(m, warp.shfl_xor(m, mask))
        reference = np.where(np.isneginf(m), np.float32(0), m)  # -inf less -inf would be NaN
        alpha = np.exp2(self.m - reference)
        weights = np.exp2(s - reference[:, :, None, self.slot])
        sums = [weights[..., self.slot == r].sum(axis=(2, 3)) for r in (0, 1)]
        self.m, self.l = m, self.l * alpha + np.stack(sums, axis=-1)
        self.O = self.O * alpha[:, :, None, self.slot]
        return np.asarray(weights)

    def finish(
        self, warp: Warp, atom: Atom, out: NDArray[np.float16],
        lse: NDArray[np.float32], first_row: int,
    ) -> None:  # fmt: skip
        """Divide and store, rows and columns that exist."""
        l = self.l
        for mask in atom.row_masks:
            l = l + warp.shfl_xor(l, mask)
        inverse = np.divide(1, l, out=np.zeros_like(l), where=l > 0)  # no key: out is 0
        with np.errstate(divide="ignore"):
            log = np.where(l > 0, self.m + np.log2(l), -np.inf) * LN2
        rows = first_row + atom.rows()  # (32, tiles, registers)
        columns = atom.output_columns(self.O.shape[2])  # (32, blocks, registers)
        row, column = np.broadcast_arrays(rows[:, :, None], columns[:, None])
        there = (row < out.shape[0]) & (column < out.shape[1])
        out[row[there], column[there]] = (self.O * inverse[:, :, None, self.slot])[there]
        row_of_l = rows[:, :, ::2][:, :, :2]  # registers 0 and 2 begin the two rows
        there = row_of_l < out.shape[0]
        lse[row_of_l[there]] = log[there]
