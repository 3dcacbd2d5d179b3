"""Rows into a KV cache on the device: one launch for keys and values, which rounds them as it writes.

The kernel is kernels/08_append.cu. Nothing waits for the device.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .choose import Configuration
from .compile import compiled
from .device import card, load_cupy
from .launch import allocate
from .problem import address, by_value

__all__ = ["APPEND", "append", "configuration_of_append", "upload", "zeros"]

_WARPS = 4
_ELEMENTS = {"float32": "Float", "float16": "Half", "bfloat16": "Bfloat", "int8": "Int8"}


def _fields() -> list[tuple[Any, ...]]:
    number, pointer, steps, pointers = "<i8", "<u8", ("<i8", (3,)), ("<u8", (2,))
    return [
        *((name, number) for name in ("batch", "kv_heads", "tokens")), ("dims", "<i8", (2,)),
        ("rows", *pointers), ("k_row_strides", *steps), ("v_row_strides", *steps),
        ("planes", *pointers), ("k_plane_strides", *steps), ("v_plane_strides", *steps),
        ("scales", *pointers), ("scale_strides", *steps),
        ("block_table", pointer), ("block_table_stride", number), ("page_size", number),
        ("starts", pointer), ("counts", pointer), ("start", number),
    ]  # fmt: skip


#: ``struct AppendProblem`` of kernels/08_append.cu, field by field.
APPEND: np.dtype[Any] = np.dtype(_fields(), align=True)


def configuration_of_append(k_dtype: str, v_dtype: str, kept: str) -> Configuration:
    """Return the kernel that rounds rows of these types to the type that a cache keeps."""
    macros = (
        ("ELEMENT", _ELEMENTS[kept]), ("K_SOURCE", _ELEMENTS[k_dtype]), ("V_SOURCE", _ELEMENTS[v_dtype]),
        ("WARPS", str(_WARPS)),
    )  # fmt: skip
    return Configuration("08_append.cu", "append", macros, 32 * _WARPS, _WARPS, 1, 0)


_Layout = tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any]]


def _layout(array: Any) -> _Layout:
    return array.shape, array.strides, array.dtype


def _steps(layout: _Layout) -> list[int]:
    """Return strides in elements, 0 along an axis of one element, where they mean nothing."""
    shape, strides, dtype = layout
    return [0 if n == 1 else step // dtype.itemsize for n, step in zip(shape, strides, strict=True)][:3]


@lru_cache(maxsize=256)
def _prepared(
    k: _Layout, v: _Layout, k_plane: _Layout, v_plane: _Layout, scales: _Layout | None, table: int | None,
    page_size: int,
) -> tuple[Configuration, bytes]:  # fmt: skip
    """Return the kernel, and the problem but for addresses and counts: a model's layers ask for the same."""
    filled = np.zeros((), APPEND)
    filled["batch"], filled["kv_heads"] = k[0][:2]
    filled["dims"] = k[0][3], v[0][3]
    for name, rows, plane in (("k", k, k_plane), ("v", v, v_plane)):
        filled[f"{name}_row_strides"], filled[f"{name}_plane_strides"] = _steps(rows), _steps(plane)
    if scales is not None:
        filled["scale_strides"] = _steps(scales)
    if table is not None:
        filled["block_table_stride"], filled["page_size"] = table, page_size
    return configuration_of_append(k[2].name, v[2].name, k_plane[2].name), filled.tobytes()


def append(
    k: Any,
    v: Any,
    planes: tuple[Any, ...],
    tokens: int,
    *,
    start: int = 0,
    starts: NDArray[np.int64] | None = None,
    counts: NDArray[np.int64] | None = None,
    block_table: Any = None,
    page_size: int = 0,
) -> None:
    """Write rows behind those that a cache holds, on the current device and stream.

    It checks nothing: `fastattention.KVCache` validates, and is what people call. No size is 0.

    Parameters
    ----------
    k, v : CuPy array, shape (B, Hkv, S, D) and (B, Hkv, S, Dv)
        float32, float16 or bfloat16, the planes' own type or one that is rounded to it. Last axis contiguous.
    planes : tuple of CuPy array
        Where keys and values are kept: (B, Hkv, capacity, D) and Dv, or with pages (pages, Hkv, page_size, D)
        and Dv; for int8 also the scales of both, float32, the same shapes without the last axis.
    tokens : int
        How many of the S tokens are written, from the front.
    start : int
        Behind how many tokens, the same for all sequences.
    starts, counts : int64 array, shape (B,), optional
        Instead, for each sequence: behind how many, and how many of the `tokens` it takes.
    block_table : CuPy array of int32, shape (B, pages of a sequence), optional
        Which pages are whose.
    page_size : int
        Tokens of a page.

    Raises
    ------
    RuntimeError
        The kernel cannot be compiled.
    MemoryError
        There is no room on the device for `starts` and `counts`; nothing was launched.
    """
    scales = planes[2] if len(planes) > 2 else None
    configuration, template = _prepared(
        _layout(k), _layout(v), _layout(planes[0]), _layout(planes[1]),
        None if scales is None else _layout(scales), None if block_table is None else block_table.shape[1],
        page_size,
    )  # fmt: skip
    kernel = compiled(configuration, card())
    batch, kv_heads = k.shape[:2]
    filled: NDArray[Any] = np.ndarray((), APPEND, bytearray(template))
    filled["tokens"], filled["start"] = tokens, start
    filled["rows"] = address(k), address(v)
    filled["planes"] = address(planes[0]), address(planes[1])
    if scales is not None:
        filled["scales"] = address(scales), address(planes[3])
    if block_table is not None:
        filled["block_table"] = address(block_table)
    lists = [x for x in (starts, counts) if x is not None]
    kept = None
    if lists:
        kept = upload(np.concatenate(lists))
        at = int(kept.ptr)
        for name, x in (("starts", starts), ("counts", counts)):
            if x is not None:
                filled[name] = at
                at += 8 * batch
    blocks = -(-2 * batch * kv_heads * tokens // _WARPS)
    kernel.function((blocks,), (configuration.threads,), (by_value(filled),))
    del kept  # until here


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> Any:
    """Return a CuPy array of zeros on the current device; rows of it begin as aligned as rows can.

    Raises
    ------
    MemoryError
        There is no room: what was asked for, and what is free.
    """
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = allocate(nbytes, f"{what}, {dtype.name} {shape}")
    memory.memset_async(0, nbytes)
    return load_cupy().ndarray(shape, dtype, memptr=memory)


# Copies under way from pinned memory: the event behind each, and the memory it still reads.
_under_way: deque[tuple[Any, Any]] = deque()
_lock = threading.Lock()


def upload(array: NDArray[Any], into: Any = None) -> Any:
    """Copy a NumPy array to the device, behind what the current stream does already, and do not wait.

    From pageable memory the driver may wait for the stream first; so the copy goes through pinned memory,
    which is held until the device has read it.

    Parameters
    ----------
    array : ndarray
    into : MemoryPointer, optional
        Where to; by default new memory.

    Returns
    -------
    MemoryPointer
    """
    cupy = load_cupy()
    device = allocate(array.nbytes, "the small arrays") if into is None else into
    pinned = cupy.cuda.alloc_pinned_memory(array.nbytes)
    np.frombuffer(pinned, np.uint8, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    device.copy_from_host_async(int(pinned.ptr), array.nbytes)
    event = cupy.cuda.Event(disable_timing=True)
    event.record()
    with _lock:
        while _under_way and _under_way[0][0].done:
            _under_way.popleft()
        _under_way.append((event, pinned))
    return device
