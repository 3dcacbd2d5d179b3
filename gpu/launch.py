"""One call: choose a kernel, bring what is small to the device, find room for parts, launch.

Everything happens on CuPy's current stream, in order, and nothing waits for the device. What is taken from
CuPy's pool goes back to it when the call returns; a later use of that memory on this stream comes after the
kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .capture import capturing, keep, reserve
from .choose import Configuration, configure, grid
from .compile import Compiled, compiled
from .device import Card, card, get_atom, load_cupy
from .plan import Explained, Plan, plan_of, planned
from .portions import MAX_GRID, Call, portions
from .portions import sizes as sizes_of
from .problem import PROBLEM, address, by_value, fill

__all__ = ["attention", "configuration_of", "explain", "is_aligned", "is_modified"]

_DTYPES = {"kv_lengths": np.int64, "q_offsets": np.int64, "cu_seqlens_q": np.int64, "cu_seqlens_k": np.int64,
           "block_table": np.int32, "alibi_slopes": np.float32, "sinks": np.float32}  # fmt: skip
_ABSENT = dict.fromkeys((*_DTYPES, "mask", "k_scales", "v_scales")) | {"max_seqlen_q": 0, "max_seqlen_k": 0}


def is_aligned(*arrays: Any) -> bool:
    """Return whether rows begin at multiples of 16 bytes, are so long, and lie less than 2 GiB apart."""
    for array in arrays:
        size = array.dtype.itemsize
        if address(array) % 16 or array.shape[-1] * size % 16:
            return False
        for n, step in zip(array.shape[:-1], array.strides[:-1], strict=True):
            if step % 16 and n > 1:
                return False
        rows = 0 if array.ndim == 3 else -2  # packed sequences: (rows, heads, elements)
        if array.shape[rows] > 1 and abs(array.strides[rows]) >= 2**31:
            return False
    return True


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name, which NumPy puts together anew each time."""
    return dtype.name


def is_modified(scale: float, softcap: float, mask: Any, alibi_slopes: Any) -> bool:
    """Return whether scores are more than products times a plain scale."""
    # Plain scores keep scale and log2(e) as one factor, which must be a positive float32.
    return bool(softcap) or mask is not None or alibi_slopes is not None or not 1e-30 < scale < 1e30


def configuration_of(
    atom: int, q: Any, k: Any, v: Any, *, scale: float, softcap: float = 0.0, mask: Any = None,
    alibi_slopes: Any = None, block_table: Any = None, cu_seqlens_q: Any = None, max_seqlen_q: int = 0,
    sm_shared: int | None = None, **_: Any,
) -> Configuration:  # fmt: skip
    """Return the kernel that `attention` runs for these arguments, on SMs with so much shared memory."""
    packed = cu_seqlens_q is not None
    q_len = max_seqlen_q if packed else q.shape[2]
    rows = q.shape[1] // v.shape[1] * q_len
    return configure(
        atom, _name_of(q.dtype), _name_of(k.dtype), q.shape[-1], v.shape[-1], rows,
        aligned=is_aligned(q, k, v), modified=is_modified(scale, softcap, mask, alibi_slopes),
        paged=block_table is not None, sm_shared=sm_shared,
    )  # fmt: skip


