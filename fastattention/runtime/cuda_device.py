"""A GPU through CuPy, as the cooperative runtime uses it.

What the runtime asks for is queued: copies by CUDA's copy engines, and calls of C functions in the middle of
a stream by ``cuLaunchHostFunc``, on a thread of the driver's that knows nothing of Python. So a whole token
is queued ahead, and Python's interpreter is in nobody's way while it is computed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import gpu
from .available import available_bytes
from .device import HostCall, pitched
from .host_memory import HostMemory, numa_node_of_gpu
from .rows import Rows

__all__ = ["CudaDevice"]

Array = NDArray[Any]

_DEFAULT = 4  # cudaMemcpyDefault: addresses say which way
_PORTABLE_MAPPED = 1 | 2  # cudaHostRegisterPortable, cudaHostRegisterMapped: kernels read it where it is


class CudaDevice:
    """One GPU.

    Parameters
    ----------
    number : int
        The device's number.

    Raises
    ------
    ImportError, RuntimeError, ValueError
        As `gpu.card`.
    """

    def __init__(self, number: int) -> None:
        self.xp: Any = gpu.load_cupy()
        gpu.card(number)
        self.number = number
        self.name = f"cuda:{number}"
        self._runtime = self.xp.cuda.runtime
        self._streams: list[Any] = []
        self._memory: dict[int, HostMemory] = {}
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._driver.cuLaunchHostFunc.argtypes = [ctypes.c_void_p] * 3
        with self.xp.cuda.Device(number):
            bus = self._runtime.deviceGetPCIBusId(number)
        self._node = numa_node_of_gpu(bus if isinstance(bus, str) else bus.decode())

    def stream(self) -> Any:
        """Return a new stream."""
        with self.xp.cuda.Device(self.number):
            self._streams.append(self.xp.cuda.Stream(non_blocking=True))
        return self._streams[-1]

    def release(self, stream: Any) -> None:
        """Forget a stream."""
        self._streams.remove(stream)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        """Let CuPy's operations go to a stream."""
        with self.xp.cuda.Device(self.number), stream:
            yield

    def record(self, stream: Any) -> Any:
        """Return an event behind what is queued on a stream."""
        event = self.xp.cuda.Event(disable_timing=True)
        event.record(stream)
        return event

    def wait_event(self, stream: Any, event: Any) -> None:
        """Let a stream wait for an event."""
        stream.wait_event(event)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return zeros in memory that is registered with CUDA, near the GPU.

        Raises
        ------
        MemoryError
            There is no room, or CUDA cannot register it; what was taken was given back.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self.xp.cuda.Device(self.number):
            memory = HostMemory(
                nbytes, register=(self._register, self._runtime.hostUnregister), node=self._node
            )
        array = memory.array(shape, dtype)
        self._memory[array.ctypes.data] = memory
        return array

    def _register(self, address: int, nbytes: int) -> None:
        self._runtime.hostRegister(address, nbytes, _PORTABLE_MAPPED)

    def free_host(self, array: Array) -> None:
        """Give back an array of `host_array`."""
        address = array.ctypes.data
        self._memory[address].free()  # or it raises, and is still there
        del self._memory[address]

    def copy(self, stream: Any, to: Any, source: Any) -> None:
        """Queue a copy."""
        (to_pitch, width, lines), (pitch, same, _) = pitched(to), pitched(source)
        assert width == same
        if lines == 1 or to_pitch == pitch == width:
            self._runtime.memcpyAsync(_address(to), _address(source), width * lines, _DEFAULT, stream.ptr)
        else:
            self._runtime.memcpy2DAsync(
                _address(to), to_pitch, _address(source), pitch, width, lines, _DEFAULT, stream.ptr
            )

    def mapped(self, array: Array) -> Any:
        """Return registered host memory as kernels see it."""
        with self.xp.cuda.Device(self.number):
            return gpu.mapped(array)

    def hand(self, to: Any, source: Any) -> None:
        """Queue a copy by a kernel."""
        gpu.carry(to, source)

    def call(self, stream: Any, call: HostCall) -> None:
        """Queue a call of a C function."""
        status = self._driver.cuLaunchHostFunc(stream.ptr, call.function, call.argument)
        if status:
            raise RuntimeError(f"cuLaunchHostFunc: CUDA error {status}")

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return zeros on the GPU."""
        with self.xp.cuda.Device(self.number):
            return gpu.zeros(shape, np.dtype(dtype), "keys and values")

    def append(self, rows: Rows, k: Any, v: Any) -> None:
        """Queue keys and values behind those that are held: one launch."""
        count = k.shape[2]
        gpu.append(k, v, rows.planes, count, start=rows.length)
        rows.length += count

    def attend(self, rows: Rows, q: Any, out: Any, lse: Any, *, causal: bool) -> None:
        """Queue attention to all that is held: one launch."""
        k, v, *scales = rows.held
        k_scales, v_scales = scales or (None, None)
        gpu.attention(
            q, k, v, out, lse, scale=q.shape[-1] ** -0.5, window_right=0 if causal else -1, k_scales=k_scales,
            v_scales=v_scales,
        )  # fmt: skip

    def merge(self, outs: list[Any], lses: list[Any], out: Any, lse: Any) -> None:
        """Queue the joining of parts, eight at a time."""
        while len(outs) > 8:
            joined = self.xp.empty(outs[0].shape, np.float32)
            sums = self.xp.empty(lses[0].shape, np.float32)
            gpu.merge(outs[:8], lses[:8], joined, sums)
            outs, lses = [joined, *outs[8:]], [sums, *lses[8:]]
        gpu.merge(outs, lses, out, lse)

    def array(self, array: Array) -> Any:
        """Return a copy on the GPU."""
        with self.xp.cuda.Device(self.number):
            return self.xp.asarray(array)

    def host(self, array: Any) -> Array:
        """Return a copy in host memory."""
        with self.xp.cuda.Device(self.number):
            return np.asarray(array.get())

    def normal(self, seed: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        """Return normally distributed float32 numbers."""
        state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        bits = self.xp.random.Philox4x3210(state)
        return self.xp.random.Generator(bits).standard_normal(shape, dtype=np.float32)

    def wait(self) -> None:
        """Wait for the streams, asleep: the CPU's cores are at work."""
        events = []
        with self.xp.cuda.Device(self.number):
            for stream in (self.xp.cuda.Stream.null, *self._streams):
                events.append(self.xp.cuda.Event(block=True, disable_timing=True))
                events[-1].record(stream)
            for event in events:
                event.synchronize()

    def memory(self) -> tuple[int, int]:
        """Return the bytes that are free, CuPy's pool counted in and its limit heeded, and all."""
        with self.xp.cuda.Device(self.number):
            free, total = self._runtime.memGetInfo()
            pool = self.xp.get_default_memory_pool()
            free += pool.free_bytes()
            limit = pool.get_limit()
            if limit:
                free, total = min(free, limit - pool.used_bytes()), min(total, limit)
        return int(free), int(total)

    def host_memory(self) -> int:
        """Return the bytes of host memory that `host_array` could still give."""
        return available_bytes()


def _address(array: Any) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
