"""One function an argument: check it, normalise it, or raise the error that names it.

Small and separate from `validate`, which puts them together, so that the rules for an argument can be read in
one place and are the same in every public function. Nothing here computes attention or writes to a caller's
array.
"""

from __future__ import annotations

from math import isfinite
from operator import index
from typing import Any

import numpy as np

from .arrays import to_array
from .device import addresses

__all__ = [
    "MAX_LENGTH", "alibi_array", "flag", "float_option", "host_operand", "key_lengths", "mask_array",
    "operand", "output_array", "query_offsets", "sequence_starts", "sink_array", "usable", "window_bounds",
]  # fmt: skip

Array = Any  # NumPy's, or on a device CuPy's

#: Longest sequence, of queries or keys.
MAX_LENGTH = 2**31 - 1
MAX_OFFSET = 2**31
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).smallest_normal)

# Work allowed for the exact answer to whether two strided views share memory. What is harder than this counts
# as overlapping: attention's usual layouts, slices of one fused buffer among them, are solved in a handful of
# steps.
_OVERLAP_WORK = 10_000


def operand(x: Any, name: str, kind: str) -> Array:
    """Return an array argument, which must be of the call's kind and in native byte order.

    In CPU memory it is a NumPy view, on a CUDA device a CuPy array.
    """
    array, own = to_array(x, name)
    if own != kind:
        raise TypeError(f"{name}: expected an array of the same kind as the others ({kind}), got {own}")
    return _native(array, name)


def _native(array: Array, name: str) -> Array:
    if not array.dtype.isnative:
        raise TypeError(f"{name}: byte-swapped arrays are not supported, got dtype {array.dtype.str!r}")
    return array


def host_operand(x: Any, name: str, kind: str) -> Array:
    """Return a small array argument as a NumPy array, whose values are to be checked.

    Next to arrays on a device it may lie there, and is copied, for which the call waits; or in CPU memory.
    """
    array, own = to_array(x, name)
    library, on_device, _ = kind.partition(" cuda:")
    if own != kind and not (on_device and own in ("numpy", library)):
        raise TypeError(f"{name}: expected an array of the same kind as the others ({kind}), got {own}")
    return _native(array if isinstance(array, np.ndarray) else array.get(), name)


def usable(array: Array) -> Array:
    """Return the array as the kernels can read it: itself, or a copy where its memory is out of step.

    They read any strides, negative and zero too, provided the last axis is contiguous and the address and the
    strides are multiples of the item size.
    """
    if not isinstance(array, np.ndarray):
        plain = array.strides[-1] == array.itemsize or array.shape[-1] == 1 or array.size == 0
        return array if plain else array.copy(order="C")
    if array.flags.aligned and (array.strides[-1] == array.itemsize or array.shape[-1] == 1):
        return array
    return array.copy(order="C")


def flag(value: Any, name: str) -> bool:
    """Return a switch as a bool. Only bools: ``causal="False"`` would be true otherwise."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def integer(value: Any, name: str, expected: str) -> int:
    """Return an integer argument as an int; a bool is none."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return index(value)
    except Exception:  # whatever an object of somebody's raises instead
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}") from None


def float_option(value: Any, name: str, *, positive: bool = False) -> float:
    """Return `scale` or `softcap` as a float that float32 can hold."""
    if isinstance(value, (str, bytes, bool, np.bool_)) or not (
        hasattr(value, "__float__") or hasattr(value, "__index__")
    ):
        raise TypeError(f"{name}: expected a number or None, got {type(value).__name__}")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected one number or None, got {type(value).__name__}: {error}"
        ) from error
    except OverflowError:
        number = float("inf")
    if not isfinite(number) or abs(number) > _FLOAT32_MAX:
        raise ValueError(f"{name}: expected a finite float32 number, got {number!r}")
    if positive and number < _FLOAT32_TINY:
        raise ValueError(f"{name}: expected a positive float32 number or None, got {number!r}")
    return number


