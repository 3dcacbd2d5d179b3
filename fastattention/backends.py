"""What computes a checked problem: the CPU kernels, or the reference. The name says what runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cpu_kernels
from .config import get_isa
from .reference import tiling
from .validate import Problem

__all__ = ["run"]


def run(problem: Problem, backend: str) -> None:
    """Fill ``problem.out`` and, where it is there, ``problem.lse``.

    Parameters
    ----------
    problem : Problem
        From `validate`; not checked again.
    backend : str
        "auto" or "cpu": the CPU kernels, in the instruction set of `get_isa`. "reference":
        ``reference.tiling`` in float64, rounded to q's dtype at the end.

    Raises
    ------
    ValueError
        When ``FASTATTENTION_ISA`` names an instruction set that is not available.
    MemoryError
        When the kernels' workspace cannot be allocated.
    """
    # No query, or no key at all: the definition gives 0 and -inf, and no kernel needs to know of empty
    # arrays.
    if problem.out.size == 0 or problem.k.size == 0:
        problem.out.fill(0)
        if problem.lse is not None:
            problem.lse.fill(-np.inf)
    elif backend == "reference":
        _run_reference(problem)
    else:
        _run_cpu(problem)


def _run_cpu(p: Problem) -> None:
    cpu_kernels.attention(
        p.q, p.k, p.v, p.out, p.lse, scale=p.scale, softcap=p.softcap, window_left=p.window_left,
        window_right=p.window_right, mask=p.mask, alibi_slopes=p.alibi_slopes, sinks=p.sinks,
        kv_lengths=p.kv_lengths, q_offsets=p.q_offsets, cu_seqlens_q=p.cu_seqlens_q,
        cu_seqlens_k=p.cu_seqlens_k, max_seqlen_q=p.max_seqlen_q, max_seqlen_k=p.max_seqlen_k,
        num_threads=p.num_threads, isa=get_isa(),
    )  # fmt: skip


def _run_reference(p: Problem) -> None:
    options: dict[str, Any] = {
        "window": (p.window_left, p.window_right),
        "scale": p.scale,
        "softcap": p.softcap or None,
        "sinks": p.sinks,
    }
    if p.cu_seqlens_q is None or p.cu_seqlens_k is None:
        out, lse = tiling.attention(
            p.q, p.k, p.v, mask=p.mask, alibi_slopes=p.alibi_slopes, kv_lengths=p.kv_lengths,
            q_offset=p.q_offsets, **options,
        )  # fmt: skip
        p.out[...] = out
        if p.lse is not None:
            p.lse[...] = lse
        return
    for b in range(len(p.cu_seqlens_q) - 1):
        rows = slice(p.cu_seqlens_q[b], p.cu_seqlens_q[b + 1])
        keys = slice(p.cu_seqlens_k[b], p.cu_seqlens_k[b + 1])
        slopes = p.alibi_slopes if p.alibi_slopes is None or p.alibi_slopes.ndim == 1 else p.alibi_slopes[b]
        # (S, H, D) -> (1, H, S, D): each sequence is a batch of one.
        out, lse = tiling.attention(
            p.q[rows].swapaxes(0, 1)[None], p.k[keys].swapaxes(0, 1)[None], p.v[keys].swapaxes(0, 1)[None],
            alibi_slopes=slopes, q_offset=None if p.q_offsets is None else int(p.q_offsets[b]), **options,
        )  # fmt: skip
        p.out[rows] = out[0].swapaxes(0, 1)
        if p.lse is not None:
            p.lse[rows] = lse[0].swapaxes(0, 1)
