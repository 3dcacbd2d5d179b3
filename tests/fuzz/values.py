"""Arguments, plain and strange: arrays in any layout, and whatever else a caller may pass by mistake."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .source import Source

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)


class RaisesOnUse:
    """An object whose every conversion raises something of its own."""

    def __index__(self) -> int:
        raise RuntimeError("no index")

    def __float__(self) -> float:
        raise RuntimeError("no float")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


class BrokenExporter:
    """Offers an array and then does not have one."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("nothing to export")


class OwnArray(np.ndarray):
    """A subclass, as others make them."""


def laid_out(x: np.ndarray, source: Source) -> np.ndarray:
    """Return equal numbers in another layout."""
    way = source.number(9)
    if way == 1 and x.ndim >= 2:
        return np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    if way == 2:
        return np.asfortranarray(x)
    if way == 3 and x.ndim:  # every second element of a longer axis
        axis = source.number(x.ndim)
        wide = np.repeat(x, 2, axis=axis)
        return wide[tuple(slice(None, None, 2 if n == axis else None) for n in range(x.ndim))]
    if way == 4 and x.ndim:  # backwards
        axis = source.number(x.ndim)
        return np.flip(np.ascontiguousarray(np.flip(x, axis)), axis)
    if way == 5 and x.dtype != object:  # no multiple of the item size
        room = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
        room[...] = x
        return room
    if way == 6:
        x = x.copy()
        x.flags.writeable = False
    if way == 7:
        return x.view(OwnArray)
    if way == 8 and x.ndim and x.shape[0]:
        return np.broadcast_to(x[:1], x.shape)  # other numbers, at one address
    return x


def numbers(source: Source, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return small finite numbers; seldom with one that is large, infinite or none."""
    x = source.generator().standard_normal(shape)
    if x.size and source.seldom(16):
        x[tuple(source.number(n) for n in shape)] = source.one_of([np.nan, np.inf, -np.inf, 1e30, 1e-40, 300])
    with np.errstate(over="ignore", invalid="ignore"):
        return laid_out(x.astype(dtype), source)


#: Dtypes that are not for attention, or only sometimes.
DTYPES: tuple[Any, ...] = (
    np.float64, np.int8, np.int64, np.uint64, np.bool_, np.complex64, ">f4", ">i8", "S3", "U2", "M8[s]",
    object, np.longdouble, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.dtype([("a", "f4")]), *FLOATS,
)  # fmt: skip

SCALARS: tuple[Any, ...] = (
    None, 0, 1, -1, 2, True, False, 0.0, 0.5, -3.0, 1e300, 1e-300, float("nan"), float("inf"), 2**31, 2**63,
    -(2**40), 10**400, "auto", "3", b"x", (), (1, 2), (None, None), (-1, 3), (2, "x"), (2**70, 1), [3, 0], [],
    {}, 1j, ..., np.float16(2), np.int8(-4), np.bool_(True), np.array(3), np.array(2.5), np.array([1]),
    slice(3), NotImplemented, float, RaisesOnUse(), BrokenExporter(), range(3), memoryview(b"abcd"),
)  # fmt: skip


def strange_array(source: Source, like: tuple[int, ...]) -> Any:
    """Return an array of an odd dtype, shape or kind."""
    shape = list(like)
    change = source.number(7)
    if change == 1 and shape:
        shape[source.number(len(shape))] = source.one_of([0, 1, 2, 3, 300])
    elif change == 2:
        shape.insert(0, source.one_of([1, 2, 0]))
    elif change == 3 and shape:
        del shape[source.number(len(shape))]
    elif change == 4:
        shape = []
    elif change == 5 and shape:  # as long as can be, and in no memory
        axis = source.number(len(shape))
        one = np.zeros([1 if n == axis else size for n, size in enumerate(shape)], source.one_of(FLOATS))
        shape[axis] = source.one_of([2**31, 2**33, 2**40, 2**55])
        try:
            return np.broadcast_to(one, shape)
        except ValueError:  # more than NumPy can count
            return one
    x = (
        np.zeros(shape, source.one_of(DTYPES))
        if source.seldom(2)
        else numbers(source, tuple(shape), np.float32)
    )
    if source.seldom():
        return np.ma.masked_array(x)
    return laid_out(x, source)


def strange(source: Source, like: tuple[int, ...]) -> Any:
    """Return anything."""
    return strange_array(source, like) if source.seldom(2) else source.one_of(SCALARS)