def attention(
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any = None,
    *,
    scale: float,
    softcap: float = 0.0,
    window_left: int = -1,
    window_right: int = -1,
    mask: Any = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    kv_lengths: Any = None,
    q_offsets: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    k_scales: Any = None,
    v_scales: Any = None,
    block_table: Any = None,
    page_size: int = 0,
) -> None:
    """Run one attention problem on the current device and stream; fill `out` and, when given, `lse`.

    It checks nothing: `fastattention.attention` validates, and is what people call. No size is 0.

    Parameters
    ----------
    q, k, v, out, lse, mask, k_scales, v_scales
        CuPy arrays, as ``cpu_kernels.attention`` takes NumPy's: shapes, dtypes, free strides, a contiguous
        last axis, addresses that are multiples of the item size.
    scale, softcap, window_left, window_right, max_seqlen_q, max_seqlen_k, page_size
        As there.
    alibi_slopes, sinks, kv_lengths, q_offsets, cu_seqlens_q, cu_seqlens_k, block_table
        As there, C-contiguous; NumPy arrays, which are copied to the device together, or CuPy arrays.

    Raises
    ------
    ImportError, RuntimeError, ValueError
        There is no CuPy, no GPU, or none that this can run on; a kernel cannot be compiled.
    TypeError
        bfloat16 below compute capability 8.0.
    RuntimeError
        The call is being captured into a CUDA graph, and one of the small arrays lies in CPU memory.
    MemoryError
        There is no room on the device for what the launch needs; nothing was launched. (Of a call that takes
        several launches, `gpu.portions`, earlier ones may have been.)
    """
    here = card()
    call: Call = {
        "q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": scale, "softcap": softcap,
        "window_left": window_left, "window_right": window_right, "mask": mask, "alibi_slopes": alibi_slopes,
        "sinks": sinks, "kv_lengths": kv_lengths, "q_offsets": q_offsets, "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k, "max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k,
        "k_scales": k_scales, "v_scales": v_scales, "block_table": block_table, "page_size": page_size,
    }  # fmt: skip
    atom = get_atom(here.number)
    if mask is None and k_scales is None and all(call[name] is None for name in _DTYPES):
        ready = _prepared(
            here, atom, MAX_GRID, not (address(q) | address(k) | address(v)) % 16, _layout(q), _layout(k),
            _layout(v), _layout(out), None if lse is None else _layout(lse), scale, softcap, window_left,
            window_right,
        )  # fmt: skip
        if ready is not None:
            configuration, sizes, template = ready
            kernel = compiled(configuration, here)
            problem: NDArray[Any] = np.ndarray((), PROBLEM, bytearray(template))
            problem["q"], problem["k"], problem["v"] = address(q), address(k), address(v)
            problem["out"], problem["lse"] = address(out), address(lse)
            _launch(
                configuration, kernel, plan_of(configuration, kernel.registers, here, *sizes), problem,
                here.number,
            )  # fmt: skip
            return
    configuration = configuration_of(atom, sm_shared=here.shared_for(atom), **call)
    kernel = compiled(configuration, here)
    for part in portions(configuration, call, MAX_GRID):
        _attend(configuration, kernel, here, part)


