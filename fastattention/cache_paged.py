"""A cache's rows in pages of one pool, which sequences take and give back (reference/paged.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aligned import move, zeros
from .cache_contiguous import FIRST_CAPACITY
from .reference.paged import pages_needed

__all__ = ["PAGE_SIZES", "Paged"]

Array = NDArray[Any]

#: Tokens of a page. Powers of two, so that the page of a key is a shift away. Below 8 the table and the jumps
#: would cost more than the rows; above 1024 a page is no better than a buffer for each sequence.
PAGE_SIZES = tuple(2**n for n in range(3, 11))


class Paged:
    """Planes (pages, Hkv, page_size, ...), and the table of who has which page.

    The kernels take one address for all pages, so the pool is one array for each plane. It doubles when its
    pages are all taken: a page is copied a constant number of times on average, however long the sequences
    get, and keeps its number, so that no table changes. Pages given back are taken again first.

    A sequence may have more pages than its length needs (when writing to them failed); they are the first
    that it grows into.

    Parameters
    ----------
    batch, kv_heads : int
    rows : list of (shape, dtype)
        As for `Contiguous`.
    page_size : int
        Tokens of a page.
    max_pages : int
        Most pages of the pool.
    """

    __slots__ = ("_all", "_free", "_fresh", "_kv_heads", "_rows", "max_pages", "owned", "page_size", "planes",
                 "table")  # fmt: skip

    def __init__(
        self, batch: int, kv_heads: int, rows: list[tuple[tuple[int, ...], np.dtype[Any]]], page_size: int,
        max_pages: int,
    ) -> None:  # fmt: skip
        self._kv_heads = kv_heads
        self._rows = rows
        self.page_size = page_size
        self.max_pages = max_pages
        self._all = np.arange(batch)
        self.owned = np.zeros(batch, np.int64)  # pages of each sequence
        self._free: list[int] = []  # given back; the last one is taken first
        self._fresh = 0  # pages from this number on were never taken
        self.table = np.full((batch, 1), -1, np.int32)  # entries from `owned` on mean nothing
        self.planes = self._allocate(min(max_pages, batch * pages_needed(FIRST_CAPACITY, page_size)))

    def _allocate(self, pages: int) -> tuple[Array, ...]:
        size = (pages, self._kv_heads, self.page_size)
        return tuple(self._zeros((*size, *shape), dtype) for shape, dtype in self._rows)

    # Where rows lie; on a device: cache_device.py.
    _zeros = staticmethod(zeros)
    _move = staticmethod(move)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(plane.nbytes for plane in self.planes) + self.table.nbytes

    @property
    def in_use(self) -> int:
        """Pages that sequences have."""
        return self._fresh - len(self._free)

    @property
    def reached(self) -> int:
        """Pages that were ever in use: the part of the planes that can hold anything."""
        return self._fresh

    @property
    def kernel_table(self) -> Array:
        """The table as kernels read it."""
        return self.table

    def block_table(self) -> Array:
        """Return the pages of each sequence, int32 (B, most pages of a sequence), -1 behind the last one."""
        table = self.table[:, : int(self.owned.max())].copy()
        table[np.arange(table.shape[1]) >= self.owned[:, None]] = -1
        return table

    def reserve(self, lengths: Array, longest: int, held: int) -> None:
        """Give each sequence the pages it needs to hold `lengths` (B,) tokens.

        Raises
        ------
        ValueError
            The pool would need more than `max_pages`. Nothing has changed.
        MemoryError
            Nothing has changed.
        """
        missing = -(-lengths // self.page_size) - self.owned
        if int(missing.max()) <= 0:
            return
        missing = np.maximum(missing, 0)
        wanted = int(missing.sum())
        if self.in_use + wanted > self.max_pages:
            raise ValueError(
                f"k: {wanted} more pages are needed, and {self.max_pages - self.in_use} of "
                f"max_pages = {self.max_pages} are free; give some back with free() or truncate()"
            )
        owned = self.owned + missing
        keep, fresh = max(0, len(self._free) - wanted), self._fresh
        pages = self._free[keep:][::-1]  # given back, the last one first; then those nobody had
        new = wanted - len(pages)
        pages.extend(range(fresh, fresh + new))
        self._grow(fresh + new, int(owned.max()))
        first = 0
        for b in np.flatnonzero(missing).tolist():
            past = first + int(missing[b])
            self.table[b, self.owned[b] : owned[b]] = pages[first:past]
            first = past
        # Last, and in one statement, into which no signal comes: until here, nobody has a page.
        self.owned, self._free, self._fresh = owned, self._free[:keep], fresh + new

    def make_room(self, length: int, held: int) -> None:
        """Let the pool hold `length` tokens of every sequence, without giving pages to any.

        Raises
        ------
        ValueError
            It would need more than `max_pages`. Nothing has changed.
        MemoryError
            Nothing has changed.
        """
        columns = pages_needed(length, self.page_size)
        wanted = int(np.maximum(columns, self.owned).sum())
        if wanted > self.max_pages:
            raise ValueError(f"length: {wanted} pages are needed, max_pages is {self.max_pages}")
        self._grow(wanted, max(columns, int(self.owned.max())))

    def _grow(self, pages: int, columns: int) -> None:
        planes, table = self.planes, self.table
        if pages > len(planes[0]):
            planes = self._allocate(min(self.max_pages, max(pages, 2 * len(planes[0]))))
            for new, old in zip(planes, self.planes, strict=True):
                self._move(new, old, (slice(self._fresh),))
        if columns > table.shape[1]:
            table = np.full((len(table), max(columns, 2 * table.shape[1])), -1, np.int32)
            table[:, : self.table.shape[1]] = self.table
        self.planes, self.table = planes, table

    def write_all(self, start: int, count: int, rows: tuple[Array, ...]) -> None:
        """Write the first `count` of `rows` (B, Hkv, S, ...) behind `start` tokens of each sequence."""
        if count == 1:
            pages, row = self.table[:, start // self.page_size], start % self.page_size
            for plane, new in zip(self.planes, rows, strict=True):
                plane[pages, :, row] = new[:, :, 0]
            return
        for b in self._all.tolist():
            self._write(b, start, count, rows)

    def write_each(self, starts: Array, counts: Array, rows: tuple[Array, ...]) -> None:
        """Write the first `counts` (B,) of `rows` behind the first `starts` (B,) of each sequence."""
        if int(counts.min()) == int(counts.max()) == 1:
            # A step of decoding: every sequence gets one token, each in a place of its own.
            pages, row = self.table[self._all, starts // self.page_size], starts % self.page_size
            for plane, new in zip(self.planes, rows, strict=True):
                plane[pages, :, row] = new[:, :, 0]
            return
        for b, (start, n) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            if n:
                self._write(b, start, n, rows)

    def _write(self, b: int, start: int, count: int, rows: tuple[Array, ...]) -> None:
        """Write into the rest of a page, whole pages at once, and the beginning of one more."""
        size, table = self.page_size, self.table[b]
        page, row = divmod(start, size)
        first = min(count, size - row) if row else 0
        whole = (count - first) // size
        page_after = page + (row > 0)
        pages = table[page_after : page_after + whole]
        done = first + whole * size
        for plane, new in zip(self.planes, rows, strict=True):
            tokens = new[b]  # (Hkv, S, ...)
            if first:
                plane[table[page], :, row : row + first] = tokens[:, :first]
            if whole:
                parts = tokens[:, first:done].reshape(self._kv_heads, whole, size, *tokens.shape[2:])
                plane[pages] = parts.swapaxes(0, 1)
            if done < count:
                plane[table[page_after + whole], :, : count - done] = tokens[:, done:count]

    def release(self, lengths: Array) -> None:
        """Sequences are now of `lengths`: pages that they do not need go back to the pool."""
        needed = -(-lengths // self.page_size)
        shorter = np.flatnonzero(needed < self.owned).tolist()
        if not shorter:
            return
        owned, free = self.owned.copy(), self._free.copy()
        for b in shorter:
            kept, had = int(needed[b]), int(owned[b])
            owned[b] = kept
            free.extend(self.table[b, kept:had].tolist()[::-1])
        self.owned, self._free = owned, free  # in one statement: see `reserve`
