"""K and V the way a cache keeps them, int8 with scales or in pages, and the C interface called with them.

Fills `fa_problem` by hand, so that what is tested is what kernel authors of other languages call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from fastattention.cpu_kernels._native import ffi, lib

_CODES = {
    np.dtype(np.float32): lib.FA_FLOAT32,
    np.dtype(np.float16): lib.FA_FLOAT16,
    np.dtype(ml_dtypes.bfloat16): lib.FA_BFLOAT16,
    np.dtype(np.int8): lib.FA_INT8,
}


@dataclass(frozen=True)
class Stored:
    """Contiguous: k (B, Hkv, Sk, D), scales (B, Hkv, Sk). In pages, of which `table` (B, n) lists each
    sequence's: k (pages, Hkv, page_size, D), scales (pages, Hkv, page_size)."""

    k: np.ndarray
    v: np.ndarray
    k_scales: np.ndarray | None = None
    v_scales: np.ndarray | None = None
    table: np.ndarray | None = None


def quantized(k: np.ndarray, v: np.ndarray) -> Stored:
    """Integers from -127 to 127 and a float32 scale for each row; NaN for one that is not finite."""

    def rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = x.astype(np.float64)
        scales = (np.abs(x).max(-1, initial=0.0) / 127).astype(np.float32)
        poisoned = ~np.isfinite(scales)
        scales[poisoned] = np.nan
        divisor = np.where(poisoned | (scales == 0), 1.0, scales)[..., None]
        integers = np.where(poisoned[..., None], -128, np.rint(np.where(np.isfinite(x), x, 0.0) / divisor))
        return np.clip(integers, -128, 127).astype(np.int8), scales

    (k, k_scales), (v, v_scales) = rows(k), rows(v)
    return Stored(k, v, k_scales, v_scales)


def dequantized(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    """What contiguous int8 rows stand for, in float64."""
    assert stored.k_scales is not None
    assert stored.v_scales is not None
    k = stored.k.astype(np.float64) * stored.k_scales.astype(np.float64)[..., None]
    return k, stored.v.astype(np.float64) * stored.v_scales.astype(np.float64)[..., None]


def paged(stored: Stored, lengths: np.ndarray, page_size: int, rng: np.random.Generator) -> Stored:
    """Contiguous rows laid out in shuffled pages; every page and row that no sequence uses is poisoned."""
    pages = [-(-int(n) // page_size) for n in lengths]
    pool = rng.permutation(sum(pages) + 3).astype(np.int32)
    table = np.full((len(lengths), max([*pages, 1])), 2**30, dtype=np.int32)  # an entry nobody may follow
    used = 0
    for b, count in enumerate(pages):
        table[b, :count] = pool[used : used + count]
        used += count

    def spread(x: np.ndarray | None) -> np.ndarray | None:
        if x is None:
            return None
        poison = -128 if x.dtype == np.int8 else np.nan
        shape = (len(pool), x.shape[1], page_size, *x.shape[3:])
        out = np.full(shape, poison, dtype=x.dtype)
        for b, length in enumerate(lengths):
            for j in range(0, int(length), page_size):
                rows = x[b, :, j : min(j + page_size, int(length))]
                out[table[b, j // page_size], :, : rows.shape[1]] = rows
        return out

    k, v = spread(stored.k), spread(stored.v)
    assert k is not None
    assert v is not None
    return replace(
        stored, k=k, v=v, k_scales=spread(stored.k_scales), v_scales=spread(stored.v_scales), table=table
    )


def _strides(x: np.ndarray) -> tuple[int, int, int]:
    """Of the first three axes, in elements."""
    first, second, third = (step // x.itemsize for step in x.strides[:3])
    return first, second, third


def attend(
    q: np.ndarray, stored: Stored, options: dict[str, Any], *, isa: str, num_threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Call `fa_attention`; `options` are those of `fastattention.attention`. Return (out, lse)."""
    batch, q_heads, q_len, head_dim = q.shape
    out = np.empty((batch, q_heads, q_len, stored.v.shape[3]), dtype=q.dtype)
    lse = np.empty(q.shape[:3], dtype=np.float32)
    kept = []  # what the problem points to

    def address(kind: str, x: np.ndarray) -> Any:
        kept.append(x)
        return ffi.cast(kind, x.__array_interface__["data"][0])

    p = ffi.new("fa_problem *")
    p.batch, p.q_heads, p.kv_heads, p.q_len = batch, q_heads, stored.k.shape[1], q_len
    p.head_dim, p.v_dim = head_dim, stored.v.shape[3]
    p.q, p.k, p.v = (address("void *", x) for x in (q, stored.k, stored.v))
    p.out, p.lse = address("void *", out), address("float *", lse)
    p.q_strides, p.k_strides, p.v_strides = _strides(q), _strides(stored.k), _strides(stored.v)
    p.out_strides, p.lse_strides = _strides(out), _strides(lse)
    p.q_dtype, p.kv_dtype = _CODES[q.dtype], _CODES[stored.k.dtype]
    if stored.k_scales is not None and stored.v_scales is not None:
        p.k_scales, p.v_scales = address("float *", stored.k_scales), address("float *", stored.v_scales)
        p.k_scale_strides, p.v_scale_strides = _strides(stored.k_scales), _strides(stored.v_scales)

    lengths = options.get("kv_lengths")
    if stored.table is not None:
        p.block_table, p.page_size = address("int32_t *", stored.table), stored.k.shape[2]
        p.block_table_stride = stored.table.strides[0] // 4
        p.k_len = int(np.max(lengths, initial=0))
    else:
        p.k_len = stored.k.shape[2]
    if lengths is not None:
        p.kv_lengths = address("int64_t *", np.asarray(lengths, dtype=np.int64))
    if (offset := options.get("q_offset")) is not None:
        p.q_offsets = address("int64_t *", np.broadcast_to(np.int64(offset), (batch,)).copy())
    left, right = options.get("window") or (None, None)
    p.window_left = -1 if left is None else left
    p.window_right = -1 if right is None else right
    if options.get("causal"):
        p.window_right = 0  # a window's right side lets less through only if it is 0, too
    if (mask := options.get("mask")) is not None:
        mask = np.broadcast_to(mask, (batch, q_heads, q_len, mask.shape[-1]))
        p.mask_kind = lib.FA_MASK_BOOL if mask.dtype == np.bool_ else lib.FA_MASK_FLOAT32
        p.mask = address("void *", mask)
        p.mask_strides = tuple(
            0 if size == 1 else step // mask.itemsize
            for size, step in zip(mask.shape, mask.strides, strict=True)
        )
    if (slopes := options.get("alibi_slopes")) is not None:
        p.alibi_slopes = address("float *", slopes)
        p.alibi_batch_stride = slopes.shape[1] if slopes.ndim == 2 else 0
    if (sinks := options.get("sinks")) is not None:
        p.sinks = address("float *", sinks)
    scale = options.get("scale")
    p.scale = head_dim**-0.5 if scale is None else scale
    p.softcap = options.get("softcap") or 0.0
    names = [ffi.string(lib.fa_isa_name(code)).decode() for code in range(lib.FA_ISA_COUNT)]
    p.num_threads, p.isa = num_threads, names.index(isa)
    status = lib.fa_attention(p)
    assert status == lib.FA_OK, f"fa_attention: status {status}"
    return out, lse
