"""Calls of the other public functions made of bytes: packed sequences, caches, merging.

As in attention_input.py: a right result, or an error that names the argument; and a cache that refused a
call is as it was before.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import fastattention
from fastattention import KVCache

from .attention_input import SIZES, FoundError, attend, described, is_tame
from .source import Source
from .values import FLOATS, numbers, strange

NAMES = (
    "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "causal", "window", "mask", "alibi_slopes", "scale",
    "sinks", "softcap", "q_offset", "return_lse", "out", "backend", "num_threads", "batch", "kv_heads",
    "head_dim", "dtype", "v_dim", "max_length", "page_size", "max_pages", "device", "lengths", "sequence",
    "length", "parts", "lse",
)  # fmt: skip
_ONE = rf"({'|'.join(NAMES)})(\[\d+\])?( (left|right|out|lse))?"
NAMED = re.compile(rf"{_ONE}((,| and) {_ONE})*: .{{8,}}", re.DOTALL)


def any_call(data: bytes) -> str:
    """Make the call of a fuzzer's bytes: of `attention` where the first is even, else of another function."""
    return call(Source(data[1:])) if data[:1] and data[0] % 2 else attend(data[1:])


def call(source: Source) -> str:
    """Make the calls; return what came of them, or raise a FoundError."""
    return source.one_of([_varlen, _cache, _merge])(source)


def _attempt(what: str, function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)  # as promised
            return "done", function(**arguments)
    except (TypeError, ValueError) as error:
        if not NAMED.match(str(error)):
            kind = type(error).__name__
            raise FoundError(f"{what}: {kind} names no argument: {error}\n{described(arguments)}") from error
        return type(error).__name__, None
    except (MemoryError, ImportError):  # ImportError: device="cuda"
        return "no room", None
    except BaseException as error:
        kind = type(error).__name__
        raise FoundError(f"{what}: {kind}: {error}\n{described(arguments)}") from error


def _spoilt(arguments: dict[str, Any], source: Source, like: tuple[int, ...]) -> dict[str, Any]:
    """Return arguments of which seldom one is strange."""
    if source.seldom(3):
        arguments[source.one_of(list(arguments))] = strange(source, like)
    return arguments


def _same(what: str, got: Any, wanted: Any, arguments: dict[str, Any]) -> None:
    """Kernels and reference agree roughly; tests of the kernels know tolerances."""
    pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
    for a, b in pairs:
        alike = a.shape == b.shape and a.dtype == b.dtype
        if alike and a.size:  # without elements, the other sizes may be too large to convert
            a, b = a.astype(np.float64), b.astype(np.float64)
            alike = np.isclose(a, b, rtol=0.05, atol=0.05, equal_nan=True).all()
        if not alike:
            raise FoundError(f"{what}: not the reference's result\n{described(arguments)}")


