"""The arrays of a case: random, never zeros, where the kernels and the limit's probe find the same bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import DTYPES, Case

__all__ = ["Data", "make_data"]

_PAGE = 4096  # bytes, of the system's memory
_LINE = 64
_DRAFT_ROWS = 8192  # drawn at a time: keeps the float32 draft of a large cache small


@dataclass(frozen=True, slots=True)
class Data:
    """The arrays of a case. k, v and their scales are parts of the one buffer `kv`.

    Attributes
    ----------
    q : ndarray
        (B, Hq, Sq, D), of the case's `q_dtype`.
    k, v : ndarray
        (B, Hkv, Sk, D) and (B, Hkv, Sk, Dv); with pages (pages, Hkv, page_size, D) and likewise.
    kv : ndarray
        uint8, contiguous: all that a decoding kernel has to read, and nothing else.
    mask : ndarray or None
        (1, 1, Sq, Sk), bool or float32.
    k_scales, v_scales : ndarray or None
        float32, k's shape without its last axis: row j of k is ``k_scales[j] * k[j]``. Of int8 caches only.
    block_table : ndarray or None
        int32 (B, Sk / page_size): the pages of each sequence, in order.
    """

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    kv: NDArray[Any]
    mask: NDArray[Any] | None
    k_scales: NDArray[Any] | None = None
    v_scales: NDArray[Any] | None = None
    block_table: NDArray[Any] | None = None

    def head(self, batch: int, kv_head: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return keys and values of one KV head of one sequence as attention means them: (1, 1, Sk, D or Dv).

        Pages are put in order; int8 is multiplied by its scales, in float64, which is exact.
        """
        return (
            self._rows(self.k, self.k_scales, batch, kv_head),
            self._rows(self.v, self.v_scales, batch, kv_head),
        )

    def _rows(
        self, array: NDArray[Any], scales: NDArray[Any] | None, batch: int, kv_head: int
    ) -> NDArray[Any]:
        pages = batch if self.block_table is None else self.block_table[batch]
        rows: NDArray[Any] = array[pages, kv_head].reshape(-1, array.shape[-1])
        if scales is not None:
            rows = rows.astype(np.float64) * scales[pages, kv_head].reshape(-1, 1)
        return rows.reshape(1, 1, *rows.shape)


def _aligned(size: int) -> NDArray[np.uint8]:
    # From the start of a page, so that no library is favoured by chance.
    raw = np.empty(size + _PAGE, dtype=np.uint8)
    start = -raw.ctypes.data % _PAGE
    return raw[start : start + size]


def _parts(parts: list[tuple[tuple[int, ...], np.dtype]]) -> tuple[NDArray[np.uint8], list[NDArray[Any]]]:
    """Return one buffer and, one after the other in it, arrays of these shapes and dtypes."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in parts]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + math.ceil(size / _LINE) * _LINE)
    buffer = _aligned(starts[-2] + sizes[-1])
    arrays: list[NDArray[Any]] = [
        buffer[start : start + size].view(dtype).reshape(shape)
        for start, size, (shape, dtype) in zip(starts, sizes, parts, strict=False)
    ]
    return buffer, arrays


def _fill(rng: np.random.Generator, array: NDArray[Any], scales: NDArray[Any] | None = None) -> None:
    """Fill with standard normal rows, rounded to the array's dtype; int8 by the largest entry of each row."""
    rows = array.reshape(-1, array.shape[-1])
    for start in range(0, len(rows), _DRAFT_ROWS):
        part = rows[start : start + _DRAFT_ROWS]
        draft = rng.standard_normal(part.shape, dtype=np.float32)
        if scales is not None:
            scale = np.abs(draft).max(axis=1, keepdims=True) / np.float32(127)
            scales.reshape(-1, 1)[start : start + _DRAFT_ROWS] = scale
            draft = np.rint(draft / scale)
        part[...] = draft


def without_pages(case: Case, data: Data) -> Data:
    """Return the memory of a paged cache as that of a contiguous one, holding other sequences."""

    def rows(pages: NDArray[Any]) -> NDArray[Any]:
        return pages.reshape(case.batch, case.kv_heads, case.k_len, *pages.shape[3:])

    return replace(
        data,
        k=rows(data.k),
        v=rows(data.v),
        k_scales=None if data.k_scales is None else rows(data.k_scales),
        v_scales=None if data.v_scales is None else rows(data.v_scales),
        block_table=None,
    )


def make_data(case: Case, seed: int = 0) -> Data:
    """Return standard normal q, k, v and, if the case has one, a mask: half true, or standard normal.

    Raises
    ------
    ValueError
        When the keys are no whole number of pages.
    """
    rng = np.random.default_rng(seed)
    table: NDArray[Any] | None = None
    rows: tuple[int, ...] = (case.batch, case.kv_heads, case.k_len)
    if case.page_size:
        count, rest = divmod(case.k_len, case.page_size)
        if rest:
            raise ValueError(f"{case.name}: expected whole pages, got {rest} keys more than {count} pages")
        # Shuffled over all sequences: neighbouring tokens of a sequence lie far apart, as after long use.
        table = rng.permutation(case.batch * count).astype(np.int32).reshape(case.batch, count)
        rows = (case.batch * count, case.kv_heads, case.page_size)

    dtype, float32 = DTYPES[case.dtype], np.dtype(np.float32)
    wanted: list[tuple[tuple[int, ...], np.dtype]] = [
        ((*rows, case.head_dim), dtype),
        ((*rows, case.value_dim), dtype),
    ]
    if case.dtype == "int8":
        wanted += [(rows, float32), (rows, float32)]
    buffer, arrays = _parts(wanted)
    _, (q,) = _parts([((case.batch, case.q_heads, case.q_len, case.head_dim), DTYPES[case.q_dtype])])
    k, v, *scales = arrays
    k_scales, v_scales = scales or (None, None)
    _fill(rng, q)
    _fill(rng, k, k_scales)
    _fill(rng, v, v_scales)
    mask: NDArray[Any] | None = None
    if case.mask == "bool":
        mask = rng.random((1, 1, case.q_len, case.k_len)) < 0.5
    elif case.mask:
        mask = rng.standard_normal((1, 1, case.q_len, case.k_len), dtype=np.float32)
    return Data(q, k, v, buffer, mask, k_scales, v_scales, table)
