"""NumPy arrays on the GPU as they lie in memory, strides and all, and results back.

The NumPy cases then are the GPU's, too: the launcher and the kernels are tested on the very same numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from fastattention import KVCache

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # NumPy 1
    from numpy import byte_bounds

#: Arguments that stay in CPU memory, as their values are checked there.
SMALL = frozenset(("alibi_slopes", "sinks", "kv_lengths", "q_offset", "cu_seqlens_q", "cu_seqlens_k"))


def _bytes(array: np.ndarray) -> np.ndarray:
    """Everything from the first to the last byte that an array reaches."""
    low, high = byte_bounds(array)
    return np.ctypeslib.as_array((ctypes.c_ubyte * (high - low)).from_address(low))


def to_device(array: np.ndarray) -> Any:
    """Return an equal CuPy array with the same strides, as far off a multiple of 16 bytes.

    Elements that do not lie at multiples of their size, which no GPU can read, are laid anew.
    """
    import cupy

    if not array.flags.aligned:
        array = array.copy()
    if array.size == 0:
        return cupy.empty(array.shape, array.dtype)
    low, _ = byte_bounds(array)
    memory = _bytes(array)
    room = cupy.zeros(memory.size + 16, np.uint8)
    room[low % 16 : low % 16 + memory.size].set(np.ascontiguousarray(memory))
    first = array.__array_interface__["data"][0]
    return cupy.ndarray(
        array.shape, array.dtype, memptr=room.data + (low % 16 + first - low), strides=array.strides
    )


def from_device(array: Any, host: np.ndarray) -> None:
    """Bring back everything that `to_device` brought there, what lies between the elements included."""
    import cupy

    low, high = byte_bounds(host)
    offset = host.__array_interface__["data"][0] - low
    span = cupy.ndarray((high - low,), np.uint8, memptr=array.data - offset)
    _bytes(host)[:] = span.get()


def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of `fastattention` on the GPU with NumPy arrays; results come back as NumPy arrays."""
    tensors = [to_device(x) for x in args[:3]]
    moved = {
        name: to_device(x) if isinstance(x, np.ndarray) and name not in SMALL else x
        for name, x in options.items()
    }
    result = function(*tensors, *args[3:], **moved, backend="gpu")
    out = options.get("out")
    if out is not None and out.size:
        from_device(moved["out"], out)
    results = [x.get() for x in (result if isinstance(result, tuple) else (result,))]
    if out is not None:
        results[0] = out
    return tuple(results) if isinstance(result, tuple) else results[0]


def to_host(array: Any) -> np.ndarray:
    """Return what a CuPy array holds."""
    copy: np.ndarray = array.get()
    return copy


class DeviceCache(KVCache):
    """A cache on the GPU, used with NumPy arrays: the tests of the CPU's cache are this one's, too.

    Results and views are copies in CPU memory; what a test does to them is done to nothing else.
    """

    __slots__ = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"device": "gpu", **options})

    def append(self, k: Any, v: Any, lengths: Any = None) -> None:
        k, v = (to_device(x) if isinstance(x, np.ndarray) else x for x in (k, v))
        super().append(k, v, lengths)

    def attend(self, q: Any, **options: Any) -> Any:
        if not isinstance(q, np.ndarray):
            return super().attend(q, **options)
        options.pop("backend", None)

        def call(q: Any, _k: Any, _v: Any, **moved: Any) -> Any:
            return KVCache.attend(self, q, **moved)

        return run(call, q, q[:0], q[:0], **options)

    def explain(self, q: Any, **options: Any) -> Any:
        return super().explain(to_device(q) if isinstance(q, np.ndarray) else q, **options)

    def _view(self, plane: int) -> Any:
        copy = to_host(super()._view(plane))
        copy.flags.writeable = False
        return copy
