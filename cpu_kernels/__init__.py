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
    from . import interrupt
    from ._native import ffi, lib
finally:
    if _ask:
        del os.environ[_SPINS]

__all__ = [
    "ISAS", "HostStep", "attention", "available_isas", "cache_bytes", "compiler", "default_isa", "explain",
    "max_threads", "quantize",
]  # fmt: skip

#: Instruction sets this library has kernels for, slowest first.
ISAS: tuple[str, ...] = tuple(ffi.string(lib.fa_isa_name(i)).decode() for i in range(lib.FA_ISA_COUNT))

_ISA_CODE = {name: code for code, name in enumerate(ISAS)}
_DTYPE_CODE = {
    np.dtype(np.float32): lib.FA_FLOAT32,
    np.dtype(np.float16): lib.FA_FLOAT16,
    np.dtype(ml_dtypes.bfloat16): lib.FA_BFLOAT16,
    np.dtype(np.int8): lib.FA_INT8,
}
_NULL = ffi.NULL


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this build has and this machine can run, slowest first."""
    return tuple(name for name, code in _ISA_CODE.items() if lib.fa_isa_available(code))


def default_isa() -> str:
    """Return the instruction set that is fastest on this machine, of those available."""
    name: str = ISAS[lib.fa_isa_default()]
    return name


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


def _problem(
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
    k_scales: np.ndarray | None = None,
    v_scales: np.ndarray | None = None,
    block_table: np.ndarray | None = None,
    page_size: int = 0,
    num_threads: int = 1,
    isa: str = "baseline",
) -> Any:
    """Return the arguments of `attention` as a ``fa_problem``. It borrows the arrays' memory."""
    p = ffi.new("fa_problem *")
    size = q.itemsize
    kv_size = k.itemsize
    sq, sk, sv, so = q.strides, k.strides, v.strides, out.strides
    if cu_seqlens_q is None:
        p.batch, p.q_heads, p.q_len, p.head_dim = q.shape
        p.kv_heads, p.k_len, p.v_dim = v.shape[1:]
        p.q_strides = (sq[0] // size, sq[1] // size, sq[2] // size)
        p.k_strides = (sk[0] // kv_size, sk[1] // kv_size, sk[2] // kv_size)
        p.v_strides = (sv[0] // kv_size, sv[1] // kv_size, sv[2] // kv_size)
        p.out_strides = (so[0] // size, so[1] // size, so[2] // size)
        if lse is not None:
            sl = lse.strides
            p.lse_strides = (sl[0] // 4, sl[1] // 4, sl[2] // 4)
        if k_scales is not None and v_scales is not None:
            p.k_scales, p.v_scales = _pointer("float *", k_scales), _pointer("float *", v_scales)
            p.k_scale_strides = tuple(stride // 4 for stride in k_scales.strides)
            p.v_scale_strides = tuple(stride // 4 for stride in v_scales.strides)
        if block_table is not None:
            p.k_len = max_seqlen_k
            p.block_table = _pointer("int32_t *", block_table)
            p.block_table_stride, p.page_size = block_table.strides[0] // 4, page_size
    else:
        p.batch = len(cu_seqlens_q) - 1
        _, p.q_heads, p.head_dim = q.shape
        _, p.kv_heads, p.v_dim = v.shape
        p.q_len, p.k_len = max_seqlen_q, max_seqlen_k
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
    return p


def _lacking(isa: Any) -> ValueError:
    return ValueError(f"isa={isa!r} is not available; this machine runs {available_isas()}")


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray | None = None,
    **options: Any,
) -> None:
    """Run one attention problem; fill `out` and, when given, `lse`.

    Parameters
    ----------
    q, k, v : ndarray
        (B, Hq, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv); with `cu_seqlens_q` and `cu_seqlens_k`, packed
        (Tq, Hq, D), (Tk, Hkv, D), (Tk, Hkv, Dv); with `block_table`, q as it was and pools of pages
        (pages, Hkv, page_size, D), (pages, Hkv, page_size, Dv). float32, float16 or bfloat16; k and v share
        one dtype, which may differ from q's, and may be int8. Last axis contiguous, other strides free.
    out : ndarray
        (B, Hq, Sq, Dv) or (Tq, Hq, Dv), of q's dtype. Must not overlap the inputs.
    lse : ndarray, optional
        float32 (B, Hq, Sq) or (Tq, Hq): natural log of the softmax denominator, -inf where no key is visible.
    scale, softcap : float
        Multiplier of the scores, always given; softcap 0, the default, means none.
    window_left, window_right : int
        Keys visible before and after a query's position; -1, the default, is unbounded, causal is
        ``window_right=0``.
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
        Longest sequence, when packed; `max_seqlen_k` also when paged.
    k_scales, v_scales : ndarray, optional
        float32, with int8 k and v, and not when packed: what a row's integers are to be multiplied with;
        the shape of k without its last axis, any strides.
    block_table : ndarray, optional
        int32 (B, pages of a sequence), rows contiguous: the pages of each sequence, in order. `kv_lengths`
        are then given.
    page_size : int
        Rows of a page, with `block_table`.
    num_threads : int
        OpenMP threads to use, at least 1, the default.
    isa : str
        One of `available_isas`, by default "baseline".

    Raises
    ------
    MemoryError
        When the workspace (under 4 MiB a thread) cannot be allocated; `out` is then untouched.
    BaseException
        What a signal's handler raised in a long call, such as KeyboardInterrupt; what `out` and `lse` hold
        then means nothing.
    """
    status = lib.fa_attention(_problem(q, k, v, out, lse, **options))
    if status == lib.FA_STOPPED:
        raise interrupt.reason()
    if status == lib.FA_NO_MEMORY:
        raise MemoryError("attention: the kernels could not allocate their workspace")
    if status != lib.FA_OK:
        raise _lacking(options.get("isa", "baseline"))


class HostStep:
    """A token's work on a layer whose keys and values lie in host memory, as a call that needs no Python.

    New rows are written behind those that are there, then the queries attend to a range of rows that ends
    with the new ones. `run` does it here, without the GIL. A GPU's driver does it where `function` and
    `argument` are queued as a host function (``cuLaunchHostFunc``).

    Parameters
    ----------
    q : ndarray, shape (B, Hq, S, D)
        float32, float16 or bfloat16; any strides with a contiguous last axis, as all arrays here. Query i
        stands at the i-th new row.
    planes : tuple of ndarray
        Keys (B, Hkv, capacity, D) and values (B, Hkv, capacity, Dv); of int8 also the scales of both,
        float32, without the last axis.
    out : ndarray, shape (B, Hq, S, Dv)
        Of q's dtype; filled.
    lse : ndarray, shape (B, Hq, S), optional
        float32; filled.
    new_k, new_v : ndarray, shape (B, Hkv, S, D) and (B, Hkv, S, Dv)
        Of q's dtype; rounded to the planes'.
    scale : float
        Of the scores.
    isa : str
        One of `available_isas`.
    num_threads : int
        OpenMP threads, at least 1.
    failed : ndarray, shape (1,)
        int32, shared by many steps: where it is not 0, a run does nothing; one that fails sets it to 1.

    Notes
    -----
    Nothing is checked. All arrays are held, and read when the step runs.
    """

    __slots__ = ("_arrays", "_step")

    def __init__(
        self,
        q: np.ndarray,
        planes: tuple[np.ndarray, ...],
        out: np.ndarray,
        lse: np.ndarray | None,
        new_k: np.ndarray,
        new_v: np.ndarray,
        *,
        scale: float,
        isa: str,
        num_threads: int,
        failed: np.ndarray,
    ) -> None:
        k_scales, v_scales = planes[2:] or (None, None)
        problem = _problem(
            q, planes[0], planes[1], out, lse, scale=scale, window_right=0, k_scales=k_scales,
            v_scales=v_scales, num_threads=num_threads, isa=isa,
        )  # fmt: skip
        self._arrays = (q, planes, out, lse, new_k, new_v, failed)
        step = self._step = ffi.new("fa_host_step *")
        step.problem = problem[0]
        size = q.itemsize
        step.new_k, step.new_v = _address(new_k), _address(new_v)
        step.new_k_strides = tuple(stride // size for stride in new_k.strides[:3])
        step.new_v_strides = tuple(stride // size for stride in new_v.strides[:3])
        step.failed = _pointer("int32_t *", failed)

    def set_range(self, first: int, length: int) -> None:
        """Let the next run attend to rows [first, length), of which the last S are the new ones."""
        self._step.first, self._step.length = first, length

    def run(self) -> None:
        """Run it here; `check` says how it went."""
        lib.fa_host_step_run(self._step)
        if self._step.status == lib.FA_STOPPED:
            raise interrupt.reason()

    @property
    def function(self) -> int:
        """Address of the C function ``void (void *)`` that does it."""
        return int(ffi.cast("uintptr_t", lib.fa_host_step_function()))

    @property
    def argument(self) -> int:
        """Address that the function is to be called with."""
        return int(ffi.cast("uintptr_t", self._step))

    @property
    def seconds(self) -> float:
        """How long the last run took; 0 where it did nothing."""
        return float(self._step.seconds)

    def check(self) -> None:
        """Raise what the last run met.

        Raises
        ------
        MemoryError
            The kernels' workspace could not be allocated.
        ValueError
            New rows for planes of int8 hold inf or NaN; or the instruction set is not available.
        """
        status = self._step.status
        if status == lib.FA_NO_MEMORY:
            raise MemoryError("attention on the CPU: the kernels could not allocate their workspace")
        if status == lib.FA_NOT_FINITE:
            raise ValueError("new keys and values: a cache of int8 takes finite numbers, got inf or NaN")
        if status != lib.FA_OK:
            raise _lacking(ISAS[self._step.problem.isa])


def explain(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return what `attention` would do with these arguments. Nothing is computed, no array is read.

    Parameters
    ----------
    q, k, v, out, lse, **options
        As in `attention`; no size is 0.

    Returns
    -------
    dict
        The fields of ``fa_plan`` in fastattention.h; "isa" as a name, "decode" as a bool.
    """
    plan = ffi.new("fa_plan *")
    if lib.fa_explain(_problem(q, k, v, out, lse, **options), plan) != lib.FA_OK:
        raise _lacking(options.get("isa", "baseline"))
    fields = {name: int(getattr(plan, name)) for name, _ in ffi.typeof("fa_plan").fields}
    return {**fields, "isa": ISAS[fields["isa"]], "decode": bool(fields["decode"])}


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of `x` as int8, and the scale of each: reference/quantize.py, bit for bit.

    Parameters
    ----------
    x : ndarray
        float32, four axes (..., D), the last one contiguous, other strides free.

    Returns
    -------
    integers : ndarray of int8
        The shape of `x`.
    scales : ndarray of float32
        The shape of `x` without its last axis.

    Raises
    ------
    ValueError
        When `x` holds inf or NaN.
    """
    integers, scales = np.empty(x.shape, np.int8), np.empty(x.shape[:3], np.float32)
    sx = x.strides
    status = lib.fa_quantize(
        _pointer("float *", x), x.shape, (sx[0] // 4, sx[1] // 4, sx[2] // 4),
        _pointer("int8_t *", integers), _pointer("float *", scales),
    )  # fmt: skip
    if status != lib.FA_OK:
        raise ValueError("expected finite numbers, got inf or NaN")
    return integers, scales
