"""Operands of instructions, as functions from a warp to 32 words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .memory import KernelError, Words

if TYPE_CHECKING:
    from .processor import Warp

Read = Callable[["Warp"], Words]
Flags = NDArray[np.bool_]
_CONSTANT = re.compile(r"c\[(0x[0-9a-f]+)\]\s*\[(0x[0-9a-f]+)\]$")
_ADDRESS = re.compile(r"\[(R\d+|RZ)?(?:\.(?:64|U32|X\d+))?\+?(-?0x[0-9a-f]+)?\]$")
_SUFFIX = re.compile(r"\.(?:ROW|COL|64|H0_H0|H1_H1|B\d)$")


def register(token: str) -> int:
    """Number of a register; 255 is RZ."""
    name = _SUFFIX.sub("", token).strip("-~|")
    if name == "RZ":
        return 255
    if not re.fullmatch(r"R\d+", name):
        raise KernelError(f"operand {token!r}: expected a register")
    return int(name[1:])


def predicate(token: str) -> tuple[int, bool]:
    """Number of a predicate (7 is PT) and whether it is negated."""
    name = token.lstrip("!")
    if not re.fullmatch(r"P(\d|T)", name):
        raise KernelError(f"operand {token!r}: expected a predicate")
    return 7 if name == "PT" else int(name[1]), token.startswith("!")


def flags(token: str) -> Callable[[Warp], Flags]:
    """Reads a predicate."""
    number, negated = predicate(token)
    if negated:
        return lambda warp: ~warp.predicates[number]
    return lambda warp: warp.predicates[number]


def is_predicate(token: str) -> bool:
    return re.fullmatch(r"!?P(\d|T)", token) is not None


def address(token: str) -> tuple[int, int]:
    """Register (255: none) and offset of ``[R2+0x10]``."""
    match = _ADDRESS.match(token)
    if not match:
        raise KernelError(f"operand {token!r}: expected an address")
    return register(match[1]) if match[1] else 255, int(match[2] or "0", 16)


def raw(token: str, real: bool = False) -> Read:
    """Reads a register, constant or immediate; `real`: immediates are floats unless they are hexadecimal."""
    token = _SUFFIX.sub("", token).strip()
    if re.fullmatch(r"R\d+|RZ", token):
        number = register(token)
        return lambda warp: warp.registers[number]
    constant = _CONSTANT.match(token)
    if constant:
        bank, offset = int(constant[1], 16), int(constant[2], 16)
        return lambda warp: warp.constant(bank, offset)
    number_of = {"INF": np.inf, "QNAN": np.nan}
    try:
        if token.startswith(("0x", "-0x")) or not real:
            value = np.uint32(int(token, 0) & 0xFFFFFFFF)
        else:
            name = token.strip("+-").rstrip()
            sign = -1.0 if token.startswith("-") else 1.0
            value = np.float32(sign * (number_of[name] if name in number_of else float(name))).view(np.uint32)
    except ValueError:
        raise KernelError(f"operand {token!r} is not known") from None
    words = np.full(32, value, np.uint32)
    return lambda warp: words


def word(token: str) -> Read:
    """An integer operand: ``-`` negates, ``~`` inverts."""
    if token.startswith("-") and not token.startswith("-0x"):
        read = raw(token[1:])
        return lambda warp: (~read(warp) + np.uint32(1)).astype(np.uint32)
    if token.startswith("~"):
        read = raw(token[1:])
        return lambda warp: ~read(warp)
    return raw(token)


def real(token: str) -> Callable[[Warp], NDArray[np.float32]]:
    """A float operand: ``-`` negates, ``|x|`` takes the absolute value."""
    negative = token.startswith("-") and not re.match(r"-(?:\d|INF|QNAN)", token)
    token = token[1:] if negative else token
    absolute = token.startswith("|")
    read = raw(token.strip("|"), real=True)

    def value(warp: Warp) -> NDArray[np.float32]:
        x = read(warp).view(np.float32)
        x = np.abs(x) if absolute else x
        return -x if negative else x

    return value
