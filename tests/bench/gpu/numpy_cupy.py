"""As much of CuPy as the benchmark uses, made of NumPy: arrays in CPU memory, streams that run at once.

Events tell a clock that a test moves; what is queued while a stream captures is run by the graph's launch.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Clock:
    """Seconds, moved by whatever takes time."""

    def __init__(self) -> None:
        self.now = 0.0


class Pointer:
    """An array's memory."""

    clock = Clock()

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.ptr = array, array.__array_interface__["data"][0]

    def copy_from_device_async(self, source: Pointer, nbytes: int) -> None:
        self.array.reshape(-1).view(np.uint8)[:nbytes] = source.array.reshape(-1).view(np.uint8)[:nbytes]
        self.clock.now += 1e-4


class Array(np.ndarray):
    """An array on the device that is none."""

    def get(self) -> np.ndarray:
        return np.array(self)

    @property
    def data(self) -> Pointer:  # type: ignore[override]
        return Pointer(self)


class Graph:
    """What was queued while a stream captured."""

    def __init__(self, queued: list[Callable[[], None]]) -> None:
        self.queued = queued

    def launch(self) -> None:
        for run in self.queued:
            run()


class Stream:
    """A stream that runs at once, or notes for a graph."""

    current: Stream
    ptr = 0

    def __init__(self, non_blocking: bool = False) -> None:
        self.captured: list[Callable[[], None]] | None = None

    def __enter__(self) -> Stream:
        Stream.current = self
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Graph:
        assert self.captured is not None
        queued, self.captured = self.captured, None
        return Graph(queued)

    def queue(self, run: Callable[[], None]) -> None:
        """What a kernel's launch would do."""
        if self.captured is None:
            run()
        else:
            self.captured.append(run)


def _pool() -> Any:
    return types.SimpleNamespace(malloc=None, free_bytes=lambda: 0, free_all_blocks=lambda: None)


def _array(array: Any) -> Any:
    return array.view(Array) if isinstance(array, np.ndarray) else array


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: _array(function(*args, **options))


def make(clock: Clock, free: int = 2**40) -> types.ModuleType:
    """Return the module."""
    Pointer.clock = clock
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"  # type: ignore[attr-defined]
    for name in ("abs", "asarray", "empty", "exp", "full", "isnan", "rint"):
        setattr(cupy, name, _on_device(getattr(np, name)))

    def ndarray(shape: tuple[int, ...], dtype: Any, memptr: Pointer) -> Any:
        count = int(np.prod(shape))
        return memptr.array.reshape(-1)[:count].view(dtype).reshape(shape).view(Array)

    class Event:
        def record(self) -> None:
            self.at = clock.now

        def synchronize(self) -> None:
            pass

    @contextmanager
    def using_allocator(allocator: Any) -> Iterator[None]:
        yield

    pool = _pool()
    properties = {
        "name": b"A card of NumPy", "major": 9, "minor": 0, "multiProcessorCount": 2,
        "maxThreadsPerMultiProcessor": 2048, "regsPerMultiprocessor": 65536,
        "sharedMemPerMultiprocessor": 2**17, "sharedMemPerBlockOptin": 2**17, "l2CacheSize": 1024,
        "totalGlobalMem": 2**26,
    }  # fmt: skip
    runtime = types.SimpleNamespace(
        CUDARuntimeError=OSError, getDevice=lambda: 0, getDeviceProperties=lambda number: properties,
        runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 13010, memGetInfo=lambda: (free, free),
        deviceGetPCIBusId=lambda number: "0000:00:00.0",
    )  # fmt: skip
    cupy.ndarray = ndarray  # type: ignore[attr-defined]
    cupy.get_default_memory_pool = lambda: pool  # type: ignore[attr-defined]
    cupy.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        Event=Event, Stream=Stream, MemoryPool=_pool, using_allocator=using_allocator, runtime=runtime,
        get_elapsed_time=lambda first, last: 1e3 * (last.at - first.at),
        get_current_stream=lambda: Stream.current, nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
    )  # fmt: skip
    return cupy
