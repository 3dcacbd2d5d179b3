"""The only gate: what a caller passes becomes one `Problem`, or an error that names the argument.

Validation never computes, and a backend never validates again. Everything is checked before any work is done
and before `out` is touched. The common case, NumPy arrays and no options, passes through in a few
microseconds: checks run in a flat sequence, and options cost only those who use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arguments import (
    MAX_LENGTH,
    alibi_array,
    flag,
    float_option,
    key_lengths,
    mask_array,
    operand,
    output_array,
    query_offsets,
    sequence_starts,
    sink_array,
    usable,
    window_bounds,
)
from .arrays import BFLOAT16, from_numpy, to_array
from .config import check_threads, threads
from .device import check_place, check_tensors, empty, to_caller

__all__ = [
    "MAX_HEAD_DIM", "KeysValues", "Problem", "check_backend", "validate", "validate_cached",
    "validate_varlen",
]  # fmt: skip

Array = Any  # NumPy's, or on a device CuPy's

MAX_HEAD_DIM = 256
_INT64_MAX = 2**63 - 1

KERNEL_DTYPES: frozenset[np.dtype[Any]] = frozenset((np.dtype(np.float32), np.dtype(np.float16), BFLOAT16))
_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_SCALES = [0.0, *(dim**-0.5 for dim in range(1, MAX_HEAD_DIM + 1))]


@dataclass(slots=True, eq=False)
class Problem:
    """One attention problem, checked and normalised; its fields are what ``cpu_kernels.attention`` takes.

    Shapes are those of `attention`; where `cu_seqlens_q` is given, the packed ones of `attention_varlen`;
    where `block_table` is given, k and v are pools of pages, (pages, Hkv, page_size, D) and (..., Dv).
    """

    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array | None  # float32, or float64 with a float64 q; None where nobody asked for it
    scale: float
    softcap: float  # 0: none
    window_left: int  # -1: unbounded
    window_right: int  # -1: unbounded; causal is 0
    mask: Array | None  # (B, Hq, Sq, Sk), bool or floating
    alibi_slopes: Array | None
    sinks: Array | None
    kv_lengths: Array | None  # int64 (B,)
    q_offsets: Array | None  # int64 (B,); None: bottom-right aligned
    cu_seqlens_q: Array | None  # int64 (B + 1,)
    cu_seqlens_k: Array | None
    max_seqlen_q: int
    max_seqlen_k: int  # of packed or paged sequences
    num_threads: int
    kind: str  # of the caller's arrays
    caller_out: Any  # the caller's own `out`, or None
    k_scales: Array | None = None  # float32, k's shape without the last axis: of an int8 cache
    v_scales: Array | None = None
    block_table: Array | None = None  # int32 (B, pages of a sequence): of a paged cache
    page_size: int = 0

    def result(self, return_lse: bool) -> Any:
        """Return what the public functions return, of the caller's kind."""
        kind = self.kind
        out = self.caller_out
        convert = from_numpy if isinstance(self.out, np.ndarray) else to_caller
        if out is None:
            out = self.out if kind == "numpy" else convert(self.out, kind)
        return (out, convert(self.lse, kind)) if return_lse and self.lse is not None else out


@dataclass(slots=True, eq=False)
class KeysValues:
    """What a cache holds, as `validate_cached` takes it: its own arrays, which need no check."""

    k: Array  # (B, Hkv, longest, D), or a pool of pages (pages, Hkv, page_size, D)
    v: Array
    k_scales: Array | None
    v_scales: Array | None
    block_table: Array | None
    page_size: int  # 0: no pages
    kv_lengths: Array | None  # int64 (B,); None: all `longest`. Always given with pages
    batch: int
    longest: int


def check_backend(backend: Any) -> bool:
    """Raise unless this version has the backend; return whether it is the reference."""
    if isinstance(backend, str):  # an array would compare element by element
        if backend == "auto" or backend == "cpu":
            return False
        if backend == "reference":
            return True
        if backend == "gpu":
            return False
    raise ValueError(f"backend: expected 'auto', 'cpu', 'gpu' or 'reference', got {backend!r}")


def _check_dtype(name: str, dtype: np.dtype[Any], reference: bool) -> None:
    if not dtype.isnative:
        raise TypeError(f"{name}: byte-swapped arrays are not supported, got dtype {dtype.str!r}")
    if dtype == _FLOAT64 and not reference:
        raise TypeError(
            f"{name}: the kernels have no float64; pass backend='reference', or convert to float32"
        )
    if dtype not in KERNEL_DTYPES and dtype != _FLOAT64:
        raise TypeError(
            f"{name}: expected float32, float16, bfloat16 (or float64 on the reference), got {dtype}"
        )


