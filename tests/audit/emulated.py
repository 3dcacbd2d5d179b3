"""A few lines of machine code, executed by one warp."""

from __future__ import annotations

import numpy as np
from fastattention.gpu.audit.memory import Heap
from fastattention.gpu.audit.processor import Cta, Program, Warp
from fastattention.gpu.audit.sass import parse

LANES = np.arange(32, dtype=np.uint32)


def run(
    code: str, *, shared: int = 4096, parameters: bytes = b"", threads: int = 32, **registers: np.ndarray
) -> Warp:
    """Executes lines of SASS from given registers (R4=...); EXIT is added. Returns the first warp."""
    lines = [line.strip() for line in code.strip().splitlines()] + ["EXIT"]
    listing = "\n".join(f"        /*{16 * n:04x}*/   {line} ;" for n, line in enumerate(lines))
    heap = Heap(4096)
    cta = Cta(Program(parse(listing)), threads, shared, parameters, heap, (1, 1, 1), (0, 0, 0))
    for warp in cta.warps:
        for name, value in registers.items():
            warp.registers[int(name[1:])] = np.broadcast_to(value, 32)
    cta.run()
    return cta.warps[0]


def words(value: int) -> tuple[int, int]:
    """Lower and upper half of a 64-bit number."""
    return value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