def _compare(what: str, function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    came, got = _attempt(what, function, arguments)
    if came != "done" or not all(is_tame(x) for x in arguments.values()):
        return came
    arguments = arguments | {"backend": "reference", "out": None}
    _, wanted = _attempt(what, function, arguments)
    _same(what, got, wanted, arguments)
    return "right"


def _options(source: Source) -> dict[str, Any]:
    return {
        "causal": source.seldom(2), "window": source.one_of([None, (3, 0), (None, 2), (0, 0)]),
        "softcap": source.one_of([None, 2.0]), "scale": source.one_of([None, 0.3]),
        "return_lse": source.seldom(2), "num_threads": source.one_of([1, 2]), "backend": "auto", "out": None,
        "sinks": None, "alibi_slopes": None, "q_offset": None,
    }  # fmt: skip


def _varlen(source: Source) -> str:
    kv_heads, group = source.one_of([1, 2, 0]), source.one_of([1, 3])
    dim, v_dim, count = source.one_of(SIZES), source.one_of(SIZES), source.one_of([1, 2, 3, 0])
    starts = [
        np.concatenate(([0], np.cumsum([source.one_of(SIZES) for _ in range(count)]))).astype(
            source.one_of([np.int64, np.int32, np.uint8])
        )
        for _ in range(2)
    ]
    dtype = source.one_of(FLOATS)
    rows_q, rows_k = (int(x[-1]) for x in starts)
    arguments = {
        "q": numbers(source, (rows_q, kv_heads * group, dim), dtype),
        "k": numbers(source, (rows_k, kv_heads, dim), dtype),
        "v": numbers(source, (rows_k, kv_heads, v_dim), dtype),
        "cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1], **_options(source),
    }  # fmt: skip
    if source.seldom(3):
        arguments["out"] = np.empty((rows_q, kv_heads * group, v_dim), dtype)
    arguments = _spoilt(arguments, source, (rows_q, kv_heads, dim))
    return _compare("attention_varlen", fastattention.attention_varlen, arguments)


def _merge(source: Source) -> str:
    shape = (source.one_of([1, 2, 0]), source.one_of([1, 3]), source.one_of(SIZES), source.one_of(SIZES))
    parts: Any = [
        (numbers(source, shape, np.float32), numbers(source, shape[:3], np.float32))
        for _ in range(source.one_of([2, 1, 3, 0]))
    ]
    if source.seldom(3) and parts:
        parts[0] = source.one_of(
            [(parts[0][0], strange(source, shape[:3])), (strange(source, shape), parts[0][1])]
        )
    if source.seldom(6):
        parts = strange(source, shape)
    return _attempt("merge", fastattention.merge, {"parts": parts})[0]


def _state(cache: KVCache) -> tuple[Any, ...]:
    planes = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    return cache.lengths.tolist(), cache.pages_in_use, [None if x is None else x.tobytes() for x in planes]


def _cache(source: Source) -> str:
    sizes: dict[str, Any] = {
        "batch": source.one_of([1, 2, 3]), "kv_heads": source.one_of([1, 2]),
        "head_dim": source.one_of([1, 8, 20, 300]), "v_dim": source.one_of([None, 5, 16]),
        "dtype": source.one_of([*FLOATS, "int8", "bfloat16"]), "max_length": source.one_of([40, 1, 9]),
        "page_size": source.one_of([None, 8, 16, 7]), "max_pages": source.one_of([None, 3]), "device": "cpu",
    }  # fmt: skip
    came, cache = _attempt("KVCache", KVCache, _spoilt(sizes, source, (2, 2)))
    if came != "done" or cache.device != "cpu" or cache.nbytes > 1 << 26:
        return came
    batch, kv_heads, _, dim = (len(cache.lengths), cache.keys.shape[1], 0, cache.keys.shape[3])
    shape = (batch, kv_heads, source.one_of(SIZES))
    tame = True  # int8 kernels round a value in units of the largest that they meet beside it
    for _ in range(source.one_of([2, 3, 4])):
        before = _state(cache)
        change = source.one_of(["append", "append", "free", "truncate", "reserve", "attend"])
        if change == "append":
            arguments = {
                "k": numbers(source, (*shape, dim), np.float32),
                "v": numbers(source, (*shape, cache.values.shape[3]), np.float32),
                "lengths": source.generator().integers(0, shape[2] + 1, batch) if source.seldom(2) else None,
            }
        elif change == "attend":
            arguments = {
                "q": numbers(source, (batch, kv_heads * 2, source.one_of(SIZES), dim), np.float32),
                "mask": None, **_options(source),
            }  # fmt: skip
        else:
            arguments = {"sequence" if change == "free" else "length": source.one_of([0, 1, 5, 100])}
        arguments = _spoilt(arguments, source, (*shape, dim))
        if change == "attend" and tame:
            came = _compare("attend", cache.attend, arguments)
        else:
            came, _ = _attempt(change, getattr(cache, change), arguments)
        if change == "append" and came == "done":
            tame = tame and all(is_tame(x) for x in arguments.values())
        if (came not in ("done", "right") or change in ("attend", "reserve")) and _state(cache) != before:
            raise FoundError(f"{change} was refused, and the cache is another\n{described(arguments)}")
    return came
