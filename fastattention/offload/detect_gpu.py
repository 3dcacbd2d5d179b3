"""A GPU and its bus in numbers, measured in seconds."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import numpy as np

from .. import cpu_kernels, gpu
from ..attention import attention
from ..cache import KVCache
from ..config import get_isa
from ..runtime.cuda_device import CudaDevice

__all__ = ["measure"]


def _seconds(cupy: Any, work: Any, repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return float(np.median(times))


def _upload(device: CudaDevice, stream: Any, there: Any, here: Any) -> None:
    device.copy(stream, there, here)
    stream.synchronize()


def measure(nbytes: int) -> tuple[str, dict[str, Any]]:
    """Return the current GPU's name, and its numbers, the bus, and host memory under both.

    Parameters
    ----------
    nbytes : int
        Of host memory to copy from.
    """
    from .detect import cpu_attention_rate

    cupy = gpu.load_cupy()
    device = CudaDevice(int(cupy.cuda.runtime.getDevice()))
    _, total = cupy.cuda.runtime.memGetInfo()
    held = device.host_array((1, 1, nbytes), np.uint8)
    found: dict[str, Any] = {"gpu_memory": int(total)}
    try:
        held[...] = 1
        room = cupy.empty((1, 1, nbytes), np.uint8)
        stream = device.stream()

        with stream:
            found["bus"] = nbytes / _seconds(cupy, partial(device.copy, stream, room, held))
        found["host_bandwidth"] = _both(
            partial(_upload, device, stream, room, held), nbytes, cpu_attention_rate
        )
        found["latency"] = _trip(cupy, device, stream)
        found["queue"] = _queueing(cupy)
        half = nbytes // 2
        copying = _seconds(cupy, partial(cupy.copyto, room[:, :, :half], room[:, :, half : 2 * half]))
        found["gpu_bandwidth"] = 2 * half / copying  # a copy reads and writes
        del room
        a = cupy.random.standard_normal((8192, 4096), dtype=np.float32).astype(np.float16)
        b = cupy.random.standard_normal((4096, 8192), dtype=np.float32).astype(np.float16)
        found["gpu_flops"] = 2 * 8192 * 4096 * 8192 / _seconds(cupy, partial(cupy.matmul, a, b))
        q = cupy.random.standard_normal((1, 16, 4096, 128), dtype=np.float32).astype(np.float16)
        causal = _seconds(cupy, partial(attention, q, q, q, causal=True))
        found["gpu_attention_flops"] = 4 * 16 * 128 * (4096 * 4097 / 2) / causal
        del a, b, q
        # What the context, the libraries and the compiled kernels took by now, CuPy's pool aside.
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        after, _ = cupy.cuda.runtime.memGetInfo()
        found["gpu_reserved"] = max(0, int(total - after - pool.total_bytes()))
    finally:
        device.free_host(held)
    return gpu.card().name, found


def _both(upload: Any, nbytes: int, attention_rate: Any) -> float:
    """Return bytes a second of host memory, CPU attention and uploads at once."""
    stop = threading.Event()
    counted: list[float] = []

    def run() -> None:
        start, passes = time.perf_counter(), 0
        while not stop.is_set():
            upload()
            passes += 1
        counted.append(passes * nbytes / (time.perf_counter() - start))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        cpu = attention_rate()
    finally:
        stop.set()
        thread.join()
    return float(cpu + counted[0])


def _queueing(cupy: Any) -> float:
    """Return the seconds in which a layer is queued: attention, append, four products, four kernels."""
    cache = KVCache(1, 8, 128, dtype=np.float16, max_length=64, device="cuda")
    cache.reserve(64)
    x, matrix = cupy.zeros((1, 1024), np.float16), cupy.zeros((1024, 1024), np.float16)
    out, q = cupy.empty((1, 1024), np.float16), cupy.zeros((1, 32, 1, 128), np.float16)
    k = cupy.zeros((1, 8, 1, 128), np.float16)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        cache.append(k, k)
        cache.attend(q)
        for _ in range(4):
            cupy.matmul(x, matrix, out=out)
            cupy.add(out, out, out=out)
        times.append(time.perf_counter() - start)
        cache.reset()
    cupy.cuda.get_current_stream().synchronize()
    return float(np.median(times))


def _trip(cupy: Any, device: CudaDevice, stream: Any) -> float:
    """Return the seconds of a layer's trip: queries down, the CPU's attention to one key, outputs up."""
    heads, dim = 32, 128
    planes = tuple(np.zeros((1, 8, 64, dim), np.float16) for _ in range(2))
    down = device.host_array((1, 1, heads + 16, dim), np.float16)
    up = device.host_array((1, 1, heads, dim), np.float16)
    try:
        q, k, v = np.split(down.swapaxes(1, 2), [heads, heads + 8], axis=1)
        step = cpu_kernels.HostStep(
            q, planes, up.swapaxes(1, 2), None, k, v, scale=1.0, isa=get_isa(), num_threads=1,
            failed=np.zeros(1, np.int32),
        )  # fmt: skip
        step.set_range(0, 1)
        there, back = cupy.zeros(down.shape, np.float16), cupy.zeros(up.shape, np.float16)

        def trips() -> None:
            for _ in range(20):
                device.copy(stream, down, there)
                device.call(stream, step)
                device.copy(stream, back, up)

        with stream:
            return _seconds(cupy, trips) / 20
    finally:
        device.free_host(down)
        device.free_host(up)
