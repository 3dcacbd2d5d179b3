"""A GPU and its bus in numbers, measured in seconds."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import numpy as np

from .. import cpu_kernels, gpu
from ..attention import attention
from ..config import get_isa
from ..runtime.cuda_device import CudaDevice
from ..runtime.layers import cpu_threads
from ..runtime.rows import Rows, plane_shapes

__all__ = ["measure"]


def _seconds(cupy: Any, work: Any, repeats: int = 5, before: Any = None) -> float:
    work()
    times = []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        if before is not None:
            before()
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
        _fill(held)
        room = cupy.empty((1, 1, nbytes), np.uint8)
        stream = device.stream()

        with stream:
            found["bus"] = nbytes / _seconds(cupy, partial(device.copy, stream, room, held))
        found["host_bandwidth"] = _both(
            partial(_upload, device, stream, room, held), nbytes, cpu_attention_rate
        )
        found["latency"] = _latency(cupy, device, stream, held, partial(device.copy, stream, room, held))
        found["queue"] = _queueing(cupy, device)
        half = nbytes // 2
        copying = _seconds(cupy, partial(cupy.copyto, room[:, :, :half], room[:, :, half : 2 * half]))
        found["gpu_bandwidth"] = 2 * half / copying  # a copy reads and writes
        del room
        normal = cupy.random.default_rng(0).standard_normal
        a = normal((8192, 4096), dtype=np.float32).astype(np.float16)
        b = normal((4096, 8192), dtype=np.float32).astype(np.float16)
        found["gpu_flops"] = 2 * 8192 * 4096 * 8192 / _seconds(cupy, partial(cupy.matmul, a, b))
        # A chunk of a long prompt: most of its keys lie before it.
        q = normal((1, 32, 4096, 128), dtype=np.float32).astype(np.float16)
        k, v = normal((2, 1, 8, 32768, 128), dtype=np.float32).astype(np.float16)
        causal = _seconds(cupy, partial(attention, q, k, v, causal=True))
        found["gpu_attention_flops"] = 4 * 32 * 128 * 4096 * (32768 - 4095 / 2) / causal
        del a, b, q, k, v
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


def _queueing(cupy: Any, device: CudaDevice) -> float:
    """Return the seconds in which a layer is queued: attention, append, four products, four kernels."""
    rows = Rows(tuple(device.zeros(*plane) for plane in plane_shapes(1, 8, 128, np.dtype(np.float16), 64)))
    x, matrix = cupy.zeros((1, 1024), np.float16), cupy.zeros((1024, 1024), np.float16)
    out, q = cupy.empty((1, 1024), np.float16), cupy.zeros((1, 32, 1, 128), np.float16)
    k, attended = cupy.zeros((1, 8, 1, 128), np.float16), cupy.empty_like(q)
    times = []
    for _ in range(40):
        rows.length = 0
        start = time.perf_counter()
        device.append(rows, k, k)
        device.attend(rows, q, attended, None, causal=True)
        for _ in range(4):
            cupy.matmul(x, matrix, out=out)
            device.hand(out, x)
        times.append(time.perf_counter() - start)
    cupy.cuda.get_current_stream().synchronize()
    return float(np.median(times))


def _fill(held: Any) -> None:
    """Write float16 numbers of order 1."""
    some = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16).view(np.uint8)
    flat = held.reshape(-1)
    for first in range(0, flat.size, some.size):
        part = flat[first : first + some.size]
        part[...] = some[: part.size]


def _latency(cupy: Any, device: CudaDevice, stream: Any, held: Any, before: Any) -> float:
    """Return the seconds of a layer's trip that do not grow with its cache.

    Queries go down, the CPU attends, outputs come up. Beside the way there and back these are waking its
    threads, and waiting for the last one. From trips through all of the memory, in pieces of two sizes, with
    seconds a + b n: twice the trip through n bytes less the one through 2 n. No less than a trip to one key.
    """
    heads, kv_heads, dim = 32, 8, 128
    row = 2 * kv_heads * dim * 2
    tokens = min(8192, held.size // (4 * row))
    down = device.host_array((1, 1, heads + 2 * kv_heads, dim), np.float16)
    up = device.host_array((1, 1, heads, dim), np.float16)
    try:
        _fill(down.view(np.uint8))
        q, k, v = np.split(down.swapaxes(1, 2), [heads, heads + kv_heads], axis=1)
        there, back = cupy.array(down), cupy.zeros(up.shape, np.float16)
        here, result = device.mapped(down), device.mapped(up)

        def trip(count: int, keys: int) -> float:
            """Return a trip's seconds, with so many keys in the piece and so many of them attended to."""
            steps = []
            for first in range(0, held.size - count * row + 1, count * row):
                piece = held.reshape(-1)[first : first + count * row].view(np.float16)
                step = cpu_kernels.HostStep(
                    q, tuple(piece.reshape(2, 1, kv_heads, count, dim)), up.swapaxes(1, 2), None, k, v,
                    scale=dim**-0.5, isa=get_isa(), num_threads=cpu_threads(), failed=np.zeros(1, np.int32),
                )  # fmt: skip
                step.set_range(0, keys)
                steps.append(step)

            def trips() -> None:
                for step in steps:
                    device.hand(here, there)
                    device.call(stream, step)
                    device.hand(back, result)

            # Queued behind a copy that takes longer than queueing them, as a token's layers are.
            with stream:
                return _seconds(cupy, trips, before=before) / len(steps)

        return max(trip(tokens, 1), 2 * trip(tokens, tokens) - trip(2 * tokens, 2 * tokens))
    finally:
        device.free_host(down)
        device.free_host(up)