def _check_dtypes(q: Array, k: Array, v: Array, reference: bool) -> None:
    """Raise unless the backend takes these dtypes together."""
    for name, array in (("q", q), ("k", k), ("v", v)):
        _check_dtype(name, array.dtype, reference)
    if k.dtype != v.dtype:
        raise TypeError(f"v: expected k's dtype {k.dtype}, got {v.dtype}")
    if q.dtype != k.dtype:
        raise TypeError(f"k: expected q's dtype {q.dtype}, got {k.dtype}")


def _check_cached_query(q: Array, held: KeysValues, reference: bool) -> None:
    """Raise unless the queries fit a cache."""
    dtype, kept = q.dtype, held.k.dtype
    if dtype not in KERNEL_DTYPES:
        _check_dtype("q", dtype, reference)
    fits = dtype in KERNEL_DTYPES if held.k_scales is not None else dtype in (kept, _FLOAT32)
    if not fits:
        expected = f"float32 or the cache's {kept}" if held.k_scales is None else "float32, float16, bfloat16"
        raise TypeError(f"q: expected {expected}, got {dtype}")
    kv_heads, head_dim = held.k.shape[1], held.k.shape[3]
    if q.ndim != 4 or q.shape[0] != held.batch or q.shape[3] != head_dim:
        expected = f"({held.batch}, Hq, Sq, {head_dim})"
        raise ValueError(f"q: expected shape (B, Hq, Sq, D) = {expected} to fit the cache, got {q.shape}")
    _check_sizes(q.shape[1], kv_heads, head_dim, held.v.shape[3], q.shape[2], held.longest, held.batch)


def _check_sizes(
    q_heads: int, kv_heads: int, head_dim: int, v_dim: int, q_len: int, k_len: int, batch: int
) -> None:
    if (q_heads % kv_heads if kv_heads else q_heads) != 0:
        raise ValueError(f"q: its number of heads ({q_heads}) must be a multiple of k's and v's ({kv_heads})")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"q: expected a head dimension D from 1 to {MAX_HEAD_DIM}, got {head_dim}")
    if not 1 <= v_dim <= MAX_HEAD_DIM:
        raise ValueError(f"v: expected a head dimension Dv from 1 to {MAX_HEAD_DIM}, got {v_dim}")
    if k_len > MAX_LENGTH:
        raise ValueError(f"k: expected at most 2**31 - 1 keys, got {k_len}")
    if q_len > MAX_LENGTH:
        raise ValueError(f"q: expected at most 2**31 - 1 queries, got {q_len}")
    # In bytes of the widest type, so that neither the kernels' products nor the size of `out` can overflow.
    # An empty axis counts as one: NumPy multiplies the others.
    rows = (batch or 1) * (q_heads or 1) * (q_len or 1)
    if 8 * rows * max(k_len, v_dim, head_dim) > _INT64_MAX:
        raise ValueError(
            f"q, k: sizes B = {batch}, Hq = {q_heads}, Sq = {q_len}, Sk = {k_len} "
            "multiply to more than int64 holds"
        )


def _check_padded_shapes(q: Array, k: Array, v: Array) -> None:
    for name, array, expected in (
        ("q", q, "(B, Hq, Sq, D)"), ("k", k, "(B, Hkv, Sk, D)"), ("v", v, "(B, Hkv, Sk, Dv)"),
    ):  # fmt: skip
        if array.ndim != 4:
            raise ValueError(f"{name}: expected 4 axes {expected}, got shape {array.shape}")
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k: expected q's batch size {q.shape[0]}, got shape {k.shape}")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k: expected q's head dimension {q.shape[3]}, got shape {k.shape}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v: expected (B, Hkv, Sk) of k = {k.shape[:3]}, got shape {v.shape}")
    batch, q_heads, q_len, head_dim = q.shape
    _, kv_heads, k_len, v_dim = v.shape
    _check_sizes(q_heads, kv_heads, head_dim, v_dim, q_len, k_len, batch)


def _check_packed_shapes(q: Array, k: Array, v: Array) -> None:
    for name, array, expected in (
        ("q", q, "(Tq, Hq, D)"),
        ("k", k, "(Tk, Hkv, D)"),
        ("v", v, "(Tk, Hkv, Dv)"),
    ):
        if array.ndim != 3:
            raise ValueError(f"{name}: expected 3 axes {expected}, got shape {array.shape}")
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"k: expected q's head dimension {q.shape[2]}, got shape {k.shape}")
    if v.shape[:2] != k.shape[:2]:
        raise ValueError(f"v: expected (Tk, Hkv) of k = {k.shape[:2]}, got shape {v.shape}")
    q_len, q_heads, head_dim = q.shape
    k_len, kv_heads, v_dim = v.shape
    _check_sizes(q_heads, kv_heads, head_dim, v_dim, q_len, k_len, 1)


