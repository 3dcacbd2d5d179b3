"""The CPU kernels as Python sees them: NumPy arrays in, NumPy arrays filled.

A thin binding of ``fastattention.h``. It checks nothing: `fastattention.attention` validates, and is what
people call. Kernel authors who measure one call with no validation around it find it here.
"""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np

# Between two parallel regions libgomp's threads spin by default, for milliseconds. So do those of NumPy's
# BLAS; a program that uses both in turn on all cores, as a language model does, then has them drive each
# other off the cores. Threads that sleep at once wake too late for short calls. So they spin for some tens of
# microseconds, then sleep. libgomp reads its environment once, when it is loaded, so asking leaves no trace;
# a choice of the user's stands.
_SPINS = "GOMP_SPINCOUNT"
_ask = not {_SPINS, "OMP_WAIT_POLICY"} & os.environ.keys()
if _ask:
    os.environ[_SPINS] = "5000"
try:
    from ._native import ffi, lib
finally:
    if _ask:
        del os.environ[_SPINS]

__all__ = ["ISAS", "attention", "available_isas", "cache_bytes", "compiler", "default_isa", "max_threads"]

#: Instruction sets this library has kernels for, slowest first.
ISAS: tuple[str, ...] = tuple(ffi.string(lib.fa_isa_name(i)).decode() for i in range(lib.FA_ISA_COUNT))

