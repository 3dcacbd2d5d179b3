"""The same numbers in other places of memory, and output buffers with a guard band around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def _like(x: np.ndarray, shape: tuple[int, ...], view: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A view of a new buffer of `shape`, holding the numbers of `x`, with NaN around them."""
    result = view(np.full(shape, np.nan, dtype=x.dtype))
    result[...] = x
    return result


def _shift_bytes(x: np.ndarray) -> np.ndarray:
    room = np.zeros(x.nbytes + 1, dtype=np.uint8)
    result = room[1:].view(x.dtype).reshape(x.shape)
    result[...] = x
    return result


#: Name -> function that returns an equal (B, H, S, D) array laid out in another way.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.ascontiguousarray,
    "B S H D": lambda x: _like(x, _pick(x, 0, 2, 1, 3), lambda a: a.transpose(0, 2, 1, 3)),
    "S B H D": lambda x: _like(x, _pick(x, 2, 0, 1, 3), lambda a: a.transpose(1, 2, 0, 3)),
    "packed with others": lambda x: _like(
        x, (*_pick(x, 0, 2), 3, *_pick(x, 1, 3)), lambda a: a[:, :, 1].transpose(0, 2, 1, 3)
    ),
    "inside wider rows": lambda x: _like(x, (*x.shape[:3], x.shape[3] + 13), lambda a: a[..., 5:-8]),
    "inside longer axes": lambda x: _like(
        x, tuple(n + 3 for n in x.shape), lambda a: a[1:-2, 2:-1, 1:-2, :-3]
    ),
    "batches backwards": lambda x: _like(x, x.shape, lambda a: a[::-1]),
    "heads backwards": lambda x: _like(x, x.shape, lambda a: a[:, ::-1]),
    "rows backwards": lambda x: _like(x, x.shape, lambda a: a[:, :, ::-1]),
    "all backwards but the last": lambda x: _like(x, x.shape, lambda a: a[::-1, ::-1, ::-1]),
    "every second row": lambda x: _like(
        x, (*_pick(x, 0, 1), 2 * x.shape[2], x.shape[3]), lambda a: a[:, :, ::2]
    ),
    "every second column": lambda x: _like(x, (*x.shape[:3], 2 * x.shape[3]), lambda a: a[..., ::2]),
    "columns backwards": lambda x: _like(x, x.shape, lambda a: a[..., ::-1]),
    "B H D S": lambda x: _like(x, _pick(x, 0, 1, 3, 2), lambda a: a.swapaxes(2, 3)),
    "one byte off": _shift_bytes,
}

#: Layouts whose last axis is not contiguous: allowed for inputs, which are then copied, not for `out`.
SCATTERED = ("every second column", "columns backwards", "B H D S", "one byte off")


def _pick(x: np.ndarray, *axes: int) -> tuple[int, ...]:
    return tuple(x.shape[axis] for axis in axes)


def relaid(x: np.ndarray, name: str) -> np.ndarray:
    """Return `x` in the layout called `name`."""
    return LAYOUTS[name](x)


@dataclass(frozen=True)
class Guarded:
    """A view full of NaN inside a larger buffer; tells whether anything outside the view was written."""

    view: np.ndarray
    buffer: np.ndarray
    before: np.ndarray

    @classmethod
    def make(cls, shape: tuple[int, ...], dtype: np.dtype, layout: str) -> Guarded:
        """A buffer for (B, H, S, D) laid out as `layout`, with a band of 64 elements on both sides."""
        template = LAYOUTS[layout](np.zeros(shape, dtype=dtype))
        reach = [
            (n - 1) * stride // dtype.itemsize for n, stride in zip(shape, template.strides, strict=True)
        ]
        before, after = -sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
        buffer = np.full(64 + before + after + 1 + 64, np.nan, dtype=dtype)
        view = np.lib.stride_tricks.as_strided(buffer[64 + before :], shape, template.strides)
        return cls(view, buffer, buffer.copy())

    def untouched_outside(self) -> bool:
        """Whether every byte that is not the view's still holds what it held."""
        mine = np.zeros(self.buffer.shape, dtype=np.bool_)
        start = (self.view.__array_interface__["data"][0] - self.buffer.__array_interface__["data"][0]) // (
            self.buffer.itemsize
        )
        strides = tuple(stride // self.buffer.itemsize for stride in self.view.strides)
        np.lib.stride_tricks.as_strided(mine[start:], self.view.shape, strides)[...] = True
        return self.buffer[~mine].tobytes() == self.before[~mine].tobytes()
