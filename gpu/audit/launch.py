"""A prefill kernel run in the emulator: arrays in, arrays and what was executed out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .memory import Heap
from .processor import Cta, Program

_STRIDES = ("i8", 3)
# Problem of kernels/problem.cuh, field by field; its size is asserted against the kernel's parameter space.
PROBLEM = np.dtype(
    [
        *((name, "i8") for name in ("batch", "q_heads", "kv_heads", "q_len", "k_len", "head_dim", "v_dim")),
        *((name, "u8") for name in ("q", "k", "v", "out", "lse")),
        *((f"{name}_strides", *_STRIDES) for name in ("q", "k", "v", "out", "lse")),
        ("k_scales", "u8"),
        ("v_scales", "u8"),
        ("k_scale_strides", *_STRIDES),
        ("v_scale_strides", *_STRIDES),
        *((name, "i8") for name in ("block_table", "block_table_stride", "page_size")),
        *((name, "u8") for name in ("cu_seqlens_q", "cu_seqlens_k", "kv_lengths", "q_offsets")),
        ("window_left", "i8"),
        ("window_right", "i8"),
        ("mask", "u8"),
        ("mask_strides", "i8", 4),
        ("mask_kind", "i8"),
        ("alibi_slopes", "u8"),
        ("alibi_batch_stride", "i8"),
        ("sinks", "u8"),
        ("parts", "u8"),
        ("splits", "i8"),
        ("key_split", "i8"),
        ("scale", "f4"),
        ("softcap", "f4"),
    ]
)


@dataclass(frozen=True)
class Result:
    """What a launch left: out (B, H, Sq, Dv) float16, lse (B, H, Sq) float32, and its CTAs."""

    out: NDArray[np.float16]
    lse: NDArray[np.float32]
    ctas: list[Cta]


def attention(
    program: Program,
    q: NDArray[np.float16],
    k: NDArray[np.float16],
    v: NDArray[np.float16],
    *,
    rows: int,
    threads: int,
    shared_bytes: int,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Result:
    """Runs a kernel of ``attention_entry.cuh``.

    Parameters
    ----------
    program : Program
        The kernel.
    q, k, v : arrays (B, H, S, D) of float16
        As `fastattention.attention` takes them; contiguous.
    rows, threads, shared_bytes : int
        Query rows and threads of a CTA, and its dynamic shared memory.
    window : (int, int)
        Keys seen to the left and right of a query; -1 is unbounded, (-1, 0) is causal.
    softcap : float
        0: none. Anything else needs a kernel with FA_MODIFIED.
    """
    batch, heads, q_len, dim = q.shape
    out = np.full((*q.shape[:3], v.shape[3]), np.nan, np.float16)
    lse = np.full(q.shape[:3], np.nan, np.float32)
    heap = Heap(sum(x.nbytes + 2048 for x in (q, k, v, out, lse)) + 4096)
    problem = np.zeros(1, PROBLEM)
    p = problem[0]
    for name, size in zip(
        ("batch", "q_heads", "kv_heads", "q_len", "k_len", "head_dim", "v_dim"),
        (batch, heads, k.shape[1], q_len, k.shape[2], dim, v.shape[3]),
        strict=True,
    ):
        p[name] = size
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)):
        p[name] = heap.place(x)
        p[f"{name}_strides"] = [n // x.itemsize for n in x.strides[:3]]
    p["window_left"], p["window_right"] = window
    p["splits"] = 1
    p["scale"], p["softcap"] = dim**-0.5, softcap
    grid = (-(-q_len // rows), heads, batch)
    ctas = []
    for sequence, head, block in itertools.product(*map(range, reversed(grid))):
        place = (block, head, sequence)
        ctas.append(Cta(program, threads, shared_bytes, problem.tobytes(), heap, grid, place))
        ctas[-1].run()
    read_out, read_lse = heap.read(int(p["out"]), out), heap.read(int(p["lse"]), lse)
    return Result(read_out.astype(np.float16), read_lse.astype(np.float32), ctas)
