"""CPU memory that plays a device: the runtime's second array module, for whoever has no GPU.

Array operations happen when they are called. What is queued on other streams (copies, calls on the host)
happens as early or as late as a real device might do it: a runtime that forgets to wait for something gives
wrong results in one of these orders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import cpu_kernels
from ..config import get_isa
from ..reference.online_softmax import merge_normalised
from .available import available_bytes
from .device import HostCall, pitched
from .rows import Rows

__all__ = ["NumpyDevice"]

Array = NDArray[Any]


class _Stream:
    """Operations that wait for their turn; `done` counts those that had it."""

    def __init__(self, chance: float) -> None:
        self.chance = chance  # that something of it happens whenever anything is queued
        self.queue: deque[Callable[[], None]] = deque()
        self.done = 0

    def reach(self, position: int) -> None:
        """Let everything happen up to the operation of a number."""
        while self.queue and self.done < position:
            self.done += 1
            self.queue.popleft()()


class NumpyDevice:
    """A device that is CPU memory.

    Parameters
    ----------
    order : {"early", "late"} or Random, default "early"
        When queued operations happen: at once; as late as what waits for them allows; or, of some streams
        soon and of others late, by chance.
    bytes_free : int, default 2**40
        What `memory` says is free.
    """

    xp: Any = np
    name = "numpy"

    def __init__(self, order: str | Random = "early", bytes_free: int = 2**40) -> None:
        self._order = order
        self._streams: list[_Stream] = []
        self._used: list[_Stream] = []  # where array operations go now, behind what is queued there
        self._bytes = bytes_free
        self.host_bytes = 0  # that were taken and not given back

    def stream(self) -> Any:
        """Return a new stream."""
        chance = self._order.choice([0, 0.1, 0.9]) if isinstance(self._order, Random) else 0
        self._streams.append(_Stream(chance))
        return self._streams[-1]

    def release(self, stream: Any) -> None:
        """Forget a stream."""
        assert not stream.queue
        self._streams.remove(stream)

    def _queue(self, stream: _Stream, operation: Callable[[], None]) -> None:
        stream.queue.append(operation)
        if self._order == "early" or stream in self._used:
            stream.reach(stream.done + len(stream.queue))
        elif isinstance(self._order, Random):
            for other in self._order.sample(self._streams, len(self._streams)):
                while other.queue and self._order.random() < other.chance:
                    other.reach(other.done + 1)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        """Let array operations go to a stream, behind what is queued there."""
        stream.reach(stream.done + len(stream.queue))
        self._used.append(stream)
        try:
            yield
        finally:
            self._used.remove(stream)

    def record(self, stream: Any) -> Any:
        """Return an event: a position of a stream."""
        return stream, stream.done + len(stream.queue)

    def wait_event(self, stream: Any, event: Any) -> None:
        """Let a stream wait for an event."""
        other, position = event
        self._queue(stream, lambda: other.reach(position))

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return zeros."""
        array = np.zeros(shape, dtype)
        self.host_bytes += array.nbytes
        return array

    def free_host(self, array: Array) -> None:
        """Give back an array of `host_array`."""
        self.host_bytes -= array.nbytes

    def copy(self, stream: Any, to: Any, source: Any) -> None:
        """Queue a copy."""
        assert to.shape == source.shape
        assert to.dtype == source.dtype
        pitched(to)
        pitched(source)
        self._queue(stream, lambda: np.copyto(to, source))

    def mapped(self, array: Array) -> Any:
        """Return the array itself."""
        assert array.flags.c_contiguous
        return array

    def hand(self, to: Any, source: Any) -> None:
        """Copy now: an array operation."""
        assert to.shape == source.shape
        assert to.dtype == source.dtype
        assert to.flags.c_contiguous
        assert source.flags.c_contiguous
        to[...] = source

    def call(self, stream: Any, call: HostCall) -> None:
        """Queue a call."""
        self._queue(stream, call.run)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return zeros."""
        return np.zeros(shape, dtype)

    def append(self, rows: Rows, k: Any, v: Any) -> None:
        """Write keys and values, of int8 with their scales."""
        first, rows.length = rows.length, rows.length + k.shape[2]
        new = [k, v]
        if rows.planes[0].dtype == np.int8:
            (k, k_scales), (v, v_scales) = (cpu_kernels.quantize(x.astype(np.float32)) for x in new)
            new = [k, v, k_scales, v_scales]
        for plane, part in zip(rows.planes, new, strict=True):
            plane[:, :, first : rows.length] = part

    def attend(self, rows: Rows, q: Any, out: Any, lse: Any, *, causal: bool) -> None:
        """Attend by the CPU's kernels."""
        k, v, *scales = rows.held
        k_scales, v_scales = scales or (None, None)
        cpu_kernels.attention(
            q, k, v, out, lse, scale=q.shape[-1] ** -0.5, window_right=0 if causal else -1, k_scales=k_scales,
            v_scales=v_scales, isa=get_isa(),
        )  # fmt: skip

    def merge(self, outs: list[Any], lses: list[Any], out: Any, lse: Any) -> None:
        """Join parts, in float64."""
        assert lse is None or not any(np.shares_memory(lse, part) for part in lses)
        joined, sums = merge_normalised(list(zip(outs, lses, strict=True)))
        out[...] = joined
        if lse is not None:
            lse[...] = sums

    def array(self, array: Array) -> Any:
        """Return a copy."""
        return array.copy()

    def host(self, array: Any) -> Array:
        """Return a copy."""
        return np.array(array)

    def normal(self, seed: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        """Return normally distributed float32 numbers."""
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def wait(self) -> None:
        """Let everything happen that is queued."""
        for stream in self._streams:
            stream.reach(stream.done + len(stream.queue))

    def memory(self) -> tuple[int, int]:
        """Return bytes that are free, and all."""
        return self._bytes, self._bytes

    def host_memory(self) -> int:
        """Return the bytes of host memory that `host_array` could still give."""
        return available_bytes()