def explain(q: Any, k: Any, v: Any, out: Any, lse: Any = None, **options: Any) -> Explained:
    """Return what `attention` would do with the same arguments; the kernel is compiled, but not run.

    Raises
    ------
    ImportError, RuntimeError, ValueError, TypeError
        As `attention`.
    """
    here = card()
    atom = get_atom(here.number)
    call: Call = {**_ABSENT, **options, "q": q, "k": k, "v": v, "out": out, "lse": lse}
    configuration = configuration_of(atom, sm_shared=here.shared_for(atom), **call)
    registers = compiled(configuration, here).registers
    parts = portions(configuration, call, MAX_GRID)
    return Explained(
        here, atom, configuration, registers,
        tuple(planned(configuration, registers, here, part) for part in parts),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pointer:
    ptr: int


@dataclass(frozen=True, slots=True)
class _Standin:
    """An array's layout, in the place of the array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    data: _Pointer

    @property
    def ndim(self) -> int:
        return len(self.shape)


_Layout = tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any]]


def _layout(array: Any) -> _Layout:
    return array.shape, array.strides, array.dtype


@lru_cache(maxsize=256)
def _prepared(
    here: Card, atom: int, most: int, aligned: bool, q: _Layout, k: _Layout, v: _Layout, out: _Layout,
    lse: _Layout | None, scale: float, softcap: float, window_left: int, window_right: int,
) -> tuple[Configuration, tuple[int, int, int, int, int], bytes] | None:  # fmt: skip
    """Return what a call without extras needs but for addresses: kernel, sizes for its plan, and the problem.

    A model's layers ask for the same, one after another. None: one launch does not take the call.
    """
    at = _Pointer(0 if aligned else 1)
    tensors = {"q": q, "k": k, "v": v, "out": out, "lse": lse}
    call: Call = {**_ABSENT, **{name: x and _Standin(*x, at) for name, x in tensors.items()}}
    call |= {
        "scale": scale, "softcap": softcap, "window_left": window_left, "window_right": window_right,
        "page_size": 0,
    }  # fmt: skip
    configuration = configuration_of(atom, sm_shared=here.shared_for(atom), **call)
    n = sizes_of(call)
    if max(grid(configuration, **n)[1:]) > most:
        return None
    problem = fill(
        **{name: value for name, value in call.items() if name not in _DTYPES}, small={}, sequences=None,
        slopes_per_batch=False, block_table_stride=0,
    )  # fmt: skip
    longest = 1 if configuration.entry == "attention" else max(1, v[0][2])
    return configuration, (n["batch"], n["q_heads"], n["kv_heads"], n["q_len"], longest), problem.tobytes()


def _attend(configuration: Configuration, kernel: Compiled, here: Card, call: Call) -> None:
    """Launch a call that one launch takes."""
    small = {name: call[name] for name in _DTYPES if call[name] is not None}
    addresses, kept = _to_device(small)
    starts, slopes, table = call["cu_seqlens_q"], call["alibi_slopes"], call["block_table"]
    problem = fill(
        **{name: value for name, value in call.items() if name not in _DTYPES}, small=addresses,
        sequences=None if starts is None else len(starts) - 1,
        slopes_per_batch=slopes is not None and slopes.ndim == 2,
        block_table_stride=0 if table is None else table.shape[1],
    )  # fmt: skip
    _launch(configuration, kernel, planned(configuration, kernel.registers, here, call), problem, here.number)
    del kept  # until here


def _to_device(arrays: dict[str, Any]) -> tuple[dict[str, int], list[Any]]:
    """Copy the host's arrays to the device in one piece; return where all lie, and what keeps them there."""
    addresses = {name: address(array) for name, array in arrays.items() if not isinstance(array, np.ndarray)}
    host = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    if not host:
        return addresses, [arrays]
    if capturing():
        raise RuntimeError(
            f"{next(iter(host))}: copied from CPU memory at each call, which a CUDA graph cannot repeat: "
            "capture a call without it, or call outside the graph"
        )
    offsets, total = {}, 0
    for name, array in host.items():
        offsets[name] = total
        total += -(-array.nbytes // 16) * 16
    packed = np.zeros(total, np.uint8)
    for name, array in host.items():
        data = np.ascontiguousarray(array, _DTYPES[name]).reshape(-1).view(np.uint8)
        packed[offsets[name] : offsets[name] + data.size] = data
    device = allocate(total, "the small arrays")
    # From memory that is not pinned, the copy has left the host's when the call returns.
    device.copy_from_host_async(packed.ctypes.data, total)
    addresses.update((name, int(device.ptr) + offset) for name, offset in offsets.items())
    return addresses, [arrays, device]


def _launch(
    configuration: Configuration, kernel: Compiled, plan: Plan, problem: NDArray[Any], device: int
) -> None:
    arguments: tuple[Any, ...] = ()
    room = None
    if configuration.entry == "decode":
        counters = 0
        if plan.splits > 1:
            # Parts first: they begin at a multiple of 16 bytes. Counters start at 0.
            room = allocate(plan.workspace, f"parts of {plan.splits} splits of the keys")
            floats = plan.workspace - 4 * plan.sets
            captured = capturing()
            if captured:
                keep(room)
            counters = reserve(device, plan.sets, captured)
            if not counters:
                counters = int(room.ptr) + floats
                (room + floats).memset_async(0, 4 * plan.sets)
            problem["parts"] = int(room.ptr)
        problem["splits"], problem["key_split"] = plan.splits, plan.split_keys
        arguments = np.uint64(counters), np.int32(plan.row_blocks)
    kernel.function(
        plan.grid, (configuration.threads,), (by_value(problem), *arguments), shared_mem=plan.shared
    )
    del room  # until here


def allocate(nbytes: int, what: str) -> Any:
    """Return device memory from CuPy's pool, as a ``MemoryPointer``.

    Raises
    ------
    MemoryError
        There is no room: what was asked for, and what is free.
    """
    cupy = load_cupy()
    try:
        return cupy.cuda.alloc(nbytes)
    except MemoryError as error:
        raise MemoryError(no_room(nbytes, what)) from error


def no_room(nbytes: int, what: str) -> str:
    """Return a message that says what was asked for, and what would fit."""
    free, total = load_cupy().cuda.runtime.memGetInfo()
    return (
        f"no room on the GPU for {what}: asked for {nbytes / 2**20:.1f} MiB, {free / 2**20:.1f} of "
        f"{total / 2**20:.1f} MiB are free"
        + (f"; a batch of 1/{-(-nbytes // free)} of the size would fit" if 0 < free < nbytes else "")
    )
