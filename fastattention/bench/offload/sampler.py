"""Memory over time: a thread that looks ten times a second, and keeps so many points as a plot can show."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from ..memory import resident
from .results import Sample

__all__ = ["Sampler", "limited", "memory_of"]

_INTERVAL = 0.1  # seconds
_MOST = 2000  # points; then every second one is dropped, and the interval doubles


class Sampler:
    """Looks at memory from `__enter__` to `__exit__`.

    Parameters
    ----------
    look : callable
        Returns the bytes that CuPy's pool has in use, that it holds, that the GPU has in use (whoever uses
        them), and that are resident of this process in host memory.
    interval : float
        Seconds between two looks.
    most : int
        Points that are kept at most.

    Attributes
    ----------
    phase : str
        What is going on; set by whoever works.
    tokens : int
        Done so far; likewise.
    samples : list of Sample
    peaks : dict of str to int
        The largest of every figure, in bytes, also of samples that were dropped.
    """

    def __init__(
        self, look: Callable[[], tuple[int, int, int, int]], interval: float = _INTERVAL, most: int = _MOST
    ) -> None:
        self._look, self._interval, self._most = look, interval, most
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._problem: Exception | None = None
        self.phase, self.tokens = "", 0
        self.samples: list[Sample] = []
        self.peaks: dict[str, int] = {}

    def __enter__(self) -> Sampler:
        self._start = time.perf_counter()
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            if self._problem is not None:
                raise self._problem
            self._take()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._interval):
                self._take()
        except Exception as problem:  # raised again where the sampler ends
            self._problem = problem

    def _take(self) -> None:
        figures = self._look()
        seconds = time.perf_counter() - self._start
        self.samples.append(Sample(round(seconds, 3), self.phase, self.tokens, *figures))
        for name, value in zip(("pool_used", "pool_total", "gpu_used", "host"), figures, strict=True):
            self.peaks[name] = max(value, self.peaks.get(name, 0))
        if len(self.samples) >= self._most:
            del self.samples[1::2]
            self._interval *= 2


def memory_of(device: Any) -> Callable[[], tuple[int, int, int, int]]:
    """Return how to look at a device's memory and at this process."""
    if device.name == "numpy":
        return lambda: (0, 0, 0, resident("VmRSS"))
    cupy = device.xp
    pool = cupy.get_default_memory_pool()

    def look() -> tuple[int, int, int, int]:
        with cupy.cuda.Device(device.number):
            free, total = cupy.cuda.runtime.memGetInfo()
        return int(pool.used_bytes()), int(pool.total_bytes()), int(total - free), resident("VmRSS")

    return look


@contextmanager
def limited(device: Any, limit: int) -> Iterator[None]:
    """Hold CuPy's pool to so many bytes, and lift that at the end; a device without a pool has no limit."""
    if device.name == "numpy":
        yield
        return
    pool = device.xp.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.get_limit()
    pool.set_limit(size=limit)
    try:
        yield
    finally:
        pool.set_limit(size=before)
