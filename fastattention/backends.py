"""What computes a checked problem: the kernels of CPU or GPU, or the reference. The name says what runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cpu_kernels, gpu
from .config import get_isa
from .reference import paged, quantize, tiling
from .validate import Array, Problem

__all__ = ["nothing_to_compute", "plan", "plan_on_device", "run"]


def nothing_to_compute(p: Problem) -> bool:
    """Whether there is no query, or no key at all: no kernel needs to know of empty arrays."""
    return p.out.size == 0 or p.k.size == 0 or (p.block_table is not None and p.max_seqlen_k == 0)


def run(problem: Problem, backend: str) -> None:
    """Fill ``problem.out`` and, where it is there, ``problem.lse``.

    Parameters
    ----------
    problem : Problem
        From `validate`; not checked again.
    backend : str
        "auto" or "cpu": the CPU kernels, in the instruction set of `get_isa`. "auto" or "gpu": the GPU's,
        where the arrays lie there. "reference": ``reference.tiling`` in float64, rounded to q's dtype at the
        end.

    Raises
    ------
    ValueError
        When ``FASTATTENTION_ISA`` names an instruction set that is not available.
    RuntimeError
        When a GPU kernel cannot be compiled.
    MemoryError
        When the kernels' workspace cannot be allocated.
    """
    if nothing_to_compute(problem):  # the definition gives 0 and -inf
        problem.out.fill(0)
        if problem.lse is not None:
            problem.lse.fill(-np.inf)
    elif backend == "reference":
        _run_reference(problem)
    elif isinstance(problem.q, np.ndarray):
        _run_cpu(problem)
    else:
        gpu.attention(*_tensors(problem), **_arguments(problem))


def plan(problem: Problem) -> dict[str, Any]:
    """Return what the CPU kernels would do with a problem: ``cpu_kernels.explain``."""
    return cpu_kernels.explain(*_tensors(problem), **_options(problem))


def plan_on_device(problem: Problem) -> gpu.Explained:
    """Return what the GPU's kernels would do with a problem: ``gpu.explain``."""
    return gpu.explain(*_tensors(problem), **_arguments(problem))


def _run_cpu(problem: Problem) -> None:
    cpu_kernels.attention(*_tensors(problem), **_options(problem))


def _tensors(p: Problem) -> tuple[Any, ...]:
    return p.q, p.k, p.v, p.out, p.lse


def _options(p: Problem) -> dict[str, Any]:
    """Return a problem as the keyword arguments of ``cpu_kernels.attention``."""
    options = _arguments(p)
    options["num_threads"], options["isa"] = p.num_threads, get_isa()
    return options


def _arguments(p: Problem) -> dict[str, Any]:
    """Return what the kernels of all machines take by keyword; most calls have few."""
    options = {
        "scale": p.scale, "softcap": p.softcap, "window_left": p.window_left, "window_right": p.window_right,
        "mask": p.mask, "alibi_slopes": p.alibi_slopes, "sinks": p.sinks, "kv_lengths": p.kv_lengths,
        "q_offsets": p.q_offsets,
    }  # fmt: skip
    if p.cu_seqlens_q is not None:
        options.update(
            cu_seqlens_q=p.cu_seqlens_q, cu_seqlens_k=p.cu_seqlens_k, max_seqlen_q=p.max_seqlen_q,
            max_seqlen_k=p.max_seqlen_k,
        )  # fmt: skip
    if p.k_scales is not None:
        options.update(k_scales=p.k_scales, v_scales=p.v_scales)
    if p.block_table is not None:
        options.update(block_table=p.block_table, page_size=p.page_size, max_seqlen_k=p.max_seqlen_k)
    return options


def _run_reference(p: Problem) -> None:
    options: dict[str, Any] = {
        "window": (p.window_left, p.window_right),
        "scale": p.scale,
        "softcap": p.softcap or None,
        "sinks": p.sinks,
    }
    if p.cu_seqlens_q is None or p.cu_seqlens_k is None:
        k, v = _rows(p, p.k, p.k_scales), _rows(p, p.v, p.v_scales)
        out, lse = tiling.attention(
            p.q, k, v, mask=p.mask, alibi_slopes=p.alibi_slopes, kv_lengths=p.kv_lengths,
            q_offset=p.q_offsets, **options,
        )  # fmt: skip
        _store(p.out, out)
        if p.lse is not None:
            _store(p.lse, lse)
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
        _store(p.out[rows], out[0].swapaxes(0, 1))
        if p.lse is not None:
            _store(p.lse[rows], lse[0].swapaxes(0, 1))


def _store(target: Array, values: Array) -> None:
    """Round float64 to the type of the result; what is too large for it is infinite, as the kernels' is."""
    with np.errstate(over="ignore"):
        target[...] = values


def _rows(p: Problem, rows: Array, scales: Array | None) -> Array:
    """Return keys or values as the reference takes them: (B, Hkv, Sk, D), laid end to end and dequantised."""
    if p.block_table is None or p.kv_lengths is None:
        return rows if scales is None else quantize.dequantize(rows, scales)
    padded = np.zeros((len(p.kv_lengths), rows.shape[1], p.max_seqlen_k, rows.shape[3]))
    for b, length in enumerate(p.kv_lengths.tolist()):
        own = paged.gather(rows, p.block_table[b], length)
        if scales is not None:
            own = quantize.dequantize(own, paged.gather(scales, p.block_table[b], length))
        padded[b, :, :length] = own
    return padded
