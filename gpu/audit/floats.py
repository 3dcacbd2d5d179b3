"""Floating-point instructions of sm_70, lane by lane.

Sums, products and conversions are rounded as IEEE 754 says. The multi-function unit's results (ex2, rcp, ...)
are rounded from float64: more exact than the unit's, which errs by 1 to 2 units of the last place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .integers import COMPARE, choice, combine
from .memory import KernelError
from .operands import flags, predicate, real, register, word
from .processor import Warp, opcode
from .sass import Instruction

Effect = Callable[[Warp, NDArray[np.bool_]], None]
Floats = NDArray[np.float32]
_TINY = np.float32(2.0**-126)


def _bits(x: NDArray[np.floating]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(x.astype(np.float32)).view(np.uint32)


def _flush(x: Floats) -> Floats:
    return np.where(np.abs(x) < _TINY, np.copysign(np.float32(0), x), x).astype(np.float32)


def _arithmetic(i: Instruction, compute: Callable[..., NDArray[np.floating]]) -> Effect:
    if any(i.has(m) for m in ("RM", "RP", "RZ", "SAT")):
        return _unknown(i)
    result, sources = register(i.operands[0]), [real(t) for t in i.operands[1:]]
    flush = i.has("FTZ")

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        values = [_flush(s(warp)) if flush else s(warp) for s in sources]
        found = compute(*values).astype(np.float32)
        warp.set(result, _bits(_flush(found) if flush else found), mask)

    return effect


def _unknown(i: Instruction) -> Effect:
    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        raise KernelError(f"{i.opcode} {', '.join(i.operands)}: not known")

    return effect


@opcode("FADD")
def fadd(i: Instruction) -> Effect:
    return _arithmetic(i, lambda a, b: a + b)


@opcode("FMUL")
def fmul(i: Instruction) -> Effect:
    return _arithmetic(i, lambda a, b: a * b)


@opcode("FFMA")
def ffma(i: Instruction) -> Effect:
    # The product of two float32 is exact in float64; the sum is rounded there and again to float32.
    return _arithmetic(i, lambda a, b, c: a.astype(np.float64) * b + c)


@opcode("FMNMX")
def fmnmx(i: Instruction) -> Effect:
    result, a, b, smaller = choice(i, real)

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x, y = a(warp), b(warp)
        warp.set(result, _bits(np.where(smaller(warp), np.fmin(x, y), np.fmax(x, y))), mask)

    return effect


@opcode("FSEL")
def fsel(i: Instruction) -> Effect:
    result, a, b, condition = choice(i, real)
    return lambda warp, mask: warp.set(result, _bits(np.where(condition(warp), a(warp), b(warp))), mask)


@opcode("FSETP")
def fsetp(i: Instruction) -> Effect:
    first, second = predicate(i.operands[0])[0], predicate(i.operands[1])[0]
    a, b, other = real(i.operands[2]), real(i.operands[3]), flags(i.operands[4])
    name = i.parts[1]
    unordered = len(name) == 3 and name.endswith("U")
    compare = COMPARE.get(name[:2])
    if compare is None or len(name) > 3:
        raise KernelError(f"{i.opcode}: not known")

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x, y = a(warp), b(warp)
        nan = np.isnan(x) | np.isnan(y)
        base = compare(x, y) & ~nan | (nan if unordered else np.False_)
        warp.set_predicate(first, combine(i, base, other(warp)), mask)
        warp.set_predicate(second, combine(i, ~base, other(warp)), mask)

    return effect


_FUNCTIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "EX2": np.exp2,
    "LG2": np.log2,
    "RCP": np.reciprocal,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
}


@opcode("MUFU")
def mufu(i: Instruction) -> Effect:
    result, a, function = register(i.operands[0]), real(i.operands[1]), _FUNCTIONS[i.parts[1]]

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        with np.errstate(all="ignore"):
            warp.set(
                result, _bits(_flush(function(_flush(a(warp)).astype(np.float64)).astype(np.float32))), mask
            )

    return effect


@opcode("FCHK")
def fchk(i: Instruction) -> Effect:
    """Whether the quotient of two floats needs the slow path: exponents near either end."""
    out, a, b = predicate(i.operands[0])[0], real(i.operands[1]), real(i.operands[2])

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x, y = (_bits(s(warp)) >> np.uint32(23) & np.uint32(255) for s in (a, b))
        gap = x.astype(np.int64) - y
        slow = (x == 255) | (y == 255) | (y == 0) | (x < 25) | (y > 252) | (gap > 125) | (gap < -124)
        warp.set_predicate(out, slow & (_bits(a(warp)) << np.uint32(1) != 0), mask)

    return effect


@opcode("F2F")
def f2f(i: Instruction) -> Effect:
    result = register(i.operands[0])
    if i.parts[1:] == ("F16", "F32"):
        a = real(i.operands[1])

        def narrow(warp: Warp, mask: NDArray[np.bool_]) -> None:
            with np.errstate(over="ignore"):
                warp.set(result, a(warp).astype(np.float16).view(np.uint16).astype(np.uint32), mask)

        return narrow
    raise KernelError(f"{i.opcode}: not known")


@opcode("HADD2")
def hadd2(i: Instruction) -> Effect:
    """As sm_70 widens a half: ``HADD2.F32 R0, -RZ, R1.H0_H0``."""
    if not i.has("F32") or i.operands[1] != "-RZ":
        raise KernelError(f"{i.opcode} {', '.join(i.operands)}: not known")
    upper = i.operands[2].endswith("H1_H1")
    result, a = register(i.operands[0]), word(i.operands[2])

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        half = (a(warp) >> np.uint32(16 if upper else 0)).astype(np.uint16)
        warp.set(result, _bits(half.view(np.float16)), mask)

    return effect


@opcode("I2F")
def i2f(i: Instruction) -> Effect:
    if i.has("U64") or i.has("S64"):
        return _unknown(i)
    result, a, upwards = register(i.operands[0]), word(i.operands[1]), i.has("RP")
    kind = np.uint32 if i.has("U32") else np.int32

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        exact = a(warp).view(kind).astype(np.float64)
        x = exact.astype(np.float32)
        if upwards:
            x = np.where(x < exact, np.nextafter(x, np.float32(np.inf)), x)
        warp.set(result, _bits(x), mask)

    return effect


@opcode("F2I")
def f2i(i: Instruction) -> Effect:
    if i.has("U64") or i.has("S64") or not i.has("TRUNC"):
        return _unknown(i)
    result, a = register(i.operands[0]), real(i.operands[1])
    low, high = (0, 2**32 - 1) if i.has("U32") else (-(2**31), 2**31 - 1)

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x = np.clip(np.nan_to_num(np.trunc(a(warp).astype(np.float64)), nan=0.0), low, high)
        warp.set(result, x.astype(np.int64).astype(np.uint32), mask)

    return effect
