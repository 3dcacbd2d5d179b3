"""Integer instructions of sm_70, lane by lane."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .memory import KernelError, Words
from .operands import Flags, flags, is_predicate, predicate, raw, register, word
from .processor import Warp, opcode
from .sass import Instruction

Effect = Callable[[Warp, NDArray[np.bool_]], None]
_Source = TypeVar("_Source")
_MASK = np.uint64(0xFFFFFFFF)


def _wide(words: Words) -> NDArray[np.uint64]:
    return words.astype(np.uint64)


def _low(x: NDArray[np.uint64]) -> Words:
    return (x & _MASK).astype(np.uint32)


def _high(x: NDArray[np.uint64]) -> Words:
    return (x >> np.uint64(32)).astype(np.uint32)


def _addend(token: str) -> Callable[[Warp], NDArray[np.uint64]]:
    """An operand of a sum whose carry counts: -x is ~x + 1, which carries for x = 0."""
    if token.startswith("-") and not token.startswith("-0x"):
        read = raw(token[1:])
        return lambda warp: _wide(~read(warp)) + np.uint64(1)
    read = word(token)
    return lambda warp: _wide(read(warp))


def _split(tokens: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    """Operands behind the result: predicates written, sources, predicates read."""
    rest = list(tokens[1:])
    written: list[str] = []
    while rest and is_predicate(rest[0]):
        written.append(rest.pop(0))
    read: list[str] = []
    while rest and is_predicate(rest[-1]):
        read.insert(0, rest.pop())
    return written, rest, read


@opcode("IADD3")
def iadd3(i: Instruction) -> Effect:
    result = register(i.operands[0])
    written, sources, carries = _split(i.operands)
    terms = [_addend(s) for s in sources]
    outs = [predicate(p)[0] for p in written]
    ins = [flags(p) for p in carries] if i.has("X") else []

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        total = sum((t(warp) for t in terms), np.zeros(32, np.uint64))
        for carry in ins:
            total = total + carry(warp)
        warp.set(result, _low(total), mask)
        for number, out in enumerate(outs):
            warp.set_predicate(out, _high(total) > number, mask)

    return effect


@opcode("IMAD")
def imad(i: Instruction) -> Effect:
    result = register(i.operands[0])
    written, (a_token, b_token, c_token), carries = _split(i.operands)
    signed = not i.has("U32")
    if i.has("WIDE") or i.has("HI"):
        if i.has("X") or c_token.startswith(("-", "~")):
            raise KernelError(f"{i.opcode} {', '.join(i.operands)}: not known")
        c_read = _pair(c_token)
        a, b = word(a_token), word(b_token)

        def wide(warp: Warp, mask: NDArray[np.bool_]) -> None:
            if signed:
                product = (a(warp).view(np.int32).astype(np.int64) * b(warp).view(np.int32)).view(np.uint64)
            else:
                product = _wide(a(warp)) * _wide(b(warp))
            addend = c_read(warp)
            total = product + addend
            if i.has("HI"):
                warp.set(result, _high(total), mask)
            else:
                warp.set(result, _low(total), mask)
                if result != 255:
                    warp.set(result + 1, _high(total), mask)
            for out in written:
                warp.set_predicate(predicate(out)[0], total < addend, mask)

        return wide
    if written:
        raise KernelError(f"{i.opcode}: carry of a product is not known")
    a, b, c = word(a_token), word(b_token), word(c_token)
    ins = [flags(p) for p in carries] if i.has("X") else []

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        total = a(warp) * b(warp) + c(warp)
        for carry in ins:
            total = total + carry(warp).astype(np.uint32)
        warp.set(result, total, mask)

    return effect


def _pair(token: str) -> Callable[[Warp], NDArray[np.uint64]]:
    """64 bits: two registers, two constants, or an immediate."""
    if token.startswith("R") and token != "RZ":
        number = register(token)
        return lambda warp: _wide(warp.registers[number]) | _wide(warp.registers[number + 1]) << np.uint64(32)
    if token.startswith("c["):
        low = raw(token)
        bank, offset = (int(part, 16) for part in re.findall(r"0x[0-9a-f]+", token))
        return lambda warp: _wide(low(warp)) | _wide(warp.constant(bank, offset + 4)) << np.uint64(32)
    low = raw(token)
    return lambda warp: _wide(low(warp))


@opcode("LEA")
def lea(i: Instruction) -> Effect:
    result = register(i.operands[0])
    written, sources, carries = _split(i.operands)
    shift = np.uint64(int(sources[-1], 16))
    a, b = word(sources[0]), _addend(sources[1])
    c = word(sources[2]) if i.has("HI") and len(sources) == 4 else None
    ins = [flags(p) for p in carries] if i.has("X") else []
    outs = [predicate(p)[0] for p in written]

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        if i.has("SX32"):
            shifted = (a(warp).view(np.int32).astype(np.int64) << shift.astype(np.int64)).view(np.uint64)
        else:
            shifted = (_wide(a(warp)) | (_wide(c(warp)) << np.uint64(32) if c else np.uint64(0))) << shift
        term = shifted >> np.uint64(32) if i.has("HI") else shifted
        total = (term & _MASK) + b(warp)
        for carry in ins:
            total = total + carry(warp)
        warp.set(result, _low(total), mask)
        for out in outs:
            warp.set_predicate(out, _high(total) > 0, mask)

    return effect


@opcode("SHF")
def shf(i: Instruction) -> Effect:
    result = register(i.operands[0])
    a, by, c = (word(t) for t in i.operands[1:])
    wide = i.has("U64") or i.has("S64")
    kind, left, high = i.parts[-2] if i.has("HI") else i.parts[-1], i.has("L"), i.has("HI")
    if i.has("W") or kind not in ("U32", "S32", "U64", "S64"):
        raise KernelError(f"{i.opcode}: not known")

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        count = np.minimum(_wide(by(warp)), np.uint64(63 if wide else 32))
        both = _wide(c(warp)) << np.uint64(32) | _wide(a(warp))
        if left:
            shifted = both << count
        elif kind.startswith("S"):
            shifted = (both.view(np.int64) >> count.astype(np.int64)).view(np.uint64)
        else:
            shifted = both >> count
        warp.set(result, _high(shifted) if high else _low(shifted), mask)

    return effect


#: What the first modifier of ISETP and FSETP names.
COMPARE = {"LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal,
           "NE": np.not_equal}  # fmt: skip


def combine(i: Instruction, base: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if i.has("AND"):
        return base & other
    if i.has("OR"):
        return base | other
    return base ^ other


@opcode("ISETP")
def isetp(i: Instruction) -> Effect:
    first, second = predicate(i.operands[0])[0], predicate(i.operands[1])[0]
    a, b, other = word(i.operands[2]), word(i.operands[3]), flags(i.operands[4])
    lower = flags(i.operands[5]) if i.has("EX") else None
    name = i.parts[1]
    kind = np.uint32 if i.has("U32") else np.int32

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x, y = a(warp).view(kind), b(warp).view(kind)
        base = COMPARE[name](x, y)
        if lower is not None:  # upper halves: where they are the same, the lower ones decide
            strict = {"LE": "LT", "GE": "GT"}.get(name, name)
            equal = x == y
            if name == "EQ":
                base = equal & lower(warp)
            elif name == "NE":
                base = ~equal | lower(warp)
            else:
                base = COMPARE[strict](x, y) | equal & lower(warp)
        o = other(warp)
        warp.set_predicate(first, combine(i, base, o), mask)
        warp.set_predicate(second, combine(i, ~base, o), mask)

    return effect


@opcode("LOP3")
def lop3(i: Instruction) -> Effect:
    tokens = i.operands
    out = predicate(tokens[0])[0] if is_predicate(tokens[0]) else 7
    tokens = tokens[1:] if is_predicate(tokens[0]) else tokens
    result = register(tokens[0])
    a, b, c = (word(t) for t in tokens[1:4])
    table = int(tokens[4], 16)
    also, both = flags(tokens[5]), i.has("PAND")

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x, y, z = a(warp), b(warp), c(warp)
        value = np.zeros(32, np.uint32)
        for case in range(8):
            if table >> case & 1:
                value |= (x if case & 4 else ~x) & (y if case & 2 else ~y) & (z if case & 1 else ~z)
        warp.set(result, value, mask)
        some = value != 0
        warp.set_predicate(out, some & also(warp) if both else some | also(warp), mask)

    return effect


@opcode("PLOP3")
def plop3(i: Instruction) -> Effect:
    first, second = predicate(i.operands[0])[0], predicate(i.operands[1])[0]
    sources = [flags(t) for t in i.operands[2:5]]
    tables = [int(t, 16) for t in i.operands[5:7]]

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x, y, z = (s(warp).astype(np.int64) for s in sources)
        case = x * 4 + y * 2 + z
        warp.set_predicate(first, (tables[0] >> case & 1).astype(bool), mask)
        warp.set_predicate(second, (tables[1] >> case & 1).astype(bool), mask)

    return effect


def choice(
    i: Instruction, read: Callable[[str], _Source]
) -> tuple[int, _Source, _Source, Callable[[Warp], Flags]]:
    """Result, two sources and the predicate that chooses between them."""
    return register(i.operands[0]), read(i.operands[1]), read(i.operands[2]), flags(i.operands[3])


@opcode("SEL")
def sel(i: Instruction) -> Effect:
    result, a, b, condition = choice(i, word)
    return lambda warp, mask: warp.set(result, np.where(condition(warp), a(warp), b(warp)), mask)


@opcode("P2R")
def p2r(i: Instruction) -> Effect:
    """Predicates as bits of a register: those of the mask, the others from a source."""
    result, base, chosen = register(i.operands[0]), word(i.operands[2]), word(i.operands[3])
    if i.operands[1] != "PR" or i.opcode != "P2R":
        raise KernelError(f"{i.opcode} {i.operands}: only P2R of all predicates into a register is known")

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        bits = sum((warp.predicates[n].astype(np.uint32) << np.uint32(n) for n in range(7)), np.uint32(0))
        these = chosen(warp)
        warp.set(result, (base(warp) & ~these) | (bits & these), mask)

    return effect


@opcode("IMNMX")
def imnmx(i: Instruction) -> Effect:
    result, a, b, condition = choice(i, word)
    kind = np.uint32 if i.has("U32") else np.int32

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        x, y = a(warp).view(kind), b(warp).view(kind)
        warp.set(result, np.where(condition(warp), np.minimum(x, y), np.maximum(x, y)).view(np.uint32), mask)

    return effect


@opcode("IABS")
def iabs(i: Instruction) -> Effect:
    result, a = register(i.operands[0]), word(i.operands[1])
    return lambda warp, mask: warp.set(result, np.abs(a(warp).view(np.int32)).view(np.uint32), mask)


@opcode("PRMT")
def prmt(i: Instruction) -> Effect:
    result = register(i.operands[0])
    a, select, c = (word(t) for t in i.operands[1:4])

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        source = np.stack([a(warp), c(warp)], axis=1).view(np.uint8)  # (32, 8) bytes
        pick = np.stack([select(warp) >> np.uint32(4 * n) & np.uint32(15) for n in range(4)], axis=1).astype(
            np.int64
        )
        chosen = np.take_along_axis(source, pick & 7, axis=1)
        chosen = np.where(pick & 8, np.where(chosen & 128, 255, 0), chosen).astype(np.uint8)
        warp.set(result, np.ascontiguousarray(chosen).view(np.uint32)[:, 0], mask)

    return effect


@opcode("MOV")
def mov(i: Instruction) -> Effect:
    result, a = register(i.operands[0]), word(i.operands[1])
    return lambda warp, mask: warp.set(result, a(warp), mask)
