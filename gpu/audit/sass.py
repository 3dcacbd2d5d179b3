"""Listings of machine code: instructions, operands and loops."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_LINE = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P(?:\d|T))\s+)?(?P<text>[^;]+?)\s*;"
)
_BYTES = 16  # of an instruction, sm_70 to sm_90


@dataclass(frozen=True)
class Instruction:
    """One instruction as the disassembler prints it.

    Attributes
    ----------
    address : int
        Bytes from the beginning of the kernel.
    guard : str
        Predicate under which it is executed, ``"PT"`` (always) where none is printed.
    opcode : str
        With its modifiers: ``"LDS.U.128"``.
    operands : tuple of str
        As printed, less the hint ``.reuse``.
    stall : int
        Cycles until the warp may issue its next instruction, from the control bits; 1 where they were not
        given.
    waits : int
        Set of the scoreboards (bit i: number i) that must be free before it is issued.
    write_board, read_board : int
        Scoreboards that are held until its result is written, or its operands are read; -1: none.
    """

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    stall: int = 1
    waits: int = 0
    write_board: int = -1
    read_board: int = -1

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.opcode.split("."))

    @property
    def name(self) -> str:
        """Opcode without modifiers."""
        return self.parts[0]

    def has(self, modifier: str) -> bool:
        return modifier in self.parts[1:]

    @property
    def target(self) -> int | None:
        """Address that a branch goes to; None for anything else."""
        return int(self.operands[-1], 16) if self.name == "BRA" and self.operands else None


@dataclass(frozen=True)
class Loop:
    """Instructions from the target of a backward branch to the branch."""

    first: int  # numbers of instructions, both included
    last: int


def _operands(text: str) -> tuple[str, ...]:
    return tuple(part.strip().replace(".reuse", "") for part in text.split(",")) if text else ()


def parse(listing: str, code: bytes = b"") -> list[Instruction]:
    """Instructions of a listing of one kernel.

    Parameters
    ----------
    listing : str
        What ``nvdisasm --binary`` prints: an address, the instruction and a semicolon on a line. Other lines
        (labels, directives) are passed over.
    code : bytes, optional
        The machine code of the listing, for the control bits: bits 105 to 121 of each 16 bytes hold the stall
        count, the yield hint, the scoreboard of the result, that of the operands, and the scoreboards to wait
        for. (Found by Jia et al., "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking",
        2018.)

    Raises
    ------
    ValueError
        Addresses are not those of consecutive instructions, or `code` is of another length.
    """
    found: list[Instruction] = []
    for line in listing.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        opcode, _, rest = match["text"].partition(" ")
        number = len(found)
        address = int(match["address"], 16)
        if address != number * _BYTES:
            raise ValueError(
                f"listing: instruction {number} stands at {address:#x}, expected {number * _BYTES:#x}"
            )
        control: dict[str, int] = {}
        if code:
            bits = int.from_bytes(code[address : address + _BYTES], "little") >> 105
            boards = [board if board != 7 else -1 for board in (bits >> 5 & 7, bits >> 8 & 7)]
            control = {
                "stall": bits & 15,
                "write_board": boards[0],
                "read_board": boards[1],
                "waits": bits >> 11 & 63,
            }
        found.append(Instruction(address, match["guard"] or "PT", opcode, _operands(rest.strip()), **control))
    if code and len(code) != len(found) * _BYTES:
        raise ValueError(
            f"code: {len(code)} bytes, expected {len(found) * _BYTES} for {len(found)} instructions"
        )
    return found


def loops(instructions: list[Instruction]) -> list[Loop]:
    """Loops by their backward branches, in their order; a branch to itself (the end of a kernel) is none."""
    return [
        Loop(i.target // _BYTES, number)
        for number, i in enumerate(instructions)
        if i.target is not None and i.target < i.address
    ]


def tensor_loop(instructions: list[Instruction]) -> Loop | None:
    """The loop over tiles: the smallest that holds every tensor-core instruction that any loop holds.

    Slow paths lie behind the kernel and jump back into it: what looks like a loop from such a branch holds no
    more tensor-core instructions than the real one, and is larger. None where no loop holds any.
    """

    def count(loop: Loop) -> int:
        return sum(i.name in ("HMMA", "IMMA") for i in instructions[loop.first : loop.last + 1])

    candidates = [(count(loop), loop.first - loop.last, loop) for loop in loops(instructions)]
    best = max(candidates, key=lambda c: c[:2], default=(0, 0, None))
    return best[2] if best[0] else None
