"""What bus, CPU and memories do at most, alone and beside each other: what offloading is judged by.

All figures come from registered host memory, as the runtime's caches lie in it, and from more of it than any
cache of a processor holds: the same half gigabyte attended to twice would come from the L3 of a large server.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import attention, cpu_kernels
from ...own_thread import in_own_thread
from ..limits import READ_WAYS, probe_read

__all__ = ["UNITS", "HostLimits", "Sizes", "l3_bytes", "sizes"]

#: Every limit, and its unit.
UNITS = {
    "bus up": "GB/s",
    "bus down": "GB/s",
    "CPU attention": "GB/s",
    "bus up, both at once": "GB/s",
    "CPU attention, both at once": "GB/s",
    "host read": "GB/s",
    "GPU copy": "GB/s",
    "trip": "µs",
}

_QUEUED = 8  # copies before a wait: a gigabyte, so that being woken costs no percent of their time
_WITHIN = 256  # likewise of copies within the GPU
_TRIPS = 64  # likewise
_DRAFT = 2**20  # random numbers that fill the memory, over and over


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the probes read: the caches of so many layers, in float16."""

    layers: int
    tokens: int
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def layer_bytes(self) -> int:
        """Keys and values of one layer."""
        return 4 * self.kv_heads * self.tokens * self.head_dim

    @property
    def nbytes(self) -> int:
        """Of all layers."""
        return self.layers * self.layer_bytes


def sizes(l3_bytes: int) -> Sizes:
    """Return layers of 32768 tokens, 134 MB each: four times the L3 in all, and at least a gigabyte."""
    layer = Sizes(1, 32768)
    return Sizes(max(8, math.ceil(4 * l3_bytes / layer.layer_bytes)), layer.tokens)


class _Nothing:
    """An empty call on the host: ``free(NULL)``, which C defines as nothing to do."""

    function = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p).value or 0
    argument = 0

    def run(self) -> None:
        """Do nothing here, either."""


class _Pause:
    """A call on the host that takes longer than queueing a few trips: ``usleep``."""

    function = ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value or 0
    argument = 10_000  # microseconds

    def run(self) -> None:
        """Pause here."""
        time.sleep(1e-6 * self.argument)


