"""How long attention takes on the modelled NPU, which block sizes are best, and what the answer hangs on.

The paper (arXiv 2410.16663, abstract) reports up to 10.7x over standard attention on Ascend; at which shape
and against which code was not at hand. The model's ratio, for 32 heads of size 128, with 128 x 512 blocks:

>>> two = Blocks(128, 512, 128, 128, 16)
>>> codes = [Operators(scale=False), Operators(), Operators(upcast=True)]  # softmax; scale; float32
>>> for causal, length in product((False, True), (2048, 8192, 65536)):
...     problem = Problem(length, length, heads=32, causal=causal)
...     ratios = [speedup(Machine(), problem, blocks=two, operators=code) for code in codes]
...     print("causal" if causal else "full  ", f"{length:5}", *(f"{ratio:6.1f}" for ratio in ratios))
full    2048    2.0    2.8    6.9
full    8192    2.5    3.6    9.1
full   65536    3.9    5.2   12.4
causal  2048    5.5    6.8   13.0
causal  8192    8.5   10.6   20.5
causal 65536   12.5   15.0   29.3

So it comes near the paper's figure for causal attention of 8K tokens and more against code that scales, adds
a mask and takes the softmax in three operators of 16 bits; and as well for full attention of 8K and more
against code that casts to float32 and back. That there are two ways to get there shows that it is no proof:
whether attention is causal, and what code one compares with, moves the ratio further than any assumed
parameter of the machine does. Most of it is the memory traffic of S and the half of the work that causal
tiles skip; what two levels gain over one (1.3 to 2 times) hangs on two guesses, the time of a hand-over and
how far ahead the Cube works.

`speedup` gives the ratio for anything else; `sensitivity` halves and doubles each parameter. What the model
can say is how the parts relate, not microseconds: `against_published` sets it beside run times of a real
one, to which one core's were fitted, and where all cores work it takes 10 to 36 % too little.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import product
from typing import NamedTuple

from ..two_level import Blocks
from .machine import MEASURED, Machine
from .pipeline import work
from .schedules import Fused, Problem
from .unfused import Operators
from .unfused import cycles as standard_cycles

PAPER_SPEEDUP = 10.7  # over standard attention, "up to"; abstract
PAPER_THROUGHPUT = 5.16  # of Llama-7B as a whole, "up to"; abstract


class Time(NamedTuple):
    """How long the whole problem takes.

    Attributes
    ----------
    cycles : int
        From launch to the last core's end.
    bound : int
        Cycles that the busiest unit of an average core works: no order of tasks is faster.
    busy : dict of str to float
        Share of the time that each unit works, of all cores together.
    """

    cycles: int
    bound: int
    busy: dict[str, float]


def fused_time(fused: Fused) -> Time:
    """Return the time of all jobs: the longest first, each to the core that is free first.

    Examples
    --------
    >>> problem = Problem(4096, 4096, heads=8, causal=True)
    >>> one = fused_time(Fused(Machine(), problem, Blocks.unified(128, 128, 64)))
    >>> two = fused_time(Fused(Machine(), problem, Blocks(128, 512, 128, 128, 16)))
    >>> two.cycles < one.cycles
    True
    """
    engine, m, p = fused.engine(), fused.machine, fused.problem
    jobs: Counter[int] = Counter()
    units: Counter[str] = Counter()
    for program, times in fused.jobs():
        jobs[engine.run(program)] += times * p.heads
        for unit, cycles in work(program).items():
            units[unit] += cycles * times * p.heads
    total = m.launch + _share(jobs, m.cube_cores)
    busy = {unit: cycles / (m.cube_cores * total) for unit, cycles in units.items()}
    return Time(total, -(-max(units.values()) // m.cube_cores), busy)


def _share(jobs: Counter[int], cores: int) -> int:
    """Return when the last of the cores is done, if each takes the longest job that is left when it is free.

    Rounds of equal jobs are dealt at once: when all cores are equally far, as many go to each.
    """
    ends = [0] * cores
    for cycles, times in sorted(jobs.items(), reverse=True):
        if ends[0] == max(ends):
            whole, times = divmod(times, cores)
            ends = [end + whole * cycles for end in ends]
        for _ in range(times):
            heapq.heapreplace(ends, ends[0] + cycles)
    return max(ends)


def legal(machine: Machine, problem: Problem, blocks: Iterable[Blocks], lookahead: int = 2) -> list[Blocks]:
    """Return those of the sizes whose buffers fit.

    Examples
    --------
    >>> sizes = [Blocks(128, keys, 128, 128, 16) for keys in (128, 512, 4096)]
    >>> [b.block_k for b in legal(Machine(), Problem(8192, 8192), sizes)]
    [128, 512]
    """
    fit = []
    for b in blocks:
        try:
            Fused(machine, problem, b, lookahead).engine()
        except ValueError:
            continue
        fit.append(b)
    return fit


def candidates(machine: Machine, problem: Problem, lookahead: int = 2) -> list[Blocks]:
    """Return the block sizes to try, each with the most rows a piece that fit: powers of two, legal only.

    Examples
    --------
    >>> len(candidates(Machine(), Problem(8192, 8192)))
    55
    """
    found = []
    for block_q, block_k, tile_q, tile_k in product(
        (64, 128, 256, 512), (64, 128, 256, 512, 1024, 2048), (64, 128), (64, 128, 256)
    ):
        if tile_q <= block_q and tile_k <= block_k:
            rows = [r for r in (64, 32, 16, 8, 4) if r <= tile_q]
            fit = legal(
                machine, problem, (Blocks(block_q, block_k, tile_q, tile_k, r) for r in rows), lookahead
            )
            found += fit[:1]
    return found


class Choice(NamedTuple):
    """A point of a sweep."""

    cycles: int
    blocks: Blocks


def sweep(machine: Machine, problem: Problem, *, unified: bool = False, lookahead: int = 2) -> list[Choice]:
    """Return all legal sizes, the fastest first; with `unified`, those of one level only.

    Examples
    --------
    >>> problem = Problem(2048, 2048, causal=True)
    >>> both = [sweep(Machine(), problem, unified=one)[0] for one in (False, True)]
    >>> both[0].cycles <= both[1].cycles
    True
    """
    tried = candidates(machine, problem, lookahead)
    if unified:
        tried = [b for b in tried if (b.block_q, b.block_k) == (b.tile_q, b.tile_k)]
    times = [Choice(fused_time(Fused(machine, problem, b, lookahead)).cycles, b) for b in tried]
    return sorted(times, key=lambda choice: choice.cycles)


def speedup(
    machine: Machine,
    problem: Problem,
    *,
    blocks: Blocks | None = None,
    operators: Operators | None = None,
    lookahead: int = 2,
) -> float:
    """Return standard attention's time over that of two-level tiling, with the best blocks or those given.

    Examples
    --------
    >>> blocks = Blocks(128, 512, 128, 128, 16)
    >>> speedup(Machine(), Problem(8192, 8192, heads=8, causal=True), blocks=blocks) > 1
    True
    """
    if blocks is None:
        fused = sweep(machine, problem, lookahead=lookahead)[0].cycles
    else:
        fused = fused_time(Fused(machine, problem, blocks, lookahead)).cycles
    return standard_cycles(machine, problem, operators) / fused


class Sensitivity(NamedTuple):
    """The speedup with one parameter halved, and doubled."""

    parameter: str
    source: str
    halved: float
    doubled: float


def sensitivity(
    machine: Machine,
    problem: Problem,
    *,
    blocks: Blocks,
    operators: Operators | None = None,
    lookahead: int = 2,
) -> list[Sensitivity]:
    """Return what halving and doubling each parameter does to `speedup`, the most telling first.

    The blocks stay; where a halved buffer no longer holds them the best that it does hold take their place.
    """
    rows = []
    base = speedup(machine, problem, blocks=blocks, operators=operators, lookahead=lookahead)
    for parameter in (f.name for f in fields(machine)):
        ratios = []
        for factor in (0.5, 2.0):
            value = getattr(machine, parameter)
            other = replace(machine, **{parameter: type(value)(value * factor)})
            fit = blocks if legal(other, problem, [blocks], lookahead) else None
            ratios.append(speedup(other, problem, blocks=fit, operators=operators, lookahead=lookahead))
        rows.append(Sensitivity(parameter, machine.sources()[parameter], *ratios))
    return sorted(rows, key=lambda row: -max(abs(row.halved - base), abs(row.doubled - base)))


def against_published(
    machine: Machine, blocks: Blocks, lookahead: int = 2
) -> list[tuple[int, int, float, float]]:
    """Return (Sq, Sk, published, modelled) in microseconds.

    Examples
    --------
    >>> rows = against_published(Machine(), Blocks(128, 512, 128, 128, 16))
    >>> [f"{q} x {k}: {model / real:.2f}" for q, k, real, model in rows if q == 128]
    ['128 x 1024: 0.84', '128 x 2048: 1.00', '128 x 4096: 1.01', '128 x 8192: 1.00']
    """
    rows = []
    for (q_len, k_len), real in MEASURED.items():
        cycles = fused_time(Fused(machine, Problem(q_len, k_len), blocks, lookahead)).cycles
        rows.append((q_len, k_len, real, machine.seconds(cycles) * 1e6))
    return rows


def share_of_attention(whole: float, attention: float) -> float:
    """Return the share of its time that a model must spend in attention, to gain `whole` from `attention`.

    Amdahl's law: 1 / whole = 1 - f + f / attention.

    Examples
    --------
    The paper's throughput, 5.16x, if attention alone became 10.7x as fast:

    >>> f"{share_of_attention(PAPER_THROUGHPUT, PAPER_SPEEDUP):.0%}"
    '89%'
    """
    if not 1.0 < whole <= attention:
        raise ValueError(
            f"the whole gains more than nothing and no more than its part, got {whole}, {attention}"
        )
    return (1.0 - 1.0 / whole) / (1.0 - 1.0 / attention)
