"""How busy a V100's tensor cores can be, from the instructions that a tile of keys costs a warp: two models.

An SM has four sub-cores. Each issues one instruction of 32 lanes a cycle, and its pipes take longer than a
cycle for it: a step of HMMA.884 two (so 8 for the 2048 FLOP of m8n8k4), 16 lanes of float32 and of integers
two, four lanes of the multi-function unit eight. The four share one data path of 128 bytes a cycle to shared
memory and the L1 cache.

`throughput` assumes that everything overlaps: cycles of the tensor pipe over those of whatever is busy
longest. No kernel is faster. `in_order` issues the warps' instructions one after another with the stall
counts and scoreboards that the compiler wrote into them, and the latencies below: what is left when too few
warps are there to hide them. Both leave out the memory behind the L2 cache, the beginning and the end of a
CTA, and clocks.

The rates are those that NVIDIA's white paper on the V100 and the CUDA programming guide tell (arithmetic
throughput: 16 conversions between float32 and float16 a cycle and SM, as many as special functions, hence one
pipe).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .sass import Instruction

SUB_CORES = 4
PEAK_TFLOPS = 125.0
REGISTERS, SHARED_BYTES, THREADS, CTAS = 65536, 96 * 1024, 2048, 32  # of an SM

_MULTIPLY = {"FADD", "FMUL", "FFMA", "IMAD"}
_FUNCTION = {"MUFU", "F2F", "F2I", "I2F"}
_SHARED = {"LDS", "STS"}
_GLOBAL = {"LDG", "STG", "LDL", "STL"}
_CONTROL = {"BRA", "BSSY", "BSYNC", "BMOV", "BAR", "NOP", "EXIT", "WARPSYNC", "CALL", "RET", "BREAK", "YIELD"}


def pipe_of(name: str) -> str:
    """Pipe that an opcode goes to: tensor, multiply, function, memory, control, or integer (all others)."""
    if name == "HMMA":
        return "tensor"
    if name in _MULTIPLY:
        return "multiply"
    if name in _FUNCTION:
        return "function"
    if name in _SHARED | _GLOBAL or name == "SHFL":
        return "memory"
    return "control" if name in _CONTROL else "integer"


_BUSY = {"tensor": 2, "multiply": 2, "function": 8, "integer": 2, "control": 1}
# Cycles from issue until a scoreboard is free. LDS and LDG (found in L2): as microbenchmarks of a V100 at
# 1530 MHz found them (compare Jia et al. 2018, named in sass.py); the others are assumed.
_LATENCY = {"LDS": 26, "SHFL": 26, "LDG": 211, "HMMA": 10, "STS": 20, "STG": 20, "LDL": 40, "STL": 20}
_FUNCTION_LATENCY, _READ_LATENCY, _BARRIER_LATENCY = 20, 12, 20
_QUEUED = (
    64  # cycles of work that may wait before the memory and function pipes, so that issue goes on (assumed)
)


@dataclass(frozen=True)
class Issued:
    """One issued instruction, with the cycles that it takes of the path to shared memory and L1."""

    instruction: Instruction
    wavefronts: int = 0


def issued(instruction: Instruction, wavefronts: int = 0) -> Issued:
    """`wavefronts`: of an access to shared memory; a global one takes one for 128 bytes, a shuffle one."""
    if instruction.name in _GLOBAL:
        wavefronts = 4 if instruction.has("128") else 2 if instruction.has("64") else 1
    elif instruction.name == "SHFL":
        wavefronts = 1
    return Issued(instruction, wavefronts)


def cycles(tile: Sequence[Issued]) -> dict[str, int]:
    """Cycles for which a tile keeps each resource of its sub-core, whose share of memory is a quarter."""
    pipes = Counter(pipe_of(one.instruction.name) for one in tile)
    found = {pipe: count * _BUSY[pipe] for pipe, count in pipes.items() if pipe not in ("memory", "control")}
    return found | {"issue": len(tile), "memory": SUB_CORES * sum(one.wavefronts for one in tile)}


def throughput(tile: Sequence[Issued]) -> tuple[float, str]:
    """Upper bound on the share of time in which tensor cores are busy, and what limits it."""
    busy = cycles(tile)
    limit = max(busy, key=lambda name: busy[name])
    return busy.get("tensor", 0) / busy[limit], limit


class _Warp:
    def __init__(self, tile: Sequence[Issued], repeats: int, cta: int) -> None:
        self.tile, self.length, self.cta = tile, len(tile) * repeats, cta
        self.at_barrier = False
        self.at = 0
        self.ready = 0  # cycle from which the next instruction may be issued
        self.boards = [0] * 6
        self.passed: list[int] = []  # cycles at which a tile was done

    def earliest(self, free: dict[str, int]) -> int:
        one = self.tile[self.at % len(self.tile)]
        i = one.instruction
        pipe = pipe_of(i.name)
        when = max(self.ready, free.get(pipe, 0) - (_QUEUED if pipe in ("memory", "function") else 0))
        for board in range(6):
            if i.waits >> board & 1:
                when = max(when, self.boards[board])
        return when

    def issue(self, now: int, free: dict[str, int]) -> None:
        one = self.tile[self.at % len(self.tile)]
        i, pipe = one.instruction, pipe_of(one.instruction.name)
        busy = SUB_CORES * one.wavefronts if pipe == "memory" else _BUSY[pipe]
        begin = max(now, free.get(pipe, 0))
        free[pipe] = begin + busy
        latency = _LATENCY.get(i.name, _FUNCTION_LATENCY if pipe == "function" else 10)
        if i.write_board >= 0:
            self.boards[i.write_board] = max(self.boards[i.write_board], begin + busy + latency)
        if i.read_board >= 0:
            self.boards[i.read_board] = max(self.boards[i.read_board], begin + _READ_LATENCY)
        self.ready = now + max(i.stall, 1)
        self.at_barrier = i.name == "BAR"
        self.at += 1
        if self.at % len(self.tile) == 0:
            self.passed.append(now)


def in_order(tile: Sequence[Issued], ctas: int, warps: int) -> float:
    """Share of time in which tensor cores are busy when a sub-core's warps run the same tile over and over.

    Parameters
    ----------
    tile : sequence of Issued
        What one tile of one warp issues.
    ctas, warps : int
        CTAs of the SM, and warps that each has on this sub-core. Warps of a CTA wait for each other at its
        barriers; CTAs begin a part of a tile apart. The warp that is longest ready is issued first.
    """
    repeats = 6
    running = [_Warp(tile, repeats, cta) for cta in range(ctas) for _ in range(warps)]
    alone = max(sum(max(one.instruction.stall, 1) for one in tile), 1)
    for warp in running:
        warp.ready = warp.cta * alone // ctas
    free: dict[str, int] = {}
    now = 0
    while any(warp.at < warp.length for warp in running):
        waiting = [
            (warp.earliest(free), warp.ready, n)
            for n, warp in enumerate(running)
            if warp.at < warp.length and not warp.at_barrier
        ]
        when, _, number = min(waiting)
        now = max(now + 1, when)
        running[number].issue(now, free)
        if running[number].at_barrier:
            others = [warp for warp in running if warp.cta == running[number].cta]
            if all(warp.at_barrier for warp in others):
                for warp in others:
                    warp.at_barrier, warp.ready = False, max(warp.ready, now + _BARRIER_LATENCY)
    # The last tiles run with fewer neighbours, the first while pipes fill: the middle counts.
    spans = [(warp.passed[-2] - warp.passed[1]) / (repeats - 3) for warp in running]
    return ctas * warps * cycles(tile).get("tensor", 0) / (sum(spans) / len(spans))


def ctas_per_sm(registers: int, threads: int, shared_bytes: int) -> int:
    """CTAs that fit on a V100's SM. Warps get registers by 256, CTAs get shared memory by 256 bytes."""
    of_warp = -(-registers * 32 // 256) * 256
    shared = -(-shared_bytes // 256) * 256
    by_registers = (REGISTERS // SUB_CORES // of_warp) * SUB_CORES // (threads // 32)
    return min(by_registers, SHARED_BYTES // shared if shared else CTAS, THREADS // threads, CTAS)