class HostLimits:
    """The probes, and the memory that they read.

    Parameters
    ----------
    device : Device
        See `fastattention.runtime`.
    sizes : Sizes
    threads : int
        Of CPU attention.
    """

    def __init__(self, device: Any, sizes: Sizes, threads: int) -> None:
        self._device, self._sizes, self.threads = device, sizes, threads
        self._stream = device.stream()
        shape = (sizes.layers, 2, sizes.kv_heads, sizes.tokens, sizes.head_dim)
        self._host: NDArray[Any] = device.host_array(shape, np.float16)
        rng = np.random.default_rng(0)
        draft = rng.standard_normal(_DRAFT, dtype=np.float32).astype(np.float16)
        flat = self._host.reshape(-1)
        for start in range(0, flat.size, _DRAFT):
            part = flat[start : start + _DRAFT]
            part[...] = draft[: part.size]
        # One call for all layers, as if each were a sequence: what a call costs beside reading is `trip`.
        query = (sizes.layers, sizes.q_heads, 1, sizes.head_dim)
        self._q = rng.standard_normal(query, dtype=np.float32).astype(np.float16)
        self._out = np.empty_like(self._q)
        self._read_way: int | None = None
        with device.use(self._stream):
            self._there = [device.xp.zeros(shape[1:], np.float16) for _ in range(2)]
            for number, there in enumerate(self._there):
                device.copy(self._stream, there, self._host[number % sizes.layers])
        small = (1, 1, (sizes.q_heads + 2 * sizes.kv_heads) * sizes.head_dim)
        self._small_host = device.host_array(small, np.float16)
        with device.use(self._stream):
            self._small = device.xp.zeros(small, np.float16)
            self._small_mapped = device.mapped(self._small_host)
        device.wait()
        self._probes: dict[str, Callable[[float], dict[str, float]]] = {
            "bus up": lambda seconds: {"bus up": self._copies(self._up, seconds)},
            "bus down": lambda seconds: {"bus down": self._copies(self._down, seconds)},
            "CPU attention": lambda seconds: {"CPU attention": self._attention(seconds)},
            "both": self._both,
            "host read": lambda seconds: {"host read": self._read(seconds)},
            "GPU copy": lambda seconds: {"GPU copy": self._copies(self._within, seconds, _WITHIN)},
            "trip": lambda seconds: {"trip": self._trip(seconds)},
        }

    def measure(self, seconds: float, *names: str) -> dict[str, float]:
        """Return limits now, by name: GB/s (1e9 bytes), of copies within the GPU read and written, or µs.

        Parameters
        ----------
        seconds : float
            For each probe.
        *names : str
            Of `UNITS`; all when none is named.
        """
        wanted = names or tuple(UNITS)
        found: dict[str, float] = {}
        for probe, call in self._probes.items():
            if any(name == probe or (probe == "both" and name.endswith("both at once")) for name in wanted):
                found |= call(seconds)
        return {name: found[name] for name in wanted}

    def close(self) -> None:
        """Give the memory back; more than once does no harm."""
        if not self._there:
            return
        self._device.wait()
        self._device.free_host(self._host)
        self._device.free_host(self._small_host)
        self._there.clear()

    def _up(self, number: int) -> int:
        self._device.copy(self._stream, self._there[number % 2], self._host[number % self._sizes.layers])
        return self._sizes.layer_bytes

    def _down(self, number: int) -> int:
        self._device.copy(self._stream, self._host[number % self._sizes.layers], self._there[number % 2])
        return self._sizes.layer_bytes

    def _within(self, number: int) -> int:
        self._device.copy(self._stream, self._there[1 - number % 2], self._there[number % 2])
        return 2 * self._sizes.layer_bytes  # read and written

    def _copies(
        self,
        queue: Callable[[int], int],
        seconds: float,
        queued: int = _QUEUED,
        ended: Callable[[], bool] | None = None,
    ) -> float:
        """Return the GB/s of copies that `queue` queues, for some seconds or until something has ended."""
        with self._device.use(self._stream):
            queue(0)  # clocks rise, pages are looked up
            self._device.wait()
            count = moved = 0
            start = time.perf_counter()
            while True:
                for _ in range(queued):
                    moved += queue(count)
                    count += 1
                self._device.wait()
                taken = time.perf_counter() - start
                if ended() if ended is not None else taken >= seconds:
                    return 1e-9 * moved / taken

    def _attention(self, seconds: float) -> float:
        def attend() -> float:
            k, v = self._host[:, 0], self._host[:, 1]
            read = 0
            start = time.perf_counter()
            while (taken := time.perf_counter() - start) < seconds or not read:
                attention(self._q, k, v, out=self._out, backend="cpu", num_threads=self.threads)
                read += self._sizes.nbytes
            return 1e-9 * read / taken

        return in_own_thread(attend)

    def _both(self, seconds: float) -> dict[str, float]:
        over = threading.Event()
        found: list[float] = []
        problems: list[Exception] = []

        def upload() -> None:
            try:
                found.append(self._copies(self._up, 0.0, ended=over.is_set))
            except Exception as problem:  # raised again by the thread that waits for it
                problems.append(problem)

        beside = threading.Thread(target=upload)
        beside.start()
        try:
            rate = self._attention(seconds)
        finally:
            over.set()
            beside.join()
        if problems:
            raise problems[0]
        return {"bus up, both at once": found[0], "CPU attention, both at once": rate}

    def _read(self, seconds: float) -> float:
        return in_own_thread(lambda: self._read_here(seconds))

    def _read_here(self, seconds: float) -> float:
        if self._read_way is None:
            rates = [probe_read(self._host, self.threads, way) for way in range(READ_WAYS)]
            self._read_way = rates.index(max(rates))
        best = probe_read(self._host, self.threads, self._read_way)
        repeats = max(1, math.ceil(seconds * best * 1e9 / self._host.nbytes)) if best else 1
        return probe_read(self._host, self.threads, self._read_way, repeats)

    def _trip(self, seconds: float) -> float:
        """Return microseconds of a token's rows down, an empty call on the host, and an output up."""
        alone = min(self._trips(0) for _ in range(3))
        count, taken, start = 0, 0.0, time.perf_counter()
        while not count or time.perf_counter() - start < seconds:
            taken += self._trips(_TRIPS) - alone
            count += _TRIPS
        return 1e6 * max(0.0, taken) / count

    def _trips(self, count: int) -> float:
        """Return the seconds of a pause on the host, in which so many trips are queued, and of the trips."""
        up = self._small[..., : self._sizes.q_heads * self._sizes.head_dim]
        down = self._small_mapped[..., : up.shape[-1]]
        nothing, pause = _Nothing(), _Pause()
        with self._device.use(self._stream):
            start = time.perf_counter()
            self._device.call(self._stream, pause)
            for _ in range(count):
                self._device.hand(self._small_mapped, self._small)
                self._device.call(self._stream, nothing)
                self._device.hand(up, down)
            self._device.wait()
            return time.perf_counter() - start


def l3_bytes() -> int:
    """Return the bytes of the last-level cache, as the kernels see it."""
    return int(max(cpu_kernels.cache_bytes()))
