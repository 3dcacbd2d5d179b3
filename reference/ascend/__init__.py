"""An NPU with decoupled Cube and Vector cores, modelled in time: what two-level tiling gains there, and why.

`two_level` says what is computed and what moves; this package says when. No NPU was at hand: the times are a
model's, every parameter names its source, and the model stands beside run times that others published. Read
in this order:

`machine`
    Buffers, cores and rates, each published, fitted or assumed; run times published for the real one.
`pipeline`
    Units that work in order, flags, rings of buffer slots; thousands of alike blocks in no time, exactly.
`schedules`
    FlashAttention as a program for these units, in one level of tiles or in two.
`unfused`
    Standard attention: operators one after the other, all scores in memory.
`sweep`
    Whole problems, the best legal block sizes, the speedup, and what it hangs on.

Examples
--------
>>> problem = Problem(16384, 16384, heads=32, causal=True)
>>> one = Fused(Machine(), problem, Blocks.unified(128, 128, 32))
>>> two = Fused(Machine(), problem, Blocks(128, 512, 128, 128, 16))
>>> f"{sweep.fused_time(one).cycles / sweep.fused_time(two).cycles:.2f}"
'1.32'
"""

from __future__ import annotations

from ..two_level import Blocks
from . import machine, pipeline, schedules, sweep, unfused
from .machine import Machine
from .schedules import Fused, Problem
from .unfused import Operators

__all__ = [
    "Blocks",
    "Fused",
    "Machine",
    "Operators",
    "Problem",
    "machine",
    "pipeline",
    "schedules",
    "sweep",
    "unfused",
]
