"""An emulator of sm_70 machine code: a warp of 32 lanes, its control flow, and a CTA of warps.

Written to check kernels where no Volta is at hand: every instruction that the kernels use is executed for 32
lanes at once; one that is not known stops it. Lanes that part ways are run lowest address first and meet
again where the code says so (BSSY, BSYNC).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .banks import wavefronts
from .memory import KernelError, Memory, Words
from .operands import flags, predicate
from .sass import Instruction

Mask = NDArray[np.bool_]
Effect = Callable[["Warp", Mask], None]
Build = Callable[[Instruction], Effect]
_BUILDERS: dict[str, Build] = {}
STACK = 4096  # bytes of local memory a lane; the stack grows down from its end


def opcode(name: str) -> Callable[[Build], Build]:
    """Registers what makes an effect of instructions called `name`."""

    def add(build: Build) -> Build:
        _BUILDERS[name] = build
        return build

    return add


class Program:
    """Instructions with their effects, each built when it is first executed.

    Parameters
    ----------
    instructions : sequence of Instruction
        Of one kernel, from `sass.parse`.
    constants : bytes
        Its constant bank 2 (`toolchain.Compiled`).
    """

    def __init__(self, instructions: Sequence[Instruction], constants: bytes = b"") -> None:
        from . import access, floats, integers, tensor  # noqa: F401 (they register their instructions)

        self.instructions = list(instructions)
        self.constants = np.frombuffer(constants, np.uint32)
        self._effects: list[Effect | None] = [None] * len(self.instructions)
        self.guards = [None if i.guard == "PT" else flags(i.guard) for i in self.instructions]

    def effect(self, number: int) -> Effect:
        found = self._effects[number]
        if found is None:
            i = self.instructions[number]
            if i.name not in _BUILDERS:
                raise KernelError(f"{i.address:#x}: {i.opcode} is not known")
            found = self._effects[number] = _BUILDERS[i.name](i)
        return found


class Warp:
    """32 lanes of a CTA.

    Attributes
    ----------
    registers : (256, 32) uint32
        The last is RZ.
    predicates : (8, 32) bool
        The last is PT.
    trace : list of int
        Numbers of the instructions issued so far.
    accesses : list of (int, int, int)
        For each access to shared memory: its place in `trace`, wavefronts, and the fewest possible.
    """

    def __init__(self, program: Program, cta: Cta, number: int) -> None:
        self.program, self.cta, self.number = program, cta, number
        self.registers = np.full((256, 32), 0xDEADBEEF, np.uint32)
        self.registers[255] = 0
        self.predicates = np.zeros((8, 32), bool)
        self.predicates[7] = True
        self.pc = np.zeros(32, np.int64)
        self.alive, self.waiting = np.ones(32, bool), np.zeros(32, bool)
        self.boards: dict[str, Mask] = {}
        self.trace: list[int] = []
        self.accesses: list[tuple[int, int, int]] = []
        self._local: Memory | None = None
        self.product: tuple[object, NDArray[np.float64]] = (None, np.zeros((32, 8)))  # of tensor.py

    def set(self, number: int, value: Words, mask: Mask) -> None:
        if number != 255:
            np.copyto(self.registers[number], value, where=mask)

    def set_predicate(self, number: int, value: Mask, mask: Mask) -> None:
        if number != 7:
            np.copyto(self.predicates[number], value, where=mask)

    def constant(self, bank: int, offset: int) -> Words:
        banks = {0: self.cta.constants, 2: self.program.constants}
        if bank not in banks or offset // 4 >= len(banks[bank]):
            raise KernelError(f"constant bank {bank} at {offset:#x} is not known")
        return np.full(32, banks[bank][offset // 4], np.uint32)

    def local(self) -> Memory:
        """Local memory of the 32 lanes, one behind another; only kernels that spill have any."""
        if self._local is None:
            self._local = Memory(32 * STACK)
        return self._local

    def touch_shared(self, addresses: NDArray[np.int64], mask: Mask, size: int) -> None:
        """Counts the wavefronts of the access that is being executed."""
        self.accesses.append((len(self.trace) - 1, *wavefronts(addresses, mask, size)))

    def _meet(self, expected: Mask, here: Mask) -> bool:
        """Lanes `here` wait for all those `expected`; whether all have come."""
        self.waiting |= here
        place = self.pc[here][0]
        missing = expected & self.alive & ~(self.waiting & (self.pc == place))
        if missing.any():
            return False
        self.waiting[expected] = False
        self.pc[expected & self.alive & (self.pc == place)] += 16
        return True

    def run(self) -> Iterator[None]:
        """Runs to the end; pauses at each barrier of the CTA."""
        everyone = np.ones(32, bool)
        while self.alive.any():
            ready = self.alive & ~self.waiting
            if not ready.any():
                first = int(self.pc[self.alive].min())
                raise KernelError(f"warp {self.number}: all lanes wait, the first at {first:#x}")
            place = int(self.pc[ready].min())
            lanes = ready & (self.pc == place)
            number = place // 16
            i, guard = self.program.instructions[number], self.program.guards[number]
            active = lanes if guard is None else lanes & guard(self)
            self.trace.append(number)
            name = i.name
            if name == "BSYNC":
                self._meet(self.boards[i.operands[0]], lanes)
            elif name == "WARPSYNC":
                self._meet(everyone, lanes)
            elif name == "BAR":
                if i.opcode not in ("BAR.SYNC", "BAR.SYNC.DEFER_BLOCKING") or guard is not None:
                    raise KernelError(f"{i.address:#x}: {i.opcode} under {i.guard} is not known")
                if self._meet(everyone, lanes):
                    yield
            elif name in ("BRA", "CALL", "RET", "EXIT", "BSSY", "BMOV", "BREAK"):
                self._branch(i, lanes, active)
            else:
                if active.any():
                    try:
                        self.program.effect(number)(self, active)
                    except KernelError as fault:
                        raise KernelError(f"warp {self.number}, {i.address:#x} {i.opcode}: {fault}") from None
                self.pc[lanes] += 16

    def _branch(self, i: Instruction, lanes: Mask, active: Mask) -> None:
        self.pc[lanes] += 16
        if i.name == "EXIT":
            self.alive &= ~active
            # Who waited for the lanes that are gone comes to its BSYNC again.
            self.waiting[:] = False
        elif i.name == "RET":
            target = self.registers[int(i.operands[0].split()[0][1:])].astype(np.int64)
            self.pc[active] = target[active]
        elif i.name == "BSSY":
            self.boards[i.operands[0]] = active.copy()
        elif i.name == "BREAK":
            self.boards[i.operands[-1]] = self.boards[i.operands[-1]] & ~active
        elif i.name == "BMOV":
            if not (i.opcode == "BMOV.32.CLEAR" and i.operands[0] == "RZ"):
                raise KernelError(f"{i.address:#x}: {i.opcode} {', '.join(i.operands)} is not known")
            self.boards.pop(i.operands[1], None)
        elif i.has("DIV"):
            if not lanes.all():
                self.pc[active] = int(i.operands[-1], 16)
        else:
            if len(i.operands) == 2:  # BRA P0, target: both must hold
                number, negated = predicate(i.operands[0])
                active = active & (self.predicates[number] ^ negated)
            self.pc[active] = int(i.operands[-1], 16)


class Cta:
    """One CTA of a launch, with its shared memory.

    Parameters
    ----------
    program : Program
    threads : int
        A multiple of 32, in one dimension.
    shared_bytes : int
        Dynamic shared memory; NaN until it is written.
    parameters : bytes
        Of the kernel, as they lie in its parameter space.
    heap : Memory
        Global memory.
    grid, block : tuple of three int
        CTAs of the launch, and which of them this is.
    """

    def __init__(
        self,
        program: Program,
        threads: int,
        shared_bytes: int,
        parameters: bytes,
        heap: Memory,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> None:
        self.heap, self.shared, self.block = heap, Memory(shared_bytes), block
        bank = np.zeros(0x160 + (len(parameters) + 3) // 4 * 4, np.uint8)
        bank[0x28:0x2C] = np.array([STACK], np.uint32).view(np.uint8)
        bank[:24] = np.array([threads, 1, 1, *grid], np.uint32).view(np.uint8)
        bank[0x160 : 0x160 + len(parameters)] = np.frombuffer(parameters, np.uint8)
        self.constants = bank.view(np.uint32)
        self.warps = [Warp(program, self, n) for n in range(threads // 32)]

    def run(self) -> None:
        """Runs all warps, each from barrier to barrier."""
        running = [warp.run() for warp in self.warps]
        with np.errstate(all="ignore"):
            while running:
                arrived = [r for r in running if next(r, StopIteration) is not StopIteration]
                if arrived and len(arrived) != len(running):
                    raise KernelError("some warps of a CTA ended while others wait at a barrier")
                running = arrived
