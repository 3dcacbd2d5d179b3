"""What a cache is, apart from what is done with it: sizes, lengths, and views of what it holds."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import MAX_LENGTH, integer
from .cache_contiguous import Contiguous
from .cache_device import DeviceContiguous, DevicePaged, place_of
from .cache_paged import PAGE_SIZES, Paged
from .cache_rows import FLOAT32, INT8, storage_dtype
from .device import check_dtype
from .reference.paged import pages_needed
from .validate import MAX_HEAD_DIM

__all__ = ["CacheState"]

Array = NDArray[Any]


def _size(value: Any, name: str, most: int) -> int:
    number = integer(value, name, "an integer")
    if not 1 <= number <= most:
        raise ValueError(f"{name}: expected 1 to {most}, got {number}")
    return number


class CacheState:
    """Everything of `KVCache` but appending and attending; its parameters are described there."""

    __slots__ = (
        "_batch", "_dtype", "_head_dim", "_kv_heads", "_lengths", "_longest", "_max_length", "_place",
        "_storage", "_uniform", "_v_dim",
    )  # fmt: skip

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: Any,
        v_dim: int | None = None,
        max_length: int,
        page_size: int | None = None,
        max_pages: int | None = None,
        device: Any = "cpu",
    ) -> None:
        self._batch = _size(batch, "batch", MAX_LENGTH)
        self._kv_heads = _size(kv_heads, "kv_heads", MAX_LENGTH)
        self._head_dim = _size(head_dim, "head_dim", MAX_HEAD_DIM)
        self._v_dim = self._head_dim if v_dim is None else _size(v_dim, "v_dim", MAX_HEAD_DIM)
        self._max_length = _size(max_length, "max_length", MAX_LENGTH)
        self._dtype = storage_dtype(dtype)
        self._lengths = np.zeros(self._batch, np.int64)
        self._longest = 0
        self._uniform = True  # all sequences have the same length
        rows: list[tuple[tuple[int, ...], np.dtype[Any]]] = [
            ((self._head_dim,), self._dtype), ((self._v_dim,), self._dtype),
        ]  # fmt: skip
        if self._dtype == INT8:
            rows += [((), FLOAT32)] * 2
        if page_size is None and max_pages is not None:
            raise ValueError(f"max_pages: only with a page_size, got {max_pages!r}")
        size = None if page_size is None else integer(page_size, "page_size", "None or a power of two")
        if size is not None and size not in PAGE_SIZES:
            raise ValueError(
                f"page_size: expected a power of two from {PAGE_SIZES[0]} to {PAGE_SIZES[-1]}, got {size}"
            )
        most = min(self._batch * pages_needed(self._max_length, size or 1), MAX_LENGTH)
        pages = most if max_pages is None else min(most, _size(max_pages, "max_pages", MAX_LENGTH))
        self._place = place_of(device)
        self._storage: Contiguous | Paged
        with nullcontext() if self._place is None else self._place.work():
            if self._place is not None:
                check_dtype(self._dtype, str(self._place))
            if size is None:
                contiguous = Contiguous if self._place is None else DeviceContiguous
                self._storage = contiguous(self._batch, self._kv_heads, rows, self._max_length)
            else:
                paged = Paged if self._place is None else DevicePaged
                self._storage = paged(self._batch, self._kv_heads, rows, size, pages)

    def __repr__(self) -> str:
        pages = ""
        if isinstance(self._storage, Paged):
            pages = f", page_size={self._storage.page_size}, max_pages={self._storage.max_pages}"
        if self._place is not None:
            pages += f", device={self.device!r}"
        return (
            f"KVCache(batch={self._batch}, kv_heads={self._kv_heads}, head_dim={self._head_dim}, "
            f"dtype={self._dtype.name}, v_dim={self._v_dim}, max_length={self._max_length}{pages}; "
            f"longest sequence {self._longest})"
        )

    @property
    def lengths(self) -> Array:
        """Length of each sequence: int64, (B,), a copy."""
        return self._lengths.copy()

    @property
    def max_length(self) -> int:
        """Most tokens that a sequence can hold."""
        return self._max_length

    @property
    def device(self) -> str:
        """Where the keys and values lie: "cpu", or "cuda:0", "cuda:1", ..."""
        return "cpu" if self._place is None else str(self._place)

    @property
    def keys(self) -> Array:
        """Keys, a read-only NumPy view: (B, Hkv, max(lengths), D).

        Of a paged cache, the pool as far as it was ever used: (pages, Hkv, page_size, D); `block_table` says
        whose page is which. On a device a CuPy array, which cannot be made read-only; others take it through
        DLPack (``torch.from_dlpack``).
        """
        return self._view(0)

    @property
    def values(self) -> Array:
        """Values, a read-only NumPy view: as `keys`, with Dv for D."""
        return self._view(1)

    @property
    def key_scales(self) -> Array | None:
        """Scales of an int8 cache's keys: float32, the shape of `keys` without the last axis; else None."""
        return self._view(2) if self._dtype == INT8 else None

    @property
    def value_scales(self) -> Array | None:
        """Scales of an int8 cache's values, likewise."""
        return self._view(3) if self._dtype == INT8 else None

    @property
    def page_size(self) -> int | None:
        """Tokens of a page; None where rows are contiguous."""
        return self._storage.page_size if isinstance(self._storage, Paged) else None

    @property
    def max_pages(self) -> int | None:
        """Most pages of the pool; None where rows are contiguous."""
        return self._storage.max_pages if isinstance(self._storage, Paged) else None

    @property
    def pages_in_use(self) -> int | None:
        """Pages that sequences have now; None where rows are contiguous."""
        return self._storage.in_use if isinstance(self._storage, Paged) else None

    @property
    def block_table(self) -> Array | None:
        """Pages of each sequence in order: int32, (B, most pages of a sequence), a copy; -1 behind the last.

        A NumPy array, as `lengths` is, wherever the pages lie. None where rows are contiguous.
        """
        return self._storage.block_table() if isinstance(self._storage, Paged) else None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache holds now; nearly all of it on the device, where it lies there."""
        return self._storage.nbytes

    def _view(self, plane: int) -> Array:
        array = self._storage.planes[plane]
        if isinstance(self._storage, Paged):
            view = array[: self._storage.reached]
        else:
            view = array[:, :, : self._longest]
        if self._place is None:
            view.flags.writeable = False
        return view

    def _set_lengths(self, lengths: Array) -> None:
        longest = int(lengths.max())
        uniform = int(lengths.min()) == longest
        # In one statement, into which no signal comes: Ctrl-C leaves a cache as it was, or as it was to be.
        self._lengths, self._longest, self._uniform = lengths, longest, uniform

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens of every sequence now, so that appending up to there takes no memory.

        Parameters
        ----------
        length : int
            0 to `max_length`. Room that is there already stays.

        Raises
        ------
        TypeError, ValueError
            `length` does not fit, or a paged cache would need more than `max_pages`. Nothing has changed.
        MemoryError
            There is no room. Nothing has changed.
        """
        wanted = integer(length, "length", "an integer")
        if not 0 <= wanted <= self._max_length:
            raise ValueError(f"length: expected 0 to max_length, {self._max_length}, got {wanted}")
        with nullcontext() if self._place is None else self._place.work():
            self._storage.make_room(wanted, self._longest)

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on; shorter sequences stay as they are.

        Pages that hold nothing afterwards go back to the pool.

        Parameters
        ----------
        length : int
            At least 0.

        Raises
        ------
        TypeError, ValueError
            `length` is no integer, or negative.
        """
        keep = integer(length, "length", "an integer")
        if keep < 0:
            raise ValueError(f"length: expected at least 0, got {keep}")
        self._shorten(np.minimum(self._lengths, min(keep, self._max_length)))

    def free(self, sequence: int) -> None:
        """Forget one sequence: its length is 0, and its pages, if it has any, are there for others.

        Parameters
        ----------
        sequence : int
            0 to B - 1.

        Raises
        ------
        TypeError, ValueError
            `sequence` is no integer, or there is none of that number.
        """
        number = integer(sequence, "sequence", "an integer")
        if not 0 <= number < self._batch:
            raise ValueError(f"sequence: expected 0 to {self._batch - 1}, got {number}")
        lengths = self._lengths.copy()
        lengths[number] = 0
        self._shorten(lengths)

    def _shorten(self, lengths: Array) -> None:
        self._set_lengths(lengths)
        self._storage.release(lengths)

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next sequences."""
        self.truncate(0)
