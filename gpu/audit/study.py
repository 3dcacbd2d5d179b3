"""One configuration, compiled, read, and (for Volta's tensor-core kernels) executed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import bound, launch
from .configurations import Configuration
from .memory import KernelError
from .processor import Program, Warp
from .sass import Instruction, tensor_loop
from .toolchain import KERNELS, compile_kernel, disassemble

FLOP_OF_HMMA = {"884": 2048 // 4, "1688": 2048, "16816": 4096}  # of an instruction; 884 is one step of four
REQUIRED_BOUND = {64: 0.55, 128: 0.55, 256: 0.45}
#: Bytes of local memory that pass, with a word, in variants and at head dimensions between 64, 128 and 256: a
#: few registers, for which rare calls do not get tiles of their own.
FEW_BYTES = 24
# float16 keeps 11 bits: weights, and outputs of a few units.
TOLERANCE = 4e-3


@dataclass
class Execution:
    """What the emulator saw of a Volta kernel: figures of one warp and one tile of keys in the steady state.

    Attributes
    ----------
    error : float
        Largest difference of the output from a float64 computation.
    issue : dict
        Instructions by pipe, and of the opcodes that matter by name.
    growing, partial : int
        Instructions of a tile in which a maximum grows, and of one with hidden keys.
    hmma, hmma_needed : int
        Steps of HMMA.884 in all tiles of a warp, and those that the FLOPs need.
    load_wavefronts, load_ideal, store_wavefronts, store_ideal : int
        Wavefronts of shared memory, and the fewest possible.
    cycles : dict
        Of a sub-core, by resource.
    bound : float
        Upper bound on the share of time in which tensor cores are busy; `limit` says what limits it.
    in_order : float
        The same with latencies, at the occupancy of this kernel.
    """

    error: float
    issue: dict[str, int]
    steady: int
    growing: int
    partial: int
    hmma: int
    hmma_needed: int
    load_wavefronts: int
    load_ideal: int
    store_wavefronts: int
    store_ideal: int
    cycles: dict[str, int]
    bound: float
    limit: str
    in_order: float


@dataclass
class Study:
    """All that is known of one configuration.

    `failures` lists what is not as required, `tolerated` what would be a failure in a configuration that most
    calls take.
    """

    configuration: Configuration
    registers: int
    spills: int
    shared_bytes: int
    ctas: int | None
    loop_hmma: int | None
    loop_hmma_needed: int | None
    execution: Execution | None
    failures: list[str] = field(default_factory=list)
    tolerated: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        c = self.configuration
        found = asdict(self)
        found["configuration"] = {"source": c.source, "architecture": c.architecture, **c.macros}
        return found


def examine(c: Configuration, folder: Path = KERNELS, *, execute: bool = True) -> Study:
    """Compiles a configuration, reads its code, and holds it against what is required.

    Parameters
    ----------
    c : Configuration
    folder : Path
        Where the kernels lie.
    execute : bool
        Also run Volta's tensor-core kernels in the emulator (seconds each).

    Raises
    ------
    ToolchainError
        It does not compile.
    """
    compiled = compile_kernel(c.source, c.architecture, c.macros, entry=c.chosen.entry, folder=folder)
    instructions = disassemble(compiled)
    spills = max(compiled.stack, compiled.spill_stores + compiled.spill_loads)
    found = Study(c, compiled.registers, spills, compiled.static_shared, None, None, None, None)
    if spills:
        loop = tensor_loop(instructions)
        inside = instructions[loop.first : loop.last + 1] if loop else instructions
        times = sum(i.name in ("LDL", "STL") for i in inside)
        few = compiled.stack <= FEW_BYTES and not c.principal
        (found.tolerated if few else found.failures).append(
            f"local memory: {compiled.stack} bytes of stack, {compiled.spill_stores} stored, "
            f"{compiled.spill_loads} loaded, {times} instructions {'in the loop' if loop else 'in all'}; "
            "expected none"
        )
    if not c.prefill:
        return found
    found.shared_bytes += c.chosen.shared
    _count_loop(found, instructions)
    if c.architecture == 70:
        found.ctas = bound.ctas_per_sm(found.registers, c.chosen.threads, found.shared_bytes)
        if found.ctas == 0:
            found.failures.append(
                f"{found.registers} registers, {found.shared_bytes} bytes: does not fit on an SM"
            )
        elif execute:
            try:
                found.execution = _execute(c, Program(instructions, compiled.constants), found.ctas)
            except KernelError as fault:
                found.failures.append(f"stopped: {fault}")
            else:
                found.failures += _judge(c, found.execution)
    return found


def _count_loop(found: Study, instructions: list[Instruction]) -> None:
    """Tensor-core instructions in the loop over tiles, against those that one tile of one warp needs."""
    c = found.configuration
    loop = tensor_loop(instructions)
    if loop is None:
        found.failures.append("no loop with tensor-core instructions")
        return
    body = [i for i in instructions[loop.first : loop.last + 1] if i.name == "HMMA"]
    flops = 2 * c.number("WARP_ROWS") * c.number("KEYS") * (c.number("HEAD_DIM") + c.number("V_DIM"))
    found.loop_hmma = len(body)
    found.loop_hmma_needed = flops // FLOP_OF_HMMA[body[0].parts[1]]
    if found.loop_hmma != found.loop_hmma_needed:
        found.failures.append(f"{found.loop_hmma} HMMA in the loop; expected {found.loop_hmma_needed}")


def _inputs(c: Configuration) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float16], int]:
    """A CTA's rows against five tiles and a part; maxima grow in the first two, then no more."""
    rng = np.random.default_rng(1)
    keys, dim, v_dim = (c.number(name) for name in ("KEYS", "HEAD_DIM", "V_DIM"))
    tiles = 6
    length = tiles * keys - 3
    q = rng.standard_normal((1, 1, c.chosen.rows, dim)).astype(np.float16)
    k = rng.standard_normal((1, 1, length, dim))
    k[:, :, :keys] *= 2
    k[:, :, keys : 2 * keys] = k[:, :, :keys] * 3  # larger in every row: the largest of a row is positive
    k[:, :, 2 * keys :] *= 0.5
    v = rng.standard_normal((1, 1, length, v_dim)).astype(np.float16)
    return q, k.astype(np.float16), v, tiles


