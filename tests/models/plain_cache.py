"""A device and a cache with the methods of the runtime's own, over KV caches in CPU memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastattention import KVCache


class PlainDevice:
    """CPU memory; everything happens when it is called."""

    xp = np

    def __init__(self) -> None:
        self.host_bytes = 0  # taken and not given back

    def stream(self) -> None:
        return None

    @contextlib.contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        yield

    def array(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def host(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        made = np.zeros(shape, dtype)
        self.host_bytes += made.nbytes
        return made

    def free_host(self, array: np.ndarray) -> None:
        self.host_bytes -= array.nbytes

    def normal(self, seed: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def wait(self) -> None:
        pass


class PlainCache:
    """Every layer a `KVCache` for each part of the batch; calls must come in order, in their part's stream.

    `fail` is called with (layer, part) before each attention, and may raise.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, kv_heads: int, head_dim: int, *, capacity: int,
        chunk: int = 512, halves: int = 1, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        self.capacity, self.chunk, self.heads, self.kv_heads = capacity, chunk, heads, kv_heads
        self.whole = slice(0, batch)
        self.parts = [self.whole] if halves == 1 else [slice(0, batch // 2), slice(batch // 2, batch)]
        self.length = 0
        self.fail: Any = lambda layer, part: None
        self._caches = [
            [
                KVCache(part.stop - part.start, kv_heads, head_dim, dtype=dtype, max_length=capacity)
                for part in self.parts
            ]
            for _ in range(layers)
        ]
        self._turns: list[tuple[int, int]] = []
        self._stream: int | None = None

    @contextlib.contextmanager
    def step(self, count: int = 1) -> Iterator[None]:
        if not 1 <= count <= min(self.chunk, self.capacity - self.length):
            raise ValueError("count")
        parts = len(self.parts) if count == 1 else 1
        self._turns = [(layer, part) for layer in range(len(self._caches)) for part in range(parts)]
        self._count = count
        try:
            yield
            assert not self._turns, f"layers that were left out: {self._turns}"
            self.length += count
        except BaseException:
            self.truncate(self.length)
            raise

    @contextlib.contextmanager
    def stream(self, part: int = 0) -> Iterator[None]:
        before, self._stream = self._stream, part
        yield
        self._stream = before

    def attend(self, layer: int, qkv: np.ndarray, out: np.ndarray, part: int = 0) -> None:
        assert (layer, part) == self._turns.pop(0)
        assert self._stream == part
        self.fail(layer, part)
        qkv, out = np.asarray(qkv), np.asarray(out)  # arrays may play a device's
        assert qkv.flags.c_contiguous
        assert out.flags.c_contiguous
        own = [(self._caches[layer][part], slice(None))]
        if self._count > 1:
            own = list(zip(self._caches[layer], self.parts, strict=True))
        for cache, rows in own:
            q, k, v = np.split(qkv[rows].swapaxes(1, 2), [self.heads, self.heads + self.kv_heads], axis=1)
            cache.append(k, v)
            cache.attend(q, causal=True, out=out[rows].swapaxes(1, 2))

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)
        for caches in self._caches:
            for cache in caches:
                cache.truncate(self.length)

    def statistics(self) -> dict[str, float]:
        return {"cpu_seconds": 0.0}

    def close(self) -> None:
        self._caches = []
