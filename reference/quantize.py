"""Keys and values as 8-bit integers: one scale for each row, that is for each token and KV head.

A row x (one token's key or value in one head) is kept as integers n_d in -127..127 and one float32 scale s::

    s = max_d |x_d| / 127,     n_d = round(x_d / s), half to even,     x_d ~ s n_d.

Symmetric, without a zero point: <q, s n> = s <q, n>, so a scale leaves the dot product as one factor of a
score, and weighs a row of V as one factor of a weight. -128 is left unused; the range is the same both ways.

Error. Rounding moves x_d / s by at most 1/2, so an element is off by at most s / 2, 1/254 of its row's
largest. That holds exactly, not only nearly, for float32 and narrower inputs: the quotient is taken in
float64, where it cannot be rounded across the middle between two integers (x and s have 24 bits, so a
quotient that is not a middle is at least 2^-27 away from it, and float64 is off by 2^-46 at most). The
largest element becomes 127 and is off by s / 10^5 at most, the rounding of s itself.

Why a scale a token. One scale for a block of tokens would be cheaper to keep: 4 / (D * block) bytes an
element against 4 / D, which at D = 64 is 6 % of the integers. But a cache grows a token at a time. A block's
scale is known only when its last token is there, so either the block waits in full precision, or each token
that raises the maximum has the block's integers rounded once more, error upon error. And one loud token costs
its neighbours their precision: in a block all rows get the error bound of the largest one. `block_error`
measures that.

The scheme is that of "absmax" quantisation by vectors (Dettmers et al., "LLM.int8()", arXiv:2208.07339,
section 2.1), with rows as vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 127  # the largest integer; its negative is the smallest

# The smallest scale of a row that is not zero, the smallest normal float32: below it a scale would lose bits,
# and x / s with them its bound of 127.
SMALLEST_SCALE = np.finfo(np.float32).smallest_normal


def quantize(x: np.ndarray, *, name: str = "x") -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the rows of `x` as integers, and the scale of each.

    Parameters
    ----------
    x : ndarray
        (..., D), floating, finite: any number of rows.
    name : str
        What to call `x` in an error.

    Returns
    -------
    integers : ndarray of int8
        (..., D), -127 to 127.
    scales : ndarray of float32
        (...): 0 for a row of zeros, else at least `SMALLEST_SCALE`.

    Raises
    ------
    ValueError
        When `x` has no axis, or holds inf or NaN: one of them would leave its row without a scale, and so
        without a meaning.

    Examples
    --------
    >>> integers, scales = quantize(np.array([[0.0, 1.27, -0.634], [0.0, 0.0, 0.0]]))
    >>> integers.tolist(), scales.round(6).tolist()
    ([[0, 127, -63], [0, 0, 0]], [0.009999999776482582, 0.0])
    """
    if x.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, got a scalar")
    wide = x.astype(np.float64)
    if not np.isfinite(wide).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(wide))[0])
        raise ValueError(f"{name} must be finite to be quantised, got {wide[bad]} at {bad}")
    largest = np.abs(wide).max(axis=-1, initial=0.0)  # (...)
    scales = np.where(largest == 0, 0, np.maximum(largest / LARGEST, SMALLEST_SCALE)).astype(np.float32)
    return _integers(wide, scales[..., None]), scales


def dequantize(integers: np.ndarray, scales: np.ndarray) -> NDArray[np.float64]:
    """Return the rows that integers and scales stand for; exact, since both have few bits.

    Parameters
    ----------
    integers : ndarray of int8
        (..., D).
    scales : ndarray of float32
        (...).

    Examples
    --------
    >>> dequantize(np.array([[2, -4]], np.int8), np.array([0.5], np.float32)).tolist()
    [[1.0, -2.0]]
    """
    return integers.astype(np.float64) * scales.astype(np.float64)[..., None]


def error_bound(scales: np.ndarray) -> NDArray[np.float64]:
    """Return how far an element of each row may be from what `dequantize` gives: scale / 2.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    >>> integers, scales = quantize(x)
    >>> bool((np.abs(x - dequantize(integers, scales)) <= error_bound(scales)[:, None]).all())
    True
    """
    return scales.astype(np.float64) / 2


def block_error(x: np.ndarray, block: int) -> float:
    """Return the error of int8 keys or values when each `block` tokens share a scale; 1 is what we do.

    Parameters
    ----------
    x : ndarray
        (..., S, D): tokens along the second axis from the end.
    block : int
        Tokens that share one scale, at least 1. The last block may be shorter.

    Returns
    -------
    float
        Root mean square of the error of an element, relative to its row's largest: rows that are small beside
        their neighbours count as much as these. 0.3 / 127 is what rounding costs at least where elements
        are spread evenly.

    Raises
    ------
    ValueError
        When `block` is below 1.

    Examples
    --------
    Sixteen tokens, one of them twenty times as loud as the others:

    >>> x = np.random.default_rng(0).standard_normal((16, 64))
    >>> x[3] *= 20
    >>> block_error(x, 1) < 0.003 < 0.03 < block_error(x, 16)
    True
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    wide = x.astype(np.float64)
    largest = np.abs(wide).max(axis=-1, keepdims=True)  # (..., S, 1)
    starts = np.arange(0, x.shape[-2], block)
    of_block = np.maximum.reduceat(largest, starts, axis=-2)  # (..., blocks, 1)
    scales = np.repeat(of_block / LARGEST, block, axis=-2)[..., : x.shape[-2], :]  # (..., S, 1)
    error = wide - _integers(wide, scales) * scales
    relative = np.divide(error, largest, out=np.zeros_like(error), where=largest > 0)
    return float(np.sqrt(np.mean(relative**2)))


def _integers(wide: NDArray[np.float64], scales: np.ndarray) -> NDArray[np.int8]:
    """Return round(x / s), half to even; 0 where s is 0, since x is 0 there too."""
    quotient = np.divide(wide, scales.astype(np.float64), out=np.zeros_like(wide), where=scales > 0)
    return np.rint(quotient).astype(np.int8)
