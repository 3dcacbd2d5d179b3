"""How a call is launched: grid, parts of the keys, workspace. Numbers: what `launch` does, `explain` says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .choose import Configuration, grid, resident, split_keys
from .device import Card
from .portions import Call, sizes

__all__ = ["Explained", "Plan", "plan_of", "planned"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch.

    Attributes
    ----------
    grid : tuple of int
        CTAs along x, y and z.
    resident : int
        CTAs that an SM holds at a time.
    shared, workspace : int
        Bytes of dynamic shared memory of a CTA, and of device memory for the parts of split keys.
    splits, split_keys : int
        Decode: in how many parts the keys are read, and how many keys a part has at most. Prefill: 1 and 0.
    sets, row_blocks : int
        Decode: CTAs that there were without a split, and those of a KV head of a sequence.
    """

    grid: tuple[int, int, int]
    resident: int
    shared: int
    workspace: int = 0
    splits: int = 1
    split_keys: int = 0
    sets: int = 0
    row_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Explained:
    """A call: its kernel, which needs so many registers a thread, and its launches."""

    card: Card
    atom: int
    configuration: Configuration
    registers: int
    launches: tuple[Plan, ...]


def planned(configuration: Configuration, registers: int, here: Card, call: Call) -> Plan:
    """Return how a call is launched that one launch takes (`portions`)."""
    n = sizes(call)
    return plan_of(
        configuration, registers, here, n["batch"], n["q_heads"], n["kv_heads"], n["q_len"],
        1 if configuration.entry == "attention" else _longest(call),
    )  # fmt: skip


@lru_cache(maxsize=1024)  # a decoder asks for the same until its keys are a step more
def plan_of(
    configuration: Configuration, registers: int, here: Card, batch: int, q_heads: int, kv_heads: int,
    q_len: int, longest: int,
) -> Plan:  # fmt: skip
    """Return how a launch of these sizes is made; `longest`: the most keys of a sequence, 1 in prefill."""
    n = {"batch": batch, "q_heads": q_heads, "kv_heads": kv_heads, "q_len": q_len}
    fits = resident(
        configuration, registers, sm_threads=here.sm_threads, sm_registers=here.sm_registers,
        sm_shared=here.sm_shared,
    )  # fmt: skip
    if configuration.entry == "attention":
        return Plan(grid(configuration, **n), fits, configuration.shared)
    _, heads, _ = grid(configuration, **n)
    sets = n["batch"] * heads
    splits, size = split_keys(configuration.step, longest, sets, here.sms * fits)
    floats = sets * splits * configuration.rows * configuration.part
    return Plan(
        grid(configuration, **n, splits=splits), fits, configuration.decode_shared(splits),
        4 * (floats + sets) if splits > 1 else 0, splits, size, sets, heads // n["kv_heads"],
    )  # fmt: skip


def _longest(call: Call) -> int:
    """Return the most keys of a sequence, as far as the host knows; at least 1."""
    packed = call["cu_seqlens_q"] is not None or call["block_table"] is not None
    longest = call["max_seqlen_k"] if packed else call["k"].shape[2]
    lengths = call["kv_lengths"]
    if isinstance(lengths, np.ndarray) and lengths.size:
        longest = min(longest, int(lengths.max()))
    return max(1, int(longest))
