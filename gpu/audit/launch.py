"""A prefill kernel run in the emulator: arrays in, arrays and what was executed out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import choose
from ..problem import address, fill
from .memory import Heap
from .processor import Cta, Program


@dataclass(frozen=True)
class _Place:
    """Where an array begins on the device, as CuPy's ``array.data``."""

    ptr: int


@dataclass(frozen=True)
class _Placed:
    """An array on the emulated device: of CuPy's attributes those that a launcher reads."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[np.generic]
    data: _Place


def _place(heap: Heap, array: NDArray[np.generic], padding: int) -> _Placed:
    """Copies an array in, with so many elements of NaN behind each row."""
    rows = np.full((*array.shape[:-1], array.shape[-1] + padding), np.nan, array.dtype)
    rows[..., : array.shape[-1]] = array
    return _Placed(array.shape, rows.strides, array.dtype, _Place(heap.place(rows)))


def _read(heap: Heap, placed: _Placed) -> NDArray[np.generic]:
    rows = np.empty((*placed.shape[:-1], placed.strides[-2] // placed.dtype.itemsize), placed.dtype)
    return heap.read(address(placed), rows)[..., : placed.shape[-1]]


@dataclass(frozen=True)
class Result:
    """What a launch left: out (B, H, Sq, Dv) float16, lse (B, H, Sq) float32, and its CTAs."""

    out: NDArray[np.float16]
    lse: NDArray[np.float32]
    ctas: list[Cta]


def attention(
    program: Program,
    chosen: choose.Configuration,
    q: NDArray[np.float16],
    k: NDArray[np.float16],
    v: NDArray[np.float16],
    *,
    window: tuple[int, int] = (-1, -1),
    q_offset: int | None = None,
    softcap: float = 0.0,
    padding: int = 0,
) -> Result:
    """Runs a prefill kernel as `gpu.attention` launches it.

    Parameters
    ----------
    program : Program
        The kernel.
    chosen : choose.Configuration
        How it is launched.
    q, k, v : arrays (B, H, S, D) of float16
        As `fastattention.attention` takes them.
    window : (int, int)
        Keys seen to the left and right of a query; -1 is unbounded, (-1, 0) is causal.
    q_offset : int, optional
        Position of the first query; by default the last query stands at the last key.
    softcap : float
        0: none. Anything else needs a kernel with FA_MODIFIED.
    padding : int
        Elements of NaN behind each row of q, k, v and out. Unless the row with them is a multiple of 8
        elements, the kernel must be one without FA_ALIGNED.
    """
    batch, heads, q_len, dim = q.shape
    outputs = (
        np.full((*q.shape[:3], v.shape[3]), np.nan, np.float16),
        np.full(q.shape[:3], np.nan, np.float32),
    )
    sizes = [x.nbytes // x.shape[-1] * (x.shape[-1] + padding) for x in (q, k, v, outputs[0])]
    heap = Heap(sum(sizes) + outputs[1].nbytes + 16384)
    on_device = [_place(heap, x, padding) for x in (q, k, v, outputs[0])]
    lse = _place(heap, outputs[1], 0)
    offsets = None if q_offset is None else heap.place(np.full(batch, q_offset, np.int64))
    problem = fill(
        on_device[0], on_device[1], on_device[2], on_device[3], lse,
        scale=dim**-0.5, softcap=softcap, window_left=window[0], window_right=window[1],
        mask=None, k_scales=None, v_scales=None, page_size=0, max_seqlen_q=0, max_seqlen_k=0, sequences=None,
        slopes_per_batch=False, small={} if offsets is None else {"q_offsets": offsets}, block_table_stride=0,
    )  # fmt: skip
    grid = choose.grid(chosen, batch=batch, q_heads=heads, kv_heads=k.shape[1], q_len=q_len)
    ctas = []
    for sequence, head, block in itertools.product(*map(range, reversed(grid))):
        place = (block, head, sequence)
        ctas.append(Cta(program, chosen.threads, chosen.shared, problem.tobytes(), heap, grid, place))
        ctas[-1].run()
    return Result(_read(heap, on_device[3]).astype(np.float16), _read(heap, lse).astype(np.float32), ctas)