def window_bounds(window: Any, causal: bool) -> tuple[int, int]:
    """Return how many keys a query sees before and after its position; -1 is unbounded."""
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window: expected None or a pair (left, right), got {window!r}")
    bounds = []
    for side, value in zip(("left", "right"), window, strict=True):
        reach = -1 if value is None else integer(value, f"window {side}", "an integer or None")
        if reach < -1:
            raise ValueError(f"window {side}: expected at least 0, or -1 or None for unbounded, got {reach}")
        # From 2**33 on no position is out of reach, and the kernels' sums of positions stay far from
        # overflow.
        bounds.append(reach if reach < 2**33 else -1)
    left, right = bounds
    return left, 0 if causal else right


def mask_array(mask: Any, shape: tuple[int, ...], kind: str, *, float64: bool) -> Array:
    """Return the mask as bool or float32 (or, for the reference, float64) with the axes of `shape`.

    Broadcast axes have stride 0. A bool or float32 mask is not copied.
    """
    array = operand(mask, "mask", kind)
    dtype = array.dtype
    if dtype.kind not in "bf" and dtype.name != "bfloat16":
        raise TypeError(
            f"mask: expected bool (True: may attend) or floating (added to the scores), got {dtype}"
        )
    if array.ndim > 4:
        raise ValueError(
            f"mask: expected at most 4 axes, broadcasting to (B, Hq, Sq, Sk) = {shape}, got {array.shape}"
        )
    if array.shape != shape:  # before a copy, which may be of more than there is room for
        try:
            np.broadcast_to(array, shape)
        except ValueError:
            raise ValueError(
                f"mask: shape {array.shape} does not broadcast to (B, Hq, Sq, Sk) = {shape}"
            ) from None
    if dtype.kind != "b" and dtype != np.float32:
        with np.errstate(over="ignore"):  # below float32's range is as hidden as -inf
            array = array.astype(np.float64 if float64 else np.float32)
    elif isinstance(array, np.ndarray) and not array.flags.aligned:
        array = array.copy(order="C")
    # CuPy's, where the array is CuPy's
    return array if array.shape == shape else np.broadcast_to(array, shape)


def _floats(
    x: Any, name: str, kind: str, float64: bool, shapes: tuple[tuple[int, ...], ...], expected: str
) -> Array:
    """Return an array of floats of one of the shapes, contiguous."""
    array = host_operand(x, name, kind)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
    if array.shape not in shapes:  # before a copy, which may be of more than there is room for
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")
    with np.errstate(over="ignore"):  # to inf, which is refused by name
        array = array.astype(np.float64 if float64 else np.float32, copy=False)
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy(order="C")


def alibi_array(slopes: Any, batch: int, heads: int, kind: str, *, float64: bool) -> Array:
    """Return the ALiBi slopes, (Hq,) or (B, Hq)."""
    expected = f"(Hq,) = ({heads},) or (B, Hq) = ({batch}, {heads})"
    array = _floats(slopes, "alibi_slopes", kind, float64, ((heads,), (batch, heads)), expected)
    if not np.isfinite(array).all():
        raise ValueError("alibi_slopes: expected finite float32 values")
    return array


def sink_array(sinks: Any, heads: int, kind: str, *, float64: bool) -> Array:
    """Return the sink logits, (Hq,). -inf is no sink."""
    array = _floats(sinks, "sinks", kind, float64, ((heads,),), f"(Hq,) = ({heads},)")
    if not (array < np.inf).all():  # NaN compares false
        raise ValueError("sinks: expected finite float32 values, or -inf for no sink")
    return array


def _integers(x: Any, name: str, kind: str, length: int | None, expected: str) -> Array:
    """Return a vector of integers as contiguous int64."""
    array = host_operand(x, name, kind)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.ndim != 1 or (array.shape[0] != length if length is not None else array.shape[0] < 1):
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: {int(array.max())} does not fit int64")
    array = array.astype(np.int64, copy=False)
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy()


def key_lengths(lengths: Any, batch: int, k_len: int, kind: str) -> Array:
    """Return `kv_lengths`: int64 (B,), each from 0 to Sk."""
    array = _integers(lengths, "kv_lengths", kind, batch, f"(B,) = ({batch},)")
    if batch and (int(array.min()) < 0 or int(array.max()) > k_len):
        raise ValueError(
            f"kv_lengths: expected 0 to Sk = {k_len}, got {int(array.min())} to {int(array.max())}"
        )
    return array


