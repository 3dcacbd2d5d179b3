"""A cache's rows in the memory of a CUDA device: where they lie and how they are written, nothing else.

Which sequence has how many tokens, and which pages, is kept in CPU memory by the classes that keep it for the
CPU's cache; what goes to the device is the block table when pages were taken, and lengths with each launch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import gpu
from .cache_contiguous import Contiguous
from .cache_paged import Paged
from .device import scope

__all__ = ["DeviceContiguous", "DevicePaged", "Place", "place_of"]

Array = NDArray[Any]

#: Unsigned integers of as many bytes, which CuPy copies whatever the elements mean.
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def place_of(device: Any) -> Place | None:
    """Return where a cache is to lie; None is CPU memory.

    Raises
    ------
    TypeError, ValueError
        `device` names no place, or a GPU that is not there or cannot be used.
    ImportError, RuntimeError
        There is no CuPy or no GPU.
    """
    expected = "'cpu', 'gpu', 'cuda', or with a number, as 'cuda:1'"
    if not isinstance(device, str) and type(device).__name__ != "device":  # which is torch.device
        raise TypeError(f"device: expected {expected}, got {device!r}")
    found = re.fullmatch(r"cpu|(?:gpu|cuda)(?::(\d+))?", str(device))
    if found is None:
        raise ValueError(f"device: expected {expected}, got {str(device)!r}")
    if found.string == "cpu":
        return None
    try:
        here = gpu.card()
        if found[1] is None:
            return Place(here.number)
        count = int(gpu.load_cupy().cuda.runtime.getDeviceCount())
        if int(found[1]) < count:
            return Place(gpu.card(int(found[1])).number)
    except (ImportError, RuntimeError, ValueError) as error:
        kind = next(base for base in (ImportError, ValueError, RuntimeError) if isinstance(error, base))
        raise kind(str(error).replace("backend:", "device:", 1)) from error
    raise ValueError(f"device: expected a number below {count}, as many as there are, got {str(device)!r}")


class Place:
    """A CUDA device, and the order of what is done there to one cache.

    Work is queued on the stream that is current when it is asked for. Where that is another one than the last
    time, it waits, on the device, for what was queued there.
    """

    __slots__ = ("_done", "_last", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._last: int | None = None  # the stream used last
        self._done: Any = None  # the event behind what was queued there

    def __str__(self) -> str:
        return f"cuda:{self.number}"

    @contextmanager
    def work(self, kind: str = "cupy") -> Iterator[None]:
        """Make the device and the stream of a kind's arrays CuPy's current ones, behind all earlier work."""
        with scope(f"{kind.partition(' ')[0]} {self}"):
            cupy = gpu.load_cupy()
            stream = cupy.cuda.get_current_stream()
            if self._done is None:
                self._done = cupy.cuda.Event(disable_timing=True)
            elif self._last != int(stream.ptr):
                stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)
                self._last = int(stream.ptr)


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    return gpu.zeros(shape, dtype, "a KV cache's rows")


def _move(new: Any, old: Any, index: tuple[slice, ...]) -> None:
    bits = _BITS[old.dtype.itemsize]
    new.view(bits)[index] = old.view(bits)[index]


def _leave(home: int) -> int:
    """Return the current stream, once memory may be let go that was taken on the stream `home`.

    CuPy gives it to who asks next on that stream, where it may be written to at once; work on it is queued
    here.
    """
    stream = gpu.load_cupy().cuda.get_current_stream()
    if int(stream.ptr) != home:
        stream.synchronize()
    return int(stream.ptr)


def _stream() -> int:
    return int(gpu.load_cupy().cuda.get_current_stream().ptr)


class DeviceContiguous(Contiguous):
    """`Contiguous` on the current device."""

    __slots__ = ("_home",)

    _zeros = staticmethod(_zeros)
    _move = staticmethod(_move)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._home = _stream()

    def reserve(self, lengths: Array, longest: int, held: int) -> None:
        """Make room, as `Contiguous` does."""
        before = self.planes  # held until the end
        super().reserve(lengths, longest, held)
        if self.planes is not before:
            self._home = _leave(self._home)

    def write_all(self, start: int, count: int, rows: tuple[Any, ...]) -> None:
        """Write the first `count` of `rows` (B, Hkv, S, ...) behind `start` tokens of each sequence."""
        gpu.append(rows[0], rows[1], self.planes, count, start=start)

    def write_each(self, starts: Array, counts: Array, rows: tuple[Any, ...]) -> None:
        """Write the first `counts` (B,) of `rows` behind the first `starts` (B,) of each sequence."""
        gpu.append(rows[0], rows[1], self.planes, int(counts.max()), starts=starts, counts=counts)


class DevicePaged(Paged):
    """`Paged` on the current device, with a copy of the table there.

    Its `table` is the one that is kept in CPU memory; `table_there` follows it when pages were taken. Pages
    that are given back leave entries behind that nobody reads.
    """

    __slots__ = ("_home", "_stale", "_table_home", "table_there")

    _zeros = staticmethod(_zeros)
    _move = staticmethod(_move)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._home = self._table_home = _stream()
        self._stale = False
        self.table_there = _zeros(self.table.shape, self.table.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes held, on the device and beside it."""
        return super().nbytes + int(self.table_there.nbytes)

    def reserve(self, lengths: Array, longest: int, held: int) -> None:
        """Give each sequence the pages it needs, as `Paged` does."""
        before, owned = self.planes, self.owned
        try:
            super().reserve(lengths, longest, held)
        finally:  # as it stands, also where Ctrl-C came after it
            self._stale |= self.owned is not owned
            if self.planes is not before:
                self._home = _leave(self._home)

    def make_room(self, length: int, held: int) -> None:
        """Let the pool hold so many tokens of every sequence, as `Paged` does."""
        before = self.planes
        super().make_room(length, held)
        if self.planes is not before:
            self._home = _leave(self._home)
        if self.table.shape != self.table_there.shape:
            self._stale = True
            self.update()

    @property
    def kernel_table(self) -> Any:
        """The table as kernels read it: a CuPy array, up to date with what was written."""
        return self.table_there

    def update(self) -> None:
        """Bring the table's copy up to date.

        Raises
        ------
        MemoryError
            There is no room for a wider one.
        """
        if not self._stale:
            return
        room = self.table_there
        if room.shape != self.table.shape:
            room = _zeros(self.table.shape, self.table.dtype)
        gpu.upload(self.table, room.data)
        if room is not self.table_there:
            before, self.table_there = self.table_there, room
            self._table_home = _leave(self._table_home)
            del before  # not earlier
        self._stale = False

    def write_all(self, start: int, count: int, rows: tuple[Any, ...]) -> None:
        """Write the first `count` of `rows` (B, Hkv, S, ...) behind `start` tokens of each sequence."""
        self.update()
        gpu.append(
            rows[0],
            rows[1],
            self.planes,
            count,
            start=start,
            block_table=self.table_there,
            page_size=self.page_size,
        )

    def write_each(self, starts: Array, counts: Array, rows: tuple[Any, ...]) -> None:
        """Write the first `counts` (B,) of `rows` behind the first `starts` (B,) of each sequence."""
        self.update()
        gpu.append(
            rows[0], rows[1], self.planes, int(counts.max()), starts=starts, counts=counts,
            block_table=self.table_there, page_size=self.page_size,
        )  # fmt: skip