def expected(
    q: NDArray[np.float16],
    k: NDArray[np.float16],
    v: NDArray[np.float16],
    visible: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Attention in float64; a row that sees nothing is 0."""
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    out: NDArray[np.float64] = weights @ v.astype(np.float64) / np.where(total == 0, 1, total)
    return out


def _tiles(warp: Warp, first: int) -> list[slice]:
    """Parts of a warp's trace from one arrival at the loop's first instruction to the next."""
    at = [n for n, number in enumerate(warp.trace) if number == first]
    return [slice(a, b) for a, b in zip(at, [*at[1:], len(warp.trace)], strict=True)]


def _execute(c: Configuration, program: Program, ctas: int) -> Execution:
    instructions = program.instructions
    q, k, v, count = _inputs(c)
    result = launch.attention(program, c.chosen, q, k, v)
    error = float(np.abs(result.out - expected(q, k, v)).max())
    warp = result.ctas[0].warps[-1]
    loop = tensor_loop(instructions)
    tiles = _tiles(warp, loop.first) if loop else []
    if len(tiles) != count:
        raise KernelError(f"the loop over tiles ran {len(tiles)} times; expected {count}")
    waves = {at: (taken, ideal) for at, taken, ideal in warp.accesses}
    # Loads of operands are all of the loop's LDS, stores of tiles its STS; the worst of the warps counts.
    sums = {name: [0, 0] for name in ("LDS", "STS")}
    steady = tiles[count // 2]
    for at in range(steady.start, steady.stop):
        if at in waves:
            total = sums[instructions[warp.trace[at]].name]
            total[0] += waves[at][0]
            total[1] += waves[at][1]
    tile = [
        bound.issued(instructions[warp.trace[at]], waves.get(at, (0, 0))[0])
        for at in range(steady.start, steady.stop)
    ]
    names = Counter(one.instruction.name for one in tile)
    issue = dict(Counter(bound.pipe_of(one.instruction.name) for one in tile))
    issue |= {
        name: names[name]
        for name in ("HMMA", "LDS", "STS", "LDG", "SHFL", "MUFU", "F2F", "BSYNC")
        if names[name]
    }
    share, limit = bound.throughput(tile)
    return Execution(
        error=error,
        issue=issue,
        steady=len(tile),
        growing=tiles[1].stop - tiles[1].start,
        partial=_masked(warp, tiles[-1], instructions, loop.last if loop else 0),
        hmma=sum(instructions[number].name == "HMMA" for number in warp.trace),
        hmma_needed=count * 4 * 2 * c.number("WARP_ROWS") * c.number("KEYS")
        * (c.number("HEAD_DIM") + c.number("V_DIM")) // 2048,
        load_wavefronts=sums["LDS"][0],
        load_ideal=sums["LDS"][1],
        store_wavefronts=sums["STS"][0],
        store_ideal=sums["STS"][1],
        cycles=bound.cycles(tile),
        bound=share,
        limit=limit,
        in_order=bound.in_order(tile, ctas, max(1, c.number("WARPS") // 4)),
    )  # fmt: skip


def _masked(warp: Warp, tile: slice, instructions: list[Instruction], last: int) -> int:
    """Instructions of the last tile: up to the branch that ends the loop."""
    ends = [at for at in range(tile.start, tile.stop) if warp.trace[at] == last]
    last_of_tile: int = ends[-1] if ends else tile.stop
    return last_of_tile - int(tile.start)


def _judge(c: Configuration, e: Execution) -> list[str]:
    found = []
    if not e.error <= TOLERANCE:
        found.append(f"wrong result: off by {e.error:.2g}; expected {TOLERANCE:g} at most")
    if e.hmma != e.hmma_needed:
        found.append(f"{e.hmma} steps of HMMA executed; expected {e.hmma_needed}")
    if c.source == "03_tensor_cores.cu":
        return found  # the step before: conflicts and waiting are what it shows
    if e.load_wavefronts != e.load_ideal:
        found.append(f"bank conflicts: loads take {e.load_wavefronts} wavefronts; expected {e.load_ideal}")
    if e.store_wavefronts != e.store_ideal and c.principal:  # once a tile, where loads are many
        found.append(f"bank conflicts: stores take {e.store_wavefronts} wavefronts; expected {e.store_ideal}")
    dim = max(c.number("HEAD_DIM"), c.number("V_DIM"))
    least = next((b for d, b in sorted(REQUIRED_BOUND.items()) if dim <= d), REQUIRED_BOUND[256])
    if e.bound < least:
        found.append(f"tensor cores busy {e.bound:.0%} at most ({e.limit}); expected {least:.0%} or more")
    return found
