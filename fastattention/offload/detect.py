"""This machine in numbers, measured in seconds: what a plan needs to know."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import cpu_kernels, gpu
from ..attention import attention
from ..own_thread import in_own_thread
from ..runtime.available import available_bytes
from ..runtime.layers import cpu_threads
from .hardware import Hardware

__all__ = ["cpu_attention_rate", "detect"]

_D, _HEADS, _KV_HEADS = 128, 32, 8


def cpu_attention_rate(nbytes: int = 1 << 30, *, threads: int | None = None, seconds: float = 0.6) -> float:
    """Return the bytes of a cache a second that CPU attention reads: 32 heads on 8, float16, D=128.

    Parameters
    ----------
    nbytes : int
        Of the cache, to be larger than what the CPU's own caches keep.
    threads : int, optional
        Default: `cpu_threads`.
    seconds : float
        For how long to measure, at least three calls.
    """
    rows = max(256, nbytes // (2 * _KV_HEADS * _D * 2))
    # Random bits that are numbers of order 1: sign and fraction at random, few exponents.
    bits = np.random.default_rng(0).integers(0, 1 << 16, (2, 1, _KV_HEADS, 1024, _D), np.uint16)
    some = ((bits & 0x87FF) | 0x3800).view(np.float16)
    k, v = np.resize(some, (2, 1, _KV_HEADS, rows, _D))
    q = np.ones((1, _HEADS, 1, _D), np.float16)
    count = threads or cpu_threads()
    return (k.nbytes + v.nbytes) / in_own_thread(
        lambda: _median(lambda: attention(q, k, v, num_threads=count), seconds)
    )


def _median(work: Callable[[], Any], seconds: float) -> float:
    work()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def detect(**numbers: Any) -> Hardware:
    """Measure this machine: a few seconds, a gigabyte of host memory and a few of the GPU's.

    Parameters
    ----------
    **numbers
        What is known already, by its name in `Hardware`; it is not measured.

    Returns
    -------
    Hardware

    Raises
    ------
    RuntimeError
        There is no GPU that can be used, and its numbers are not all given: `gpu_memory`, `gpu_bandwidth`,
        `gpu_flops`, `gpu_attention_flops` and `bus`.
    TypeError, ValueError
        A number is unknown, or not above 0.
    """
    found: dict[str, Any] = {}
    room = available_bytes()
    found["host_memory"], found["host_reserved"] = room, 0
    # Four times what the last cache keeps: a server's may hold a third of a gigabyte.
    size = min(max(1 << 30, 4 * max(cpu_kernels.cache_bytes())), room // 8)
    if "cpu" not in numbers:
        found["cpu"] = cpu_attention_rate(size)
    reason = gpu.why_not()
    card_numbers = ("gpu_memory", "gpu_bandwidth", "gpu_flops", "gpu_attention_flops", "bus")
    missing = [name for name in card_numbers if name not in numbers]
    source = f"measured here: {cpu_threads()} threads of {cpu_kernels.available_isas()[-1]}"
    if not reason:
        from .detect_gpu import measure

        name, measured = measure(size)
        found |= measured
    elif missing:
        raise RuntimeError(
            f"hardware: this machine has no GPU that can be measured ({reason}); name one of the presets, or "
            f"give {', '.join(missing)}"
        )
    else:
        name = "this host with the GPU that was given"
        bus = float(numbers["bus"])
        found |= {"gpu_reserved": 0, "latency": 60e-6, "queue": 250e-6}
        # Without a card nobody can read beside the CPU: what it reads alone is what there is.
        found["host_bandwidth"] = max(found.get("cpu", numbers.get("cpu", bus)), bus)
        source += "; the GPU's numbers were given; 60 us for a trip to the CPU, 250 to queue a layer: assumed"
    found |= {"name": name, "source": source}
    return Hardware(**{**{field: found[field] for field in found if field not in numbers}, **numbers})
