"""CPU memory that passes for a GPU's: CuPy arrays over it, kernels that the CPU runs, no device.

What a cache on a device does is all real but this: memory is the host's, rows are written by the append
kernel compiled for the host (host_kernel.py), and attention is computed by the CPU's kernels, which take the
same arguments. Needs CuPy's package, and a C++ compiler.
"""

from __future__ import annotations

import contextlib
import importlib.util
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastattention.gpu import cache_rows, launch
from fastattention.gpu.compile import Compiled

from fastattention import cache, cache_device, cpu_kernels, gpu, validate
from fastattention.backends import nothing_to_compute, run
from fastattention.config import get_isa

from . import gpu_arrays, host_kernel


def why_not() -> str:
    """Why it cannot be pretended here; empty where it can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    return host_kernel.why_not()


class Stream:
    """A stream that has always finished."""

    ptr = 0

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        assert isinstance(event, Event)


class Event:
    def __init__(self, **_: Any) -> None:
        self.records = 0

    def record(self, stream: Any = None) -> None:
        self.records += 1


def over(array: np.ndarray) -> Any:
    """A CuPy array over a NumPy array's memory, which it keeps alive."""
    import cupy

    address = array.__array_interface__["data"][0]
    memory = cupy.cuda.UnownedMemory(address, max(array.nbytes, 1), array, 0)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    return cupy.ndarray(array.shape, array.dtype, memptr=pointer, strides=array.strides)


class _Memory:
    def __init__(self, array: Any) -> None:
        self.owner = array
        self.__array_interface__ = {
            "version": 3, "shape": array.shape, "strides": array.strides, "typestr": f"|V{array.itemsize}",
            "data": (int(array.data.ptr), False),
        }  # fmt: skip


def host(array: Any) -> Any:
    """A NumPy array over a CuPy array's memory; what is no CuPy array, as it is."""
    if array is None or isinstance(array, np.ndarray) or not hasattr(array, "data"):
        return array
    if array.size == 0:
        return np.empty(array.shape, array.dtype)
    return np.asarray(_Memory(array)).view(array.dtype)


def _attention(*tensors: Any, **options: Any) -> None:
    assert all(hasattr(x.data, "ptr") for x in tensors[:4]), "an array in CPU memory reached the launcher"
    given = {name: host(x) for name, x in options.items()}
    cpu_kernels.attention(*map(host, tensors), **given, isa=get_isa())


def _run_problem(problem: Any, backend: str) -> None:
    if nothing_to_compute(problem):  # CuPy fills arrays on a device only
        host(problem.out).fill(0)
        if problem.lse is not None:
            host(problem.lse).fill(-np.inf)
    else:
        run(problem, backend)


def _compiled(configuration: Any, card: Any) -> Compiled:
    def function(grid: Any, block: Any, arguments: Any) -> None:
        host_kernel.run(configuration, arguments[0].tobytes(), grid[0])

    return Compiled(function, 40)


class _Uploaded:
    """What `upload` returns: memory that says where it lies."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.copy()
        self.ptr = self.array.__array_interface__["data"][0]


def _upload(array: np.ndarray, into: Any = None) -> Any:
    if into is None:
        return _Uploaded(array)
    flat = _Memory(types.SimpleNamespace(
        shape=(array.nbytes,), strides=(1,), itemsize=1, data=types.SimpleNamespace(ptr=into.ptr)
    ))  # fmt: skip
    np.asarray(flat).view(np.uint8)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return into


def _move(new: Any, old: Any, index: Any) -> None:
    host(new)[index] = host(old)[index]


def _run(function: Any, *args: Any, **options: Any) -> Any:
    """What gpu_arrays.run does, with arrays that need not be moved."""
    moved = {
        name: over(x) if isinstance(x, np.ndarray) and name not in gpu_arrays.SMALL else x
        for name, x in options.items()
    }
    result = function(*(over(x) for x in args), **moved, backend="gpu")
    results = [host(x) for x in (result if isinstance(result, tuple) else (result,))]
    if options.get("out") is not None:
        results[0] = options["out"]
    return tuple(results) if isinstance(result, tuple) else results[0]


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put host memory in the GPU's place until the test ends."""
    import cupy

    @contextlib.contextmanager
    def scope(kind: str) -> Iterator[None]:
        assert kind.endswith(" cuda:0")
        yield

    stream = Stream()
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1)
    cuda = types.SimpleNamespace(get_current_stream=lambda: stream, Event=Event, runtime=runtime)
    fake = types.SimpleNamespace(cuda=cuda, ndarray=cupy.ndarray)
    card = gpu.Card(0, "Host memory", (8, 0), 4, 2048, 65536, 96 * 1024, 96 * 1024)

    def zeros(shape: Any, dtype: Any, what: str = "") -> Any:
        return over(np.zeros(shape, dtype))

    def empty(shape: Any, dtype: Any, kind: str, name: str) -> Any:
        return over(np.empty(shape, dtype))

    monkeypatch.setattr(gpu, "card", lambda number=None: card)
    for module in (gpu, cache_rows):
        monkeypatch.setattr(module, "load_cupy", lambda: fake)
        monkeypatch.setattr(module, "upload", _upload)
        monkeypatch.setattr(module, "zeros", zeros)
    for module in (cache_rows, launch):
        monkeypatch.setattr(module, "card", lambda number=None: card)
        monkeypatch.setattr(module, "compiled", _compiled)
    for module in (gpu, launch):
        monkeypatch.setattr(module, "get_atom", lambda number=None: 80)
    monkeypatch.setattr(gpu, "attention", _attention)
    monkeypatch.setattr(cache_device, "scope", scope)
    monkeypatch.setattr(cache, "run", _run_problem)
    monkeypatch.setattr(validate, "empty", empty)
    for storage in (cache_device.DeviceContiguous, cache_device.DevicePaged):
        monkeypatch.setattr(storage, "_move", staticmethod(_move))
    monkeypatch.setattr(gpu_arrays, "to_device", lambda x: over(x if x.flags.aligned else x.copy()))
    monkeypatch.setattr(gpu_arrays, "run", _run)
    monkeypatch.setattr(gpu_arrays, "to_host", lambda x: host(x).copy())
