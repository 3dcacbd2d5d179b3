"""A small algebra of layouts: functions from coordinates to addresses, written as a shape and a stride.

A layout (4, 8):(8, 1) says: coordinate (i, j) lies at 8 i + j. Shapes nest, so that one axis may be cut into
pieces of different strides; a plain index counts through all coordinates, the first axis fastest. Two layouts
compose like functions, and the result is a layout again. With swizzles (`swizzle`), which are none, that is
enough to write down every fragment of a tensor core (`fragments`) and every tile in shared memory
(`shared_layouts`), and to prove that two ways to write one are the same. The idea and its notation come from
CuTe (NVIDIA CUTLASS); this is a reading of it in a few lines, for small layouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

#: An integer, or a tuple of such: (4, (2, 2)).
Nested: TypeAlias = "int | tuple[Nested, ...]"


def flatten(x: Nested) -> tuple[int, ...]:
    """Return the integers of a nested tuple, in order.

    Examples
    --------
    >>> flatten((4, (2, (3,))))
    (4, 2, 3)
    """
    return (x,) if isinstance(x, int) else tuple(n for part in x for n in flatten(part))


@dataclass(frozen=True)
class Layout:
    """A function from the coordinates of `shape` to the sum of coordinate times `stride`.

    Call it with one coordinate an axis, or with one index; inside a nested axis the same choice is open.

    Parameters
    ----------
    shape : int or nested tuple of int
        Lengths, at least 1.
    stride : int or nested tuple of int
        Of the same form, not negative. 0 repeats: all coordinates share an address.

    Raises
    ------
    ValueError
        When the two differ in form, or a length or a stride is out of range.

    Examples
    --------
    >>> rows = Layout((2, 3), (3, 1))  # 2 x 3, row by row
    >>> rows(1, 2), [rows(index) for index in range(6)]
    (5, [0, 3, 1, 4, 2, 5])
    >>> blocks = Layout((2, (2, 3)), (2, (1, 4)))  # 2 x 6, in blocks of 2 x 2
    >>> blocks(1, (1, 2)), blocks(1, 5), blocks.size, blocks.cosize
    (11, 11, 12, 12)
    """

    shape: Nested
    stride: Nested

    def __post_init__(self) -> None:
        if not _same_form(self.shape, self.stride):
            raise ValueError(f"shape {self.shape} and stride {self.stride} must nest alike")
        if any(n < 1 for n in flatten(self.shape)) or any(d < 0 for d in flatten(self.stride)):
            raise ValueError(f"lengths start at 1 and strides at 0, got {self}")

    def __str__(self) -> str:
        return f"{self.shape}:{self.stride}"

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return math.prod(flatten(self.shape))

    @property
    def cosize(self) -> int:
        """One more than the largest address: what must be allocated."""
        return 1 + sum((n - 1) * d for n, d in _modes(self))

    def __call__(self, *coordinate: Nested) -> int:
        """Return the address of a coordinate, given axis by axis, or of an index."""
        return _address(self.shape, self.stride, coordinate[0] if len(coordinate) == 1 else coordinate)

    def addresses(self) -> NDArray[np.int64]:
        """Return the addresses of all indices in turn, (size,)."""
        all_ = np.zeros(1, dtype=np.int64)
        for n, d in _modes(self):
            all_ = (d * np.arange(n)[:, None] + all_).ravel()  # what came before runs faster
        return all_


def row_major(rows: int, columns: int, stride: int | None = None) -> Layout:
    """Return the layout of a matrix stored row by row, `stride` (at least `columns`) apart.

    Examples
    --------
    >>> str(row_major(4, 8)), str(row_major(4, 8, stride=9))
    ('(4, 8):(8, 1)', '(4, 8):(9, 1)')
    """
    return Layout((rows, columns), (columns if stride is None else stride, 1))


def coalesce(layout: Layout) -> Layout:
    """Return the layout with the fewest axes that gives every index the same address.

    Examples
    --------
    >>> str(coalesce(Layout((2, (1, 6)), (1, (7, 2)))))  # really one run of 12
    '12:1'
    """
    modes: list[tuple[int, int]] = []
    for n, d in _modes(layout):
        if n == 1:
            continue
        if modes and d == modes[-1][0] * modes[-1][1]:
            modes[-1] = (modes[-1][0] * n, modes[-1][1])
        else:
            modes.append((n, d))
    return _layout(modes)


def composition(outer: Layout, inner: Layout) -> Layout:
    """Return the layout that gives a coordinate of `inner` the address outer(inner(coordinate)).

    `inner` picks indices, `outer` says where they lie: so a sublayout, a permutation or another order of one
    matrix is a composition.

    Raises
    ------
    ValueError
        When `inner` leaves the indices of `outer`, or the result is no layout.

    Examples
    --------
    >>> matrix = Layout((4, 8), (8, 1))  # 4 x 8, row by row; index 4 j + i is element (i, j)
    >>> str(composition(matrix, Layout((2, 8), (2, 4))))  # rows 0 and 2
    '(2, 8):(16, 1)'
    >>> str(composition(matrix, Layout(8, 2)))  # every other index runs down the rows, then on
    '(2, 4):(16, 1)'
    """
    if inner.cosize > outer.size:
        raise ValueError(f"{inner} reaches index {inner.cosize - 1}, beyond the {outer.size} of {outer}")
    result = _compose(_modes(coalesce(outer)), inner.shape, inner.stride)
    # Axes were composed one by one, which is right as long as their sum carries from no axis of `outer` into
    # the next. Layouts here are small: look.
    if result is not None and np.array_equal(result.addresses(), outer.addresses()[inner.addresses()]):
        return result
    raise ValueError(f"{outer} after {inner} is not a layout")


def _compose(modes: list[tuple[int, int]], shape: Nested, stride: Nested) -> Layout | None:
    """Compose axis by axis; None where a length does not divide."""
    if not (isinstance(shape, int) and isinstance(stride, int)):
        assert isinstance(shape, tuple)
        assert isinstance(stride, tuple)
        parts = [_compose(modes, n, d) for n, d in zip(shape, stride, strict=True)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        return Layout(tuple(part.shape for part in found), tuple(part.stride for part in found))
    picked: list[tuple[int, int]] = []
    rest, step = shape, stride  # coordinates still to place, and their distance in indices of this axis on
    for n, d in modes[:-1]:
        if step >= n:  # not one step within this axis
            if step % n:
                return None
            step //= n
        elif step:
            here = min(rest, n // step)
            if n % step or rest % here:
                return None
            picked.append((here, step * d))
            rest, step = rest // here, 1
    n, d = modes[-1] if modes else (1, 0)
    return _layout([*picked, (rest, step * d)] if rest > 1 else picked)


def _layout(modes: list[tuple[int, int]]) -> Layout:
    if len(modes) <= 1:
        return Layout(*(modes[0] if modes else (1, 0)))
    return Layout(tuple(n for n, _ in modes), tuple(d for _, d in modes))


def _modes(layout: Layout) -> list[tuple[int, int]]:
    return list(zip(flatten(layout.shape), flatten(layout.stride), strict=True))


def _same_form(a: Nested, b: Nested) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int)
    return len(a) == len(b) and all(map(_same_form, a, b))


def _address(shape: Nested, stride: Nested, at: Nested) -> int:
    if isinstance(shape, tuple) and isinstance(stride, tuple):
        if isinstance(at, int):  # an index: split it, the first axis fastest
            index, at = at, ()
            for part in shape:
                n = math.prod(flatten(part))
                at, index = (*at, index % n), index // n
            if index:
                raise IndexError(f"index beyond the {math.prod(flatten(shape))} of shape {shape}")
        if len(at) != len(shape):
            raise IndexError(f"coordinate {at} does not fit shape {shape}")
        return sum(map(_address, shape, stride, at))
    if not (isinstance(at, int) and isinstance(shape, int) and isinstance(stride, int) and 0 <= at < shape):
        raise IndexError(f"coordinate {at} does not fit shape {shape}")
    return at * stride