def _tensors(q: Any, k: Any, v: Any) -> tuple[Array, Array, Array, str]:
    q, kind = to_array(q, "q")
    return q, operand(k, "k", kind), operand(v, "v", kind), kind


def validate(
    q: Any, k: Any, v: Any, causal: Any, window: Any, mask: Any, alibi_slopes: Any, scale: Any, softcap: Any,
    sinks: Any, kv_lengths: Any, q_offset: Any, return_lse: Any, out: Any, backend: Any, num_threads: Any,
) -> Problem:  # fmt: skip
    """Check the arguments of `attention` and return the problem they describe."""
    reference = check_backend(backend)
    if type(q) is type(k) is type(v) is np.ndarray:
        kind = "numpy"
    else:
        q, k, v, kind = _tensors(q, k, v)
    host = (kind == "numpy" and backend != "gpu") or check_place(backend, kind)
    dtype = q.dtype
    # The plain case costs one comparison and one look-up; every other goes through the full rules.
    if not (dtype == k.dtype == v.dtype and dtype in KERNEL_DTYPES):
        _check_dtypes(q, k, v, reference)
    _check_padded_shapes(q, k, v)
    if not host:
        check_tensors(q, k, v, kind)
    shape = (*q.shape[:3], v.shape[3])
    if out is None:
        destination = np.empty(shape, dtype) if host else empty(shape, dtype, kind, "out")
    else:  # before any option is replaced by a copy: `out` must not lie over what the caller passed
        inputs = (
            ("q", q), ("k", k), ("v", v), ("mask", mask), ("alibi_slopes", alibi_slopes), ("sinks", sinks),
            ("kv_lengths", kv_lengths), ("q_offset", q_offset),
        )  # fmt: skip
        destination = output_array(out, shape, dtype, kind, inputs)
    if kv_lengths is not None:
        kv_lengths = key_lengths(kv_lengths, shape[0], k.shape[2], kind)
    return _padded_problem(
        q, usable(k), usable(v), destination, k.shape[2], kv_lengths, kind, reference, causal, window, mask,
        alibi_slopes, scale, softcap, sinks, q_offset, return_lse, out, num_threads,
    )  # fmt: skip


def validate_cached(
    q: Any, held: KeysValues, causal: Any, window: Any, mask: Any, alibi_slopes: Any, scale: Any, softcap:
    Any, sinks: Any, q_offset: Any, return_lse: Any, out: Any, backend: Any, num_threads: Any,
) -> Problem:  # fmt: skip
    """Check the arguments of `KVCache.attend` and return the problem they describe.

    The cache's arrays are NumPy whatever q's kind is, or CuPy where it lies on a device, which is q's; their
    dtype may differ from q's.
    """
    reference = check_backend(backend)
    host = isinstance(held.k, np.ndarray)
    if host and backend == "gpu":
        raise ValueError(
            "backend: this KVCache keeps its keys and values in CPU memory, where 'cpu' and 'reference' "
            "work; KVCache(..., device='gpu') keeps them on the GPU"
        )
    q, kind = to_array(q, "q")
    if not host:
        check_place(backend, kind)
    _check_cached_query(q, held, reference)
    if not host:
        check_tensors(q, held.k, held.v, kind)
    shape = (*q.shape[:3], held.v.shape[3])
    if out is None:
        destination = np.empty(shape, q.dtype) if host else empty(shape, q.dtype, kind, "out")
    else:
        inputs = (
            ("q", q), ("k", held.k), ("v", held.v), ("mask", mask), ("alibi_slopes", alibi_slopes),
            ("sinks", sinks), ("q_offset", q_offset), ("k_scales", held.k_scales),
            ("v_scales", held.v_scales), ("block_table", held.block_table), ("kv_lengths", held.kv_lengths),
        )  # fmt: skip
        destination = output_array(out, shape, q.dtype, kind, inputs)
    problem = _padded_problem(
        q, held.k, held.v, destination, held.longest, held.kv_lengths, kind, reference, causal, window, mask,
        alibi_slopes, scale, softcap, sinks, q_offset, return_lse, out, num_threads,
    )  # fmt: skip
    problem.k_scales, problem.v_scales = held.k_scales, held.v_scales
    if held.block_table is not None:
        problem.block_table, problem.page_size = held.block_table, held.page_size
        problem.max_seqlen_k = held.longest
    return problem