_ISA_CODE = {name: code for code, name in enumerate(ISAS)}
_DTYPE_CODE = {
    np.dtype(np.float32): lib.FA_FLOAT32,
    np.dtype(np.float16): lib.FA_FLOAT16,
    np.dtype(ml_dtypes.bfloat16): lib.FA_BFLOAT16,
}
_NULL = ffi.NULL


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this build has and this machine can run, slowest first."""
    return tuple(name for name, code in _ISA_CODE.items() if lib.fa_isa_available(code))


def default_isa() -> str:
    """Return the instruction set that is fastest on this machine, of those available."""
    return ISAS[lib.fa_isa_default()]


def max_threads() -> int:
    """Return how many threads OpenMP would start by itself (OMP_NUM_THREADS and affinity counted in)."""
    return int(lib.fa_max_threads())


def compiler() -> str:
    """Return the compiler the kernels were built with."""
    text: str = ffi.string(lib.fa_compiler()).decode()
    return text


def cache_bytes() -> tuple[int, int, int]:
    """Return the sizes in bytes of the L1 data, L2 and L3 caches; 0 where the system does not say."""
    return (int(lib.fa_cache_bytes(1)), int(lib.fa_cache_bytes(2)), int(lib.fa_cache_bytes(3)))


def _address(array: np.ndarray | None) -> Any:
    return _NULL if array is None else ffi.cast("void *", array.__array_interface__["data"][0])


def _pointer(ctype: str, array: np.ndarray | None) -> Any:
    return _NULL if array is None else ffi.cast(ctype, array.__array_interface__["data"][0])


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    window_left: int = -1,
    window_right: int = -1,
    mask: np.ndarray | None = None,
    alibi_slopes: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
    kv_lengths: np.ndarray | None = None,
    q_offsets: np.ndarray | None = None,
    cu_seqlens_q: np.ndarray | None = None,
    cu_seqlens_k: np.ndarray | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    num_threads: int = 1,
    isa: str = "baseline",
) -> None:
    """Run one attention problem; fill `out` and, when given, `lse`.

    Parameters
    ----------
    q, k, v : ndarray
        (B, Hq, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv); or, with `cu_seqlens_q` and `cu_seqlens_k`, packed
        (Tq, Hq, D), (Tk, Hkv, D), (Tk, Hkv, Dv). float32, float16 or bfloat16; k and v share one dtype,
        which may differ from q's. Last axis contiguous, other strides free.
    out : ndarray
        (B, Hq, Sq, Dv) or (Tq, Hq, Dv), of q's dtype. Must not overlap the inputs.
    lse : ndarray, optional
        float32 (B, Hq, Sq) or (Tq, Hq): natural log of the softmax denominator, -inf where no key is visible.
    scale, softcap : float
        Multiplier of the scores; softcap 0 means none.
    window_left, window_right : int
        Keys visible before and after a query's position; -1 is unbounded, causal is ``window_right=0``.
    mask : ndarray, optional
        bool or float32, four axes (B, Hq, Sq, Sk); broadcast axes have stride 0.
    alibi_slopes : ndarray, optional
        float32 (Hq,) or (B, Hq), C-contiguous.
    sinks : ndarray, optional
        float32 (Hq,).
    kv_lengths, q_offsets : ndarray, optional
        int64 (B,). Without `q_offsets`, queries stand at the end of the keys (bottom-right aligned).
    cu_seqlens_q, cu_seqlens_k : ndarray, optional
        int64 (B + 1,): where each packed sequence starts.
    max_seqlen_q, max_seqlen_k : int
        Longest sequence, when packed.
    num_threads : int
        OpenMP threads to use, at least 1.
    isa : str
        One of `available_isas`.

    Raises
    ------
    MemoryError
        When the workspace (under 4 MiB a thread) cannot be allocated; `out` is then untouched.
    """
    p = ffi.new("fa_problem *")
    size = q.itemsize
    kv_size = k.itemsize
    if cu_seqlens_q is None:
        p.batch, p.q_heads, p.q_len, p.head_dim = q.shape
        p.kv_heads, p.k_len, p.v_dim = v.shape[1:]
        sq, sk, sv, so = q.strides, k.strides, v.strides, out.strides
        p.q_strides = (sq[0] // size, sq[1] // size, sq[2] // size)
        p.k_strides = (sk[0] // kv_size, sk[1] // kv_size, sk[2] // kv_size)
        p.v_strides = (sv[0] // kv_size, sv[1] // kv_size, sv[2] // kv_size)
        p.out_strides = (so[0] // size, so[1] // size, so[2] // size)
        if lse is not None:
            sl = lse.strides
            p.lse_strides = (sl[0] // 4, sl[1] // 4, sl[2] // 4)
    else:
        p.batch = len(cu_seqlens_q) - 1
        _, p.q_heads, p.head_dim = q.shape
        _, p.kv_heads, p.v_dim = v.shape
        p.q_len, p.k_len = max_seqlen_q, max_seqlen_k
        sq, sk, sv, so = q.strides, k.strides, v.strides, out.strides
        p.q_strides = (0, sq[1] // size, sq[0] // size)
        p.k_strides = (0, sk[1] // kv_size, sk[0] // kv_size)
        p.v_strides = (0, sv[1] // kv_size, sv[0] // kv_size)
        p.out_strides = (0, so[1] // size, so[0] // size)
        if lse is not None:
            p.lse_strides = (0, lse.strides[1] // 4, lse.strides[0] // 4)
        p.cu_seqlens_q = _pointer("int64_t *", cu_seqlens_q)
        p.cu_seqlens_k = _pointer("int64_t *", cu_seqlens_k)
    p.q, p.k, p.v, p.out = _address(q), _address(k), _address(v), _address(out)
    p.q_dtype, p.kv_dtype = _DTYPE_CODE[q.dtype], _DTYPE_CODE[k.dtype]
    p.scale, p.softcap = scale, softcap
    p.window_left, p.window_right = window_left, window_right
    if lse is not None:
        p.lse = _pointer("float *", lse)
    if kv_lengths is not None:
        p.kv_lengths = _pointer("int64_t *", kv_lengths)
    if q_offsets is not None:
        p.q_offsets = _pointer("int64_t *", q_offsets)
    if mask is not None:
        p.mask = _address(mask)
        p.mask_kind = lib.FA_MASK_BOOL if mask.dtype == np.bool_ else lib.FA_MASK_FLOAT32
        p.mask_strides = tuple(stride // mask.itemsize for stride in mask.strides)
    if alibi_slopes is not None:
        p.alibi_slopes = _pointer("float *", alibi_slopes)
        p.alibi_batch_stride = alibi_slopes.shape[1] if alibi_slopes.ndim == 2 else 0
    if sinks is not None:
        p.sinks = _pointer("float *", sinks)
    p.num_threads, p.isa = num_threads, _ISA_CODE[isa]

    status = lib.fa_attention(p)
    if status == lib.FA_NO_MEMORY:
        raise MemoryError("attention: the kernels could not allocate their workspace")
    if status != lib.FA_OK:
        raise ValueError(f"isa={isa!r} is not available; this machine runs {available_isas()}")
