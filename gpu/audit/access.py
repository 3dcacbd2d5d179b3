"""Instructions that move data: global and shared memory, other lanes, special registers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .memory import KernelError
from .operands import address, flags, predicate, register, word
from .processor import STACK, Warp, opcode
from .sass import Instruction

Effect = Callable[[Warp, NDArray[np.bool_]], None]


def size_of(i: Instruction) -> int:
    """Bytes a lane that a load or store moves."""
    for name, size in (("128", 16), ("64", 8), ("U16", 2), ("U8", 1)):
        if i.has(name):
            return size
    if i.has("S8") or i.has("S16"):
        raise KernelError(f"{i.opcode}: not known")
    return 4


def _pointer(warp: Warp, number: int, offset: int, wide: bool) -> NDArray[np.int64]:
    low = warp.registers[number].astype(np.int64)
    if wide and number != 255:
        low = low | warp.registers[number + 1].astype(np.int64) << 32
    pointer: NDArray[np.int64] = low + offset
    return pointer


def _load(i: Instruction, shared: bool) -> Effect:
    result, (base, offset), size = register(i.operands[0]), address(i.operands[1]), size_of(i)

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        where = _pointer(warp, base, offset, not shared)
        if shared:
            warp.touch_shared(where, mask, size)
        words = (warp.cta.shared if shared else warp.cta.heap).gather(where[mask], size)
        for n in range(words.shape[1]):
            if result != 255:
                warp.registers[result + n][mask] = words[:, n]

    return effect


def _store(i: Instruction, shared: bool) -> Effect:
    (base, offset), source, size = address(i.operands[0]), register(i.operands[1]), size_of(i)

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        where = _pointer(warp, base, offset, not shared)
        if shared:
            warp.touch_shared(where, mask, size)
        rows = [255 if source == 255 else source + n for n in range(max(size // 4, 1))]
        words = np.stack([warp.registers[row] for row in rows], axis=1)[mask]
        (warp.cta.shared if shared else warp.cta.heap).scatter(where[mask], words, size)

    return effect


@opcode("LDG")
def ldg(i: Instruction) -> Effect:
    return _load(i, shared=False)


@opcode("LDS")
def lds(i: Instruction) -> Effect:
    return _load(i, shared=True)


@opcode("STG")
def stg(i: Instruction) -> Effect:
    return _store(i, shared=False)


@opcode("STS")
def sts(i: Instruction) -> Effect:
    return _store(i, shared=True)


def _local(i: Instruction, where: str) -> Callable[[Warp], NDArray[np.int64]]:
    """Addresses in a warp's local memory, which is laid out lane after lane."""
    base, offset = address(where)
    return lambda warp: _pointer(warp, base, offset, False) + np.arange(32) * STACK


@opcode("LDL")
def ldl(i: Instruction) -> Effect:
    result, place, size = register(i.operands[0]), _local(i, i.operands[1]), size_of(i)

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        words = warp.local().gather(place(warp)[mask], size)
        for n in range(words.shape[1]):
            warp.registers[result + n][mask] = words[:, n]

    return effect


@opcode("STL")
def stl(i: Instruction) -> Effect:
    place, source, size = _local(i, i.operands[0]), register(i.operands[1]), size_of(i)

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        rows = [255 if source == 255 else source + n for n in range(max(size // 4, 1))]
        warp.local().scatter(
            place(warp)[mask], np.stack([warp.registers[row] for row in rows], axis=1)[mask], size
        )

    return effect


@opcode("SHFL")
def shfl(i: Instruction) -> Effect:
    out, result = predicate(i.operands[0])[0], register(i.operands[1])
    source, by, clamp = (word(t) for t in i.operands[2:5])
    lanes = np.arange(32)

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        if np.any(clamp(warp)[mask] != 0x1F):
            raise KernelError("segments of a warp are not known")
        step = by(warp).astype(np.int64)
        other = {"BFLY": lanes ^ step, "IDX": step, "UP": lanes - step, "DOWN": lanes + step}[i.parts[1]]
        inside = (other >= 0) & (other < 32)
        other = np.where(inside, other, lanes)
        if not mask[other[mask]].all():
            raise KernelError("a lane asks for the register of a lane that takes no part")
        warp.set(result, source(warp)[other], mask)
        warp.set_predicate(out, inside, mask)

    return effect


@opcode("VOTE")
def vote(i: Instruction) -> Effect:
    out = predicate(i.operands[-2])[0]
    result = register(i.operands[0]) if len(i.operands) == 3 else 255
    source = flags(i.operands[-1])

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        votes = source(warp) & mask
        ballot = int(np.sum(votes.astype(np.uint64) << np.arange(32, dtype=np.uint64)))
        answer = votes.any() if i.has("ANY") else bool((votes == mask).all())
        warp.set(result, np.full(32, ballot, np.uint32), mask)
        warp.set_predicate(out, np.full(32, answer), mask)

    return effect


@opcode("S2R")
def s2r(i: Instruction) -> Effect:
    result, name = register(i.operands[0]), i.operands[1]

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        lanes = np.arange(32, dtype=np.uint32)
        if name == "SR_TID.X":
            value = lanes + np.uint32(warp.number * 32)
        elif name == "SR_LANEID":
            value = lanes
        elif name.startswith("SR_CTAID."):
            value = np.full(32, warp.cta.block["XYZ".index(name[-1])], np.uint32)
        else:
            raise KernelError(f"{name} is not known")
        warp.set(result, value, mask)

    return effect


@opcode("CS2R")
def cs2r(i: Instruction) -> Effect:
    result = register(i.operands[0])
    if i.operands[1] != "SRZ":
        raise KernelError(f"{i.operands[1]} is not known")

    def effect(warp: Warp, mask: NDArray[np.bool_]) -> None:
        zeros = np.zeros(32, np.uint32)
        warp.set(result, zeros, mask)
        if not i.has("32"):
            warp.set(result + 1, zeros, mask)

    return effect


@opcode("NOP")
def nop(i: Instruction) -> Effect:
    return lambda warp, mask: None
