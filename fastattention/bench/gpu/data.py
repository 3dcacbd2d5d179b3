"""The arrays of a case on the device: random, never zeros, and so many caches that none waits in the L2.

Decode reads a cache once and then the next one; before a cache comes again, at least `passed_bytes` of others
have passed, more than any L2 keeps. A cache that is larger than that by itself needs no others. Prefill is
limited by arithmetic and has one set of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import gpu
from .cases import GpuCase

__all__ = ["Cache", "Data", "bits", "caches_of", "device_bytes", "make_data", "passed_bytes", "to_float64"]

_LEAST_PASSED = 256 * 2**20
_DRAFT_ROWS = 2**18  # of int8 rows in float32, at a time
_SLACK = 512 * 2**20  # kernels, workspaces, what libraries keep


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values, (B, Hkv, Sk, D), or with pages (pages, Hkv, page_size, D); CuPy arrays.

    `k_scales`, `v_scales`: float32, of int8 rows. `block_table`: int32 (B, pages of a sequence), and
    `kv_lengths`: int64 (B,), with pages.
    """

    k: Any
    v: Any
    k_scales: Any = None
    v_scales: Any = None
    block_table: Any = None
    kv_lengths: Any = None

    def head(self, sequence: int, kv_head: int) -> tuple[Any, Any]:
        """Return keys and values of one KV head of one sequence in float64, (Sk, D): CuPy arrays."""
        return (
            self._rows(self.k, self.k_scales, sequence, kv_head),
            self._rows(self.v, self.v_scales, sequence, kv_head),
        )

    def _rows(self, array: Any, scales: Any, sequence: int, kv_head: int) -> Any:
        pages = sequence if self.block_table is None else self.block_table[sequence]
        rows = to_float64(bits(array)[:, kv_head][pages], array.dtype).reshape(-1, array.shape[-1])
        return rows if scales is None else rows * scales[:, kv_head][pages].reshape(-1, 1)


@dataclass(frozen=True, slots=True)
class Data:
    """Queries (B, Hq, Sq, D) and the caches that take turns."""

    q: Any
    caches: list[Cache] = field(default_factory=list)


def bits(array: Any) -> Any:
    """Return a CuPy array that CuPy can index and compare: bfloat16 as the 16 bits that it is."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def to_float64(array: Any, dtype: np.dtype[Any]) -> Any:
    """Return `bits` of an array of `dtype` in float64."""
    if dtype.name == "bfloat16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float64)


def passed_bytes(l2_bytes: int) -> int:
    """Return how many bytes pass before a cache is read again: four times the L2, and 256 MiB at least."""
    return max(_LEAST_PASSED, 4 * l2_bytes)


def caches_of(case: GpuCase, l2_bytes: int) -> int:
    """Return how many caches take turns."""
    passed = passed_bytes(l2_bytes)
    if case.kind != "decode" or case.kv_bytes >= passed:
        return 1
    return 1 + -(-passed // case.kv_bytes)


def device_bytes(case: GpuCase, l2_bytes: int) -> int:
    """Return how much of the device's memory a row takes: its arrays, everybody's outputs, some room."""
    width = 4 if case.q_dtype == "float32" else 2
    queries = case.batch * case.q_heads * case.q_len * case.head_dim * width
    return case.kv_bytes * caches_of(case, l2_bytes) + 8 * queries + _SLACK


def make_data(case: GpuCase, card: gpu.Card, l2_bytes: int, seed: int = 0) -> Data:
    """Draw the arrays of a case: standard normal, int8 rows rounded from such by their largest entry."""
    seeds = iter(range(seed, seed + 10**6))
    queries = (case.batch, case.q_heads, case.q_len, case.head_dim)
    q = gpu.rates.normal(card, queries, case.q_dtype, seed=next(seeds))
    caches = []
    for _ in range(caches_of(case, l2_bytes)):
        rows: tuple[int, ...] = (case.batch, case.kv_heads, case.k_len)
        table = lengths = None
        if case.page_size is not None:
            cupy = gpu.load_cupy()
            pages = case.k_len // case.page_size
            # Shuffled over all sequences, as after long use.
            order = np.random.default_rng(next(seeds)).permutation(case.batch * pages)
            table = cupy.asarray(order.astype(np.int32).reshape(case.batch, pages))
            lengths = cupy.full(case.batch, case.k_len, np.int64)
            rows = (case.batch * pages, case.kv_heads, case.page_size)
        k, k_scales = _rows(case, card, (*rows, case.head_dim), next(seeds))
        v, v_scales = _rows(case, card, (*rows, case.value_dim), next(seeds))
        caches.append(Cache(k, v, k_scales, v_scales, table, lengths))
    return Data(q, caches)


def _rows(case: GpuCase, card: gpu.Card, shape: tuple[int, ...], seed: int) -> tuple[Any, Any]:
    if case.dtype != "int8":
        return gpu.rates.normal(card, shape, case.dtype, seed=seed), None
    cupy = gpu.load_cupy()
    out, scales = cupy.empty(shape, np.int8), cupy.empty(shape[:-1], np.float32)
    rows, flat = out.reshape(-1, shape[-1]), scales.reshape(-1, 1)
    for part, start in enumerate(range(0, len(rows), _DRAFT_ROWS)):
        stop = min(start + _DRAFT_ROWS, len(rows))
        draft = gpu.rates.normal(
            card, (stop - start, shape[-1]), "float32", seed=seed + 10**6 * (part + 1)
        )  # fmt: skip
        scale = cupy.abs(draft).max(axis=1, keepdims=True) / np.float32(127)
        rows[start:stop] = cupy.rint(draft / scale).astype(np.int8)
        flat[start:stop] = scale
    return out, scales
