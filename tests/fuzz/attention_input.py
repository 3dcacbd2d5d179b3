"""One call of a public function made of bytes: the right result, or an error that names the argument.

Nothing else may happen: no other exception, no warning, no crash, and no `out` half written by a call that
is refused.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np

import fastattention

from ..cases import solve
from ..conftest import Engine, check
from ..hardening.oracle import denormals_lost, dtype_name
from ..tolerances import Problem
from .source import Source
from .values import FLOATS, numbers, strange

NAMES = (
    "q", "k", "v", "causal", "window", "mask", "alibi_slopes", "scale", "softcap", "sinks", "kv_lengths",
    "q_offset", "return_lse", "out", "backend", "num_threads",
)  # fmt: skip
#: How a message must begin: an argument's name, or two; then what is expected.
NAMED = re.compile(rf"({'|'.join(NAMES)})((,| and) ({'|'.join(NAMES)}))?( left| right)?: .{{10,}}", re.DOTALL)
SIZES = (1, 2, 3, 5, 0, 8, 17, 40)


class FoundError(AssertionError):
    """What should not have happened, and the call that made it happen."""


def call_of(data: bytes) -> dict[str, Any]:
    """Return the arguments of a call: a good one, or one with something strange in it."""
    source = Source(data)
    dtype = source.one_of(FLOATS)
    batch, kv_heads, group = (
        source.one_of([1, 2, 3, 0]),
        source.one_of([1, 2, 0]),
        source.one_of([1, 2, 4, 0]),
    )
    q_len, k_len, dim, v_dim = (source.one_of(SIZES) for _ in range(4))
    heads = kv_heads * group
    shapes: dict[str, tuple[int, ...]] = {
        "q": (batch, heads, q_len, dim),
        "k": (batch, kv_heads, k_len, dim),
        "v": (batch, kv_heads, k_len, v_dim),
    }
    call: dict[str, Any] = {name: numbers(source, shape, dtype) for name, shape in shapes.items()}
    scores = (batch, heads, q_len, k_len)
    if source.seldom(2):
        call["causal"] = True
    if source.seldom(3):
        call["window"] = (source.one_of([None, -1, 0, 3, 50]), source.one_of([None, -1, 0, 3, 50]))
    if source.seldom(3):
        shape = tuple(1 if source.seldom(3) else size for size in scores)[source.number(4) :]
        x = numbers(source, shape, source.one_of([np.float32, np.float64, *FLOATS]))
        call["mask"] = np.signbit(x.astype(np.float32)) if source.seldom(2) else x
    if source.seldom(4):
        call["alibi_slopes"] = numbers(source, source.one_of([(heads,), (batch, heads)]), np.float32)
    if source.seldom(4):
        call["scale"] = source.one_of([0.5, 1, 0.0, -2.0, np.float32(0.1), 1e-3])
    if source.seldom(4):
        call["softcap"] = source.one_of([1.0, 30, 0.01, np.float64(5)])
    if source.seldom(4):
        call["sinks"] = numbers(source, (heads,), np.float32)
    if source.seldom(3):
        kind = source.one_of([np.int64, np.int32, np.uint8, np.uint64])
        call["kv_lengths"] = source.generator().integers(0, k_len + 1, batch).astype(kind)
    if source.seldom(4):
        call["q_offset"] = source.one_of([0, -3, 5, 2**31, np.int16(4), np.full(batch, 2)])
    if source.seldom(3):
        call["return_lse"] = True
    if source.seldom(4):
        call["out"] = np.full((batch, heads, q_len, v_dim), 7, dtype)
    if source.seldom(3):
        call["num_threads"] = source.one_of([1, 2, 3, np.int64(2)])
    if source.seldom(4):
        call["backend"] = source.one_of(["auto", "cpu", "reference"])
    for _ in range(source.one_of([0, 1, 1, 2])):
        name = source.one_of(NAMES)
        if source.seldom(4):
            call[name] = call[source.one_of(list(call))]  # what is meant for another one
        else:
            call[name] = strange(source, shapes.get(name, scores))
    return call


def described(call: dict[str, Any]) -> str:
    def one(x: Any) -> str:
        if isinstance(x, np.ndarray):
            return f"{type(x).__name__}{x.shape} {x.dtype} strides {x.strides}"
        return f"{x!r:.80}"

    return "\n".join(f"  {name} = {one(x)}" for name, x in call.items())


def attend(data: bytes) -> str:
    """Make the call; return what came of it, in a word, or raise a FoundError."""
    call = call_of(data)
    out = call.get("out")
    before = (
        out.tobytes() if isinstance(out, np.ndarray) and out.nbytes < 2**20 and out.dtype != object else None
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = fastattention.attention(call["q"], call["k"], call["v"], **_options(call))
    except (TypeError, ValueError) as error:
        if not NAMED.match(str(error)):
            raise FoundError(
                f"{type(error).__name__} names no argument: {error}\n{described(call)}"
            ) from error
        if before is not None and out is not None and out.tobytes() != before:
            raise FoundError(f"a call that is refused has written\n{described(call)}") from error
        return type(error).__name__
    except MemoryError:
        return "MemoryError"
    except BaseException as error:
        raise FoundError(f"{type(error).__name__}: {error}\n{described(call)}") from error
    try:
        return _compared(call, got)
    except Exception as error:
        raise FoundError(f"{type(error).__name__}: {error}\n{described(call)}") from error


def _options(call: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in call.items() if name not in ("q", "k", "v")}


def _compared(call: dict[str, Any], got: Any) -> str:
    """Hold a result to the specification, where all numbers are ones that rounding theory is about."""
    q, k, v = (np.asarray(call[name]) for name in "qkv")
    options = {
        name: x for name, x in call.items() if name not in ("q", "k", "v", "out", "backend", "num_threads")
    }
    with_lse = bool(options.pop("return_lse", False))
    result = got[0] if with_lse else got
    if call.get("out") is not None and result is not call["out"]:
        raise AssertionError("the result is not `out`")
    if result.shape != (*q.shape[:3], v.shape[3]) or result.dtype != q.dtype:
        raise AssertionError(f"result {result.shape} {result.dtype}")
    if math.prod(max(n, 1) for n in (*q.shape, k.shape[2], v.shape[3])) > 2**24:  # one axis may be 0
        return "too large to check"
    if not all(is_tame(x) for x in (q, k, v, *options.values())):
        return "unchecked"
    for name in ("mask", "alibi_slopes", "sinks", "kv_lengths"):
        if options.get(name) is not None:
            options[name] = np.asarray(options[name])
    reference = call.get("backend") == "reference"
    for name in ("mask", "alibi_slopes", "sinks"):  # the kernels have no float64
        if (x := options.get(name)) is not None and x.dtype != np.bool_:
            options[name] = x.astype(np.float64 if reference else np.float32)
    if options.get("window") is not None:  # past any position
        options["window"] = tuple(None if x is None or x > 2**33 else x for x in options["window"])
    for name in ("scale", "softcap"):
        if options.get(name) is not None:
            options[name] = float(options[name])
    engine = Engine("reference" if reference else "cpu", fastattention.get_isa())
    answer = solve(Problem(q, k, v, options), dtype_name(q), engine.accumulation)
    lse = got[1] if with_lse else answer.lse
    check(result, lse, denormals_lost(answer, v))
    return "right"


def is_tame(x: Any) -> bool:
    """Whether no number is so large, or none at all, that only the kind of result is defined."""
    if not isinstance(x, np.ndarray) or x.dtype.kind in "biu":
        return not isinstance(x, (int, float, np.number)) or abs(float(x)) < 2**33
    wide = x.astype(np.float64)
    return bool((np.abs(wide) < 1e3).all()) and bool(((wide == 0) | (np.abs(wide) > 1e-30)).all())