def query_offsets(offset: Any, batch: int, kind: str) -> Array:
    """Return `q_offset` as int64 (B,)."""
    if isinstance(offset, (int, np.integer)):
        value = integer(offset, "q_offset", "an integer, integers (B,), or None")
        if abs(value) > MAX_OFFSET:
            raise ValueError(f"q_offset: expected at most 2**31 in magnitude, got {value}")
        return np.full(batch, value, dtype=np.int64)
    array = _integers(offset, "q_offset", kind, batch, f"(B,) = ({batch},), or an int")
    if batch and (int(array.min()) < -MAX_OFFSET or int(array.max()) > MAX_OFFSET):
        raise ValueError(
            f"q_offset: expected at most 2**31 in magnitude, got {int(array.min())} to {int(array.max())}"
        )
    return array


def sequence_starts(starts: Any, name: str, rows_name: str, rows: int, kind: str) -> tuple[Array, int]:
    """Return `cu_seqlens_q` or `cu_seqlens_k` as int64 (B + 1,), and the longest sequence."""
    array = _integers(starts, name, kind, None, "(B + 1,), at least one entry")
    if array[0] != 0:
        raise ValueError(f"{name}: expected to start at 0, got {int(array[0])}")
    if array[-1] != rows:
        raise ValueError(f"{name}: expected to end at {rows_name} = {rows}, got {int(array[-1])}")
    # Compare neighbours first: the difference of two arbitrary int64 could overflow.
    if (array[1:] < array[:-1]).any():
        at = int(np.argmax(array[1:] < array[:-1]))
        raise ValueError(
            f"{name}: expected to never decrease, got {int(array[at])} then {int(array[at + 1])}"
        )
    return array, int((array[1:] - array[:-1]).max()) if array.shape[0] > 1 else 0


def _overlap(a: Array, b: Array) -> bool:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            return False  # one in CPU memory, one on a device
        a, b = addresses(a), addresses(b)
    if not np.may_share_memory(a, b):  # by bounds alone
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=_OVERLAP_WORK))  # type: ignore[arg-type] # any int is
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may lie at one address; true where a simple proof does not rule it out.

    From the smallest stride up, each must step over all that the smaller ones reach. Slices and transposes
    do.
    """
    if array.size == 0:
        return False
    reach = array.itemsize
    for stride, length in sorted(
        (abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1
    ):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


def output_array(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], kind: str, inputs: tuple[tuple[str, Any], ...]
) -> Array:
    """Return the caller's `out` as an array that can be written, or raise; nothing is written here.

    `inputs` are the other arguments by name, as the caller passed them; None and a plain integer share no
    memory.
    """
    array, own = to_array(out, "out")
    if own != kind:
        raise TypeError(f"out: expected an array of the same kind as the others ({kind}), got {own}")
    if kind.partition(" ")[0] == "jax":
        raise TypeError("out: JAX arrays cannot be written to; leave out=None")
    if array.dtype != dtype:
        raise TypeError(f"out: expected dtype {dtype} (q's), got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {array.shape}")
    host = isinstance(array, np.ndarray)
    if host and not array.flags.writeable:
        raise ValueError("out: the array is read-only")
    if array.strides[-1] != array.itemsize and array.shape[-1] > 1 and array.size:
        raise ValueError(f"out: expected a contiguous last axis, got strides {array.strides} bytes")
    if host and not array.flags.aligned:
        raise ValueError(f"out: expected addresses that are multiples of {array.itemsize} bytes")
    if _overlaps_itself(array):
        raise ValueError(
            f"out: elements share memory with each other (shape {shape}, strides {array.strides} bytes)"
        )
    for name, other in inputs:
        if other is None or isinstance(other, (int, np.integer)):
            continue
        if _overlap(array, to_array(other, name)[0]):
            raise ValueError(f"out: shares memory with {name}; attention cannot be computed in place")
    return array