def _padded_problem(
    q: Array, k: Array, v: Array, destination: Array, k_len: int, kv_lengths: Array | None, kind: str,
    reference: bool, causal: Any, window: Any, mask: Any, alibi_slopes: Any, scale: Any, softcap: Any, sinks:
    Any, q_offset: Any, return_lse: Any, out: Any, num_threads: Any,
) -> Problem:  # fmt: skip
    """Check the options that `attention` and `KVCache.attend` share; the tensors are checked already."""
    batch, q_heads, q_len, head_dim = q.shape
    causal = causal if causal is True or causal is False else flag(causal, "causal")
    return_lse = return_lse if return_lse is True or return_lse is False else flag(return_lse, "return_lse")
    if window is None:
        left, right = -1, 0 if causal else -1
    else:
        left, right = window_bounds(window, causal)
    scale = _SCALES[head_dim] if scale is None else float_option(scale, "scale")
    softcap = 0.0 if softcap is None else float_option(softcap, "softcap", positive=True)
    count = threads() if num_threads is None else check_threads(num_threads)
    if mask is not None:
        mask = mask_array(mask, (batch, q_heads, q_len, k_len), kind, float64=reference)
    if alibi_slopes is not None:
        alibi_slopes = alibi_array(alibi_slopes, batch, q_heads, kind, float64=reference)
    if sinks is not None:
        sinks = sink_array(sinks, q_heads, kind, float64=reference)
    q_offsets = None if q_offset is None else query_offsets(q_offset, batch, kind)

    lse = None
    if return_lse:
        shape, dtype = (batch, q_heads, q_len), _FLOAT64 if q.dtype == _FLOAT64 else _FLOAT32
        lse = np.empty(shape, dtype) if isinstance(q, np.ndarray) else empty(shape, dtype, kind, "lse")
    return Problem(
        usable(q), k, v, destination, lse, scale, softcap, left, right, mask, alibi_slopes, sinks, kv_lengths,
        q_offsets, None, None, 0, 0, count, kind, out,
    )  # fmt: skip


def validate_varlen(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, causal: Any, window: Any, alibi_slopes: Any,
    scale: Any, softcap: Any, sinks: Any, q_offset: Any, return_lse: Any, out: Any, backend: Any, num_threads:
    Any,
) -> Problem:  # fmt: skip
    """Check the arguments of `attention_varlen` and return the problem they describe."""
    reference = check_backend(backend)
    q, k, v, kind = _tensors(q, k, v)
    host = (kind == "numpy" and backend != "gpu") or check_place(backend, kind)
    dtype = q.dtype
    _check_dtypes(q, k, v, reference)
    _check_packed_shapes(q, k, v)
    rows, q_heads, head_dim = q.shape
    cu_q, longest_q = sequence_starts(cu_seqlens_q, "cu_seqlens_q", "Tq", rows, kind)
    cu_k, longest_k = sequence_starts(cu_seqlens_k, "cu_seqlens_k", "Tk", k.shape[0], kind)
    if cu_k.shape != cu_q.shape:
        raise ValueError(
            f"cu_seqlens_k: expected as many entries as cu_seqlens_q {cu_q.shape}, got {cu_k.shape}"
        )
    batch = cu_q.shape[0] - 1
    if not host:
        check_tensors(q, k, v, kind)
    shape = (rows, q_heads, v.shape[2])
    if out is None:
        destination = np.empty(shape, dtype) if host else empty(shape, dtype, kind, "out")
    else:
        inputs = (
            ("q", q), ("k", k), ("v", v), ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k),
            ("alibi_slopes", alibi_slopes), ("sinks", sinks), ("q_offset", q_offset),
        )  # fmt: skip
        destination = output_array(out, shape, dtype, kind, inputs)

    causal = flag(causal, "causal")
    return_lse = flag(return_lse, "return_lse")
    left, right = (-1, 0 if causal else -1) if window is None else window_bounds(window, causal)
    scale = _SCALES[head_dim] if scale is None else float_option(scale, "scale")
    softcap = 0.0 if softcap is None else float_option(softcap, "softcap", positive=True)
    count = threads() if num_threads is None else check_threads(num_threads)
    if alibi_slopes is not None:
        alibi_slopes = alibi_array(alibi_slopes, batch, q_heads, kind, float64=reference)
    if sinks is not None:
        sinks = sink_array(sinks, q_heads, kind, float64=reference)
    q_offsets = None if q_offset is None else query_offsets(q_offset, batch, kind)

    lse = None
    if return_lse:
        lse_dtype = _FLOAT64 if dtype == _FLOAT64 else _FLOAT32
        lse = np.empty(shape[:2], lse_dtype) if host else empty(shape[:2], lse_dtype, kind, "lse")
    return Problem(
        usable(q), usable(k), usable(v), destination, lse, scale, softcap, left, right, None, alibi_slopes,
        sinks, None, q_offsets, cu_q, cu_k, longest_q, longest_k, count, kind, out,
    )  # fmt: skip
