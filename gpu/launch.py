"""One call: choose a kernel, bring what is small to the device, find room for parts, launch.

Everything happens on CuPy's current stream, in order, and nothing waits for the device. What is taken from
CuPy's pool goes back to it when the call returns; a later use of that memory on this stream comes after the
kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .choose import Configuration, configure, grid, resident, split_keys
from .compile import Compiled, compiled
from .device import Card, card, get_atom, load_cupy
from .problem import address, fill

__all__ = ["attention", "configuration_of", "is_aligned", "is_modified"]

#: CTAs along the y and z axes of a grid.
MAX_GRID = 65535

_DTYPES = {"kv_lengths": np.int64, "q_offsets": np.int64, "cu_seqlens_q": np.int64, "cu_seqlens_k": np.int64,
           "block_table": np.int32, "alibi_slopes": np.float32, "sinks": np.float32}  # fmt: skip


def is_aligned(*arrays: Any) -> bool:
    """Return whether rows begin at multiples of 16 bytes, are so long, and lie less than 2 GiB apart."""
    for array in arrays:
        size = array.dtype.itemsize
        if address(array) % 16 or array.shape[-1] * size % 16:
            return False
        if any(step % 16 for n, step in zip(array.shape[:-1], array.strides[:-1], strict=True) if n > 1):
            return False
        rows = 0 if array.ndim == 3 else -2  # packed sequences: (rows, heads, elements)
        if array.shape[rows] > 1 and abs(array.strides[rows]) >= 2**31:
            return False
    return True


def is_modified(scale: float, softcap: float, mask: Any, alibi_slopes: Any) -> bool:
    """Return whether scores are more than products times a plain scale."""
    # Plain scores keep scale and log2(e) as one factor, which must be a positive float32.
    return bool(softcap) or mask is not None or alibi_slopes is not None or not 1e-30 < scale < 1e30


def configuration_of(
    atom: int, q: Any, k: Any, v: Any, *, scale: float, softcap: float = 0.0, mask: Any = None,
    alibi_slopes: Any = None, block_table: Any = None, cu_seqlens_q: Any = None, max_seqlen_q: int = 0,
    **_: Any,
) -> Configuration:  # fmt: skip
    """Return the kernel that `attention` runs for these arguments."""
    packed = cu_seqlens_q is not None
    q_len = max_seqlen_q if packed else q.shape[2]
    rows = q.shape[1] // v.shape[1] * q_len
    return configure(
        atom, q.dtype.name, k.dtype.name, q.shape[-1], v.shape[-1], rows,
        aligned=is_aligned(q, k, v), modified=is_modified(scale, softcap, mask, alibi_slopes),
        paged=block_table is not None,
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
    MemoryError
        There is no room on the device for parts; nothing was launched.
    """
    here = card()
    options: dict[str, Any] = {
        "scale": scale, "softcap": softcap, "window_left": window_left, "window_right": window_right,
        "mask": mask, "k_scales": k_scales, "v_scales": v_scales, "page_size": page_size,
        "max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k,
    }  # fmt: skip
    small = {
        "alibi_slopes": alibi_slopes, "sinks": sinks, "kv_lengths": kv_lengths, "q_offsets": q_offsets,
        "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "block_table": block_table,
    }  # fmt: skip
    configuration = configuration_of(
        get_atom(here.number), q, k, v, scale=scale, softcap=softcap, mask=mask, alibi_slopes=alibi_slopes,
        block_table=block_table, cu_seqlens_q=cu_seqlens_q, max_seqlen_q=max_seqlen_q,
    )  # fmt: skip
    kernel = compiled(configuration, here)
    addresses, kept = _to_device({name: x for name, x in small.items() if x is not None})
    problem = fill(
        q, k, v, out, lse, **options, small=addresses,
        sequences=None if cu_seqlens_q is None else len(cu_seqlens_q) - 1,
        slopes_per_batch=alibi_slopes is not None and alibi_slopes.ndim == 2,
        block_table_stride=0 if block_table is None else block_table.shape[1],
    )  # fmt: skip
    _launch(configuration, kernel, here, problem, _longest(problem, kv_lengths))
    del kept  # until here


def _longest(problem: NDArray[Any], kv_lengths: Any) -> int:
    """Return the most keys of a sequence, as far as the host knows."""
    if isinstance(kv_lengths, np.ndarray) and kv_lengths.size:
        return max(1, min(int(problem["k_len"]), int(kv_lengths.max())))
    return max(1, int(problem["k_len"]))


def _to_device(arrays: dict[str, Any]) -> tuple[dict[str, int], list[Any]]:
    """Copy the host's arrays to the device in one piece; return where all lie, and what keeps them there."""
    addresses = {name: address(array) for name, array in arrays.items() if not isinstance(array, np.ndarray)}
    host = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    if not host:
        return addresses, [arrays]
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
    configuration: Configuration, kernel: Compiled, here: Card, problem: NDArray[Any], longest: int
) -> None:
    batch, q_heads, kv_heads, q_len = (int(problem[n]) for n in ("batch", "q_heads", "kv_heads", "q_len"))
    sizes = {"batch": batch, "q_heads": q_heads, "kv_heads": kv_heads, "q_len": q_len}
    _, heads, _ = grid(configuration, **sizes)
    if heads > MAX_GRID or batch > MAX_GRID:
        raise ValueError(
            f"q: a launch takes at most {MAX_GRID} sequences and {MAX_GRID} heads (with pages or int8: KV "
            f"heads times blocks of {configuration.rows} rows), got {batch} and {heads}; call it for parts"
        )
    if configuration.entry == "attention":
        kernel.function(
            grid(configuration, **sizes), (configuration.threads,), (problem,),
            shared_mem=configuration.shared,
        )  # fmt: skip
        return
    fits = resident(
        configuration, kernel.registers, sm_threads=here.sm_threads, sm_registers=here.sm_registers,
        sm_shared=here.sm_shared,
    )  # fmt: skip
    sets = batch * heads
    splits, size = split_keys(configuration.step, longest, sets, here.sms * fits)
    counters = 0
    room = None
    if splits > 1:
        # Parts first: they begin at a multiple of 16 bytes. Counters start at 0.
        floats = sets * splits * configuration.rows * configuration.part
        room = allocate(4 * (floats + sets), f"parts of {splits} splits of the keys")
        counters = int(room.ptr) + 4 * floats
        (room + 4 * floats).memset_async(0, 4 * sets)
        problem["parts"] = int(room.ptr)
    problem["splits"], problem["key_split"] = splits, size
    blocks = heads // kv_heads
    kernel.function(
        grid(configuration, **sizes, splits=splits), (configuration.threads,),
        (problem, np.uint64(counters), np.int32(blocks)), shared_mem=configuration.decode_shared(splits),
    )  # fmt: skip
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
