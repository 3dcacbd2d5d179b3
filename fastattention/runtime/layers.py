"""Where one layer's keys and values lie, and what a step needs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import cpu_kernels
from ..config import get_isa, num_threads
from .device import Device
from .rows import Rows, plane_shapes

__all__ = ["Exchange", "Holdings", "HostLayer", "Sizes", "cpu_threads"]

Array = NDArray[Any]


def cpu_threads() -> int:
    """Return how many threads CPU attention gets beside a GPU: all but one, of several.

    The driver makes the calls, the program queues: with all cores at work, one of the threads waits for its
    core each time, and all others for it. (15 threads of 16 cores took 0.28 ms for a layer that 16 took 0.40
    for, on the host of an H200.)
    """
    return max(1, num_threads() - 1)


@dataclass(frozen=True)
class Sizes:
    """What all layers of a cache have in common.

    Attributes
    ----------
    batch, q_heads, kv_heads, head_dim : int
        B, Hq, Hkv, D.
    dtype, compute_dtype : dtype
        Of the cache, and of queries and outputs.
    capacity : int
        Most tokens of a sequence.
    """

    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: np.dtype[Any]
    compute_dtype: np.dtype[Any]
    capacity: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one sequence in one layer."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.planes(1, batch=1))

    def planes(self, tokens: int, batch: int | None = None) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return shapes and dtypes of a layer's planes for so many tokens."""
        return plane_shapes(batch or self.batch, self.kv_heads, self.head_dim, self.dtype, tokens)

    def rows(self, device: Device, tokens: int, batch: int | None = None) -> Rows:
        """Return room on the device for so many tokens."""
        return Rows(tuple(device.zeros(*plane) for plane in self.planes(tokens, batch)))

    def split(self, qkv: Any) -> tuple[Any, Any, Any]:
        """Return queries, keys and values, (B, H, S, D), of rows (B, S, Hq + 2 Hkv, D): views."""
        by_head = qkv.swapaxes(1, 2)
        last = self.q_heads + self.kv_heads
        return by_head[:, : self.q_heads], by_head[:, self.q_heads : last], by_head[:, last:]


class Holdings:
    """What is taken of a device besides its memory, host memory and streams, to be given back together."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._arrays: list[Array] = []
        self._streams: list[Any] = []

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return zeros in host memory: `Device.host_array`."""
        self._arrays.append(self._device.host_array(shape, np.dtype(dtype)))
        return self._arrays[-1]

    def stream(self) -> Any:
        """Return a new stream."""
        self._streams.append(self._device.stream())
        return self._streams[-1]

    def close(self) -> None:
        """Give all of it back; nothing may be queued on the streams."""
        while self._arrays:
            self._device.free_host(self._arrays.pop())
        while self._streams:
            self._device.release(self._streams.pop())


class Exchange:
    """What one part of the batch hands to the CPU for a token, and what comes back: in host memory.

    Down go query, key and value of the new token as the layer made them. Up comes the output, and, for layers
    that the GPU attends to as well, the log-sum-exp.

    Parameters
    ----------
    device : Device
    held : Holdings
    sizes : Sizes
    rows : slice
        Of the batch.

    Attributes
    ----------
    stream : stream
        For the CPU's steps where the device attends to the same layer meanwhile.
    qkv, out, lse : ndarray, shape (B', 1, Hq + 2 Hkv, D), (B', 1, Hq, D), (B', Hq, 1)
        As the CPU sees them.
    qkv_there, out_there, lse_there : array
        As the device does: `Device.mapped`.
    """

    def __init__(self, device: Device, held: Holdings, sizes: Sizes, rows: slice) -> None:
        batch, heads = rows.stop - rows.start, sizes.q_heads + 2 * sizes.kv_heads
        self.stream = held.stream()
        self.qkv = held.array((batch, 1, heads, sizes.head_dim), sizes.compute_dtype)
        self.out = held.array((batch, 1, sizes.q_heads, sizes.head_dim), sizes.compute_dtype)
        self.lse = held.array((batch, sizes.q_heads, 1), np.float32)
        self.qkv_there, self.out_there, self.lse_there = map(device.mapped, (self.qkv, self.out, self.lse))


class HostLayer:
    """A layer's cache in host memory, and the CPU's work on it.

    Parameters
    ----------
    held : Holdings
    sizes : Sizes
    way : {"host", "split", "upload"}
        Who attends to it when tokens are decoded.
    """

    def __init__(self, held: Holdings, sizes: Sizes, way: str) -> None:
        self.way = way
        self.planes = tuple(held.array(*plane) for plane in sizes.planes(sizes.capacity))
        self.steps: list[cpu_kernels.HostStep] = []

    def prepare(
        self, sizes: Sizes, parts: Sequence[slice], exchanges: Sequence[Exchange], threads: int, failed: Array
    ) -> None:
        """Make the CPU's steps, one for each part of the batch."""
        for rows, exchange in zip(parts, exchanges, strict=True):
            q, k, v = sizes.split(exchange.qkv)
            self.steps.append(
                cpu_kernels.HostStep(
                    q, tuple(plane[rows] for plane in self.planes), exchange.out.swapaxes(1, 2),
                    exchange.lse if self.way == "split" else None, k, v,
                    scale=sizes.head_dim**-0.5, isa=get_isa(), num_threads=threads, failed=failed,
                )
            )  # fmt: skip
