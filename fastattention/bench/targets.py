"""What the kernels are meant to reach. A release adds lines.

Three kinds of target. Of the limit: a percentage (see `limits`), for long rows on one thread, where nothing
but the kernel stands between the limit and the figure. Of another row: a `Relation`, judged by what both
reach of their limits, which follow the machine; two threads take turns with one in the same rounds. Of the
fastest other library: how many times our time it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .cases import Case
from .memory import MIB
from .results import Goal, Row, Run

__all__ = ["MEMORY_MIB", "PEERS", "PREFILL", "RELATIONS", "PeerTarget", "Relation", "judge", "target"]

_LONG = 4096  # keys of the prefill rows that have targets

#: (dtype, visibility): percent of the limit for head dimensions 64 and 128.
PREFILL: dict[tuple[str, str], dict[int, float]] = {
    ("float32", "full"): {64: 84, 128: 88},
    ("float32", "causal"): {64: 80, 128: 84},
    ("float32", "window"): {64: 72, 128: 76},
    ("bfloat16", "full"): {64: 65, 128: 75},
    ("bfloat16", "causal"): {64: 60, 128: 70},
    ("float16", "full"): {64: 80, 128: 85},
}

#: Percent of the limit of decode rows.
DECODE_MHA, DECODE_GQA, DECODE_INT8, DECODE_FEW_QUERIES = 90, 85, 85, 75

#: Memory beyond inputs and output, MiB a thread.
MEMORY_MIB = 4


@dataclass(frozen=True, slots=True)
class Relation:
    """A bound on a row by another row.

    Attributes
    ----------
    text : str
        For the table, in a few characters.
    of : mapping
        Fields (or properties) of `Case` and the values that they have in the rows that this is about.
    other : mapping
        Fields in which the other row's case differs, and their values there.
    kind : str
        "points": at most so many percentage points of the limit below the other row; "speed": at least so
        many times as many calls a second as the other row, both in proportion to their limits; "threads" and
        "beside": likewise as the same case on one thread, and without pages, timed in the same rounds.
    bound : float
    """

    text: str
    of: Mapping[str, Any]
    other: Mapping[str, Any]
    kind: str
    bound: float

    def applies(self, case: Case) -> bool:
        """Whether `case` is one of the rows that this is about."""
        return all(getattr(case, name) == value for name, value in self.of.items())


_FULL = {"kind": "prefill", "dtype": "float32", "visibility": "full", "k_len": _LONG, "threads": 1}


def _near(head_dim: int, v_dim: int | None, neighbour: int) -> Relation:
    return Relation(
        f"D{neighbour} - 8",
        {**_FULL, "head_dim": head_dim, "v_dim": v_dim},
        {"head_dim": neighbour, "v_dim": None},
        "points",
        8,
    )


def _mask(mask: str) -> Relation:
    of = {"kind": "prefill", "mask": mask, "threads": 1}
    return Relation("0.6 of none", of, {"mask": None}, "speed", 0.6)


def _pages(page_size: int, bound: float) -> Relation:
    of = {"kind": "decode", "page_size": page_size}
    return Relation(f"{bound} of flat", of, {"page_size": None}, "beside", bound)


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "S4096 - 6",
        {"kind": "prefill", "k_len": 1024, "mask": None, "threads": 1},
        {"q_len": _LONG, "k_len": _LONG},
        "points",
        6,
    ),
    _near(80, None, 64),
    _near(96, None, 128),
    _near(256, None, 128),
    _near(64, 128, 64),
    _near(128, 64, 128),
    _near(192, 128, 128),
    Relation("1 of H32", {"kind": "prefill", "q_heads": 32, "kv_heads": 8}, {"kv_heads": 32}, "speed", 1.0),
    _mask("bool"),
    _mask("float32"),
    _pages(64, 0.9),
    _pages(16, 0.8),
    Relation("1.9 of 1t", {"threads": 2, "kind": "prefill"}, {"threads": 1}, "threads", 1.9),
    Relation("1.9 of 1t", {"threads": 2, "kind": "decode"}, {"threads": 1}, "threads", 1.9),
)


@dataclass(frozen=True, slots=True)
class PeerTarget:
    """How many times our time the fastest other library takes at least, in rows whose fields are `of`."""

    of: Mapping[str, Any]
    bound: float

    def applies(self, case: Case) -> bool:
        """Whether `case` is one of the rows that this is about: long, on one thread, a batch of one."""
        usual = case.threads == 1 and case.batch == 1 and case.isa is None and case.k_len >= _LONG
        return usual and all(getattr(case, name) == value for name, value in self.of.items())


def _grouped(dtype: str, bound: float) -> list[PeerTarget]:
    of = {"kind": "decode", "dtype": dtype, "q_len": 1, "page_size": None}
    return [PeerTarget({**of, "kv_heads": kv_heads}, bound) for kv_heads in (8, 4)]


PEERS: tuple[PeerTarget, ...] = (
    PeerTarget({"kind": "prefill", "dtype": "float32", "visibility": "full"}, 1.0),
    PeerTarget({"kind": "prefill", "dtype": "float32", "visibility": "causal"}, 2.3),
    PeerTarget({"kind": "prefill", "dtype": "bfloat16", "visibility": "full"}, 1.4),
    *_grouped("float32", 3.0),
    *_grouped("float16", 10.0),
    *_grouped("bfloat16", 10.0),
)


def target(case: Case) -> float | None:
    """Return the percentage of the limit that `case` is meant to reach; None where none is set."""
    if case.threads != 1 or case.page_size is not None:
        return None
    if case.kind == "prefill":
        if case.q_len != _LONG or case.value_dim != case.head_dim or case.q_heads != case.kv_heads:
            return None
        return PREFILL.get((case.dtype, case.visibility), {}).get(case.head_dim)
    if case.kind != "decode":
        return None
    if case.q_len > 1:
        return DECODE_FEW_QUERIES
    if case.dtype == "int8":
        return DECODE_INT8
    return DECODE_MHA if case.q_heads == case.kv_heads else DECODE_GQA


def judge(run: Run) -> list[Goal]:
    """Hold every row of the run to its targets. A relation to a row that the run lacks is not judged."""
    rows = {row.case: row for row in run.rows}
    goals: list[Goal] = []
    for row in run.rows:
        if row.target is not None:
            found = f"{row.percent:.1f} % of the limit"
            text = f"{row.target:g} %"
            goals.append(Goal(row.case.name, "limit", text, found, row.percent, row.target, not row.missed))
        for relation in RELATIONS:
            if relation.applies(row.case):
                goal = _related(row, rows.get(replace(row.case, **relation.other)), relation)
                goals += [goal] if goal else []
        goals += [_beside_peers(row, aim) for aim in PEERS if aim.applies(row.case) and _ratios(row)]
    for memory in run.memory:
        value = memory.per_thread / MIB
        found = f"{value:.2f} MiB a thread"
        met = value < MEMORY_MIB
        goals.append(Goal(memory.case.name, "memory", f"< {MEMORY_MIB} MiB", found, value, MEMORY_MIB, met))
    return goals


def _related(row: Row, other: Row | None, relation: Relation) -> Goal | None:
    if relation.kind in ("threads", "beside"):
        if row.speedup is None:
            return None
        value = row.speedup
        plainer = "one thread" if relation.kind == "threads" else "the contiguous cache"
        found = f"{value:.2f} times {plainer}'s speed"
    elif other is None:
        return None
    elif relation.kind == "points":
        value = row.percent - other.percent
        found = f"{row.percent:.1f} % of the limit, {other.case.name} {other.percent:.1f} %"
        return Goal(
            row.case.name, "points", relation.text, found, value, -relation.bound, value >= -relation.bound
        )
    elif relation.kind == "speed":
        # Calls in the time that the limit needs for one unit of work: what the machine did meanwhile cancels.
        value = (row.percent / row.work) / (other.percent / other.work)
        found = f"{value:.2f} of the speed of {other.case.name}"
    else:
        raise ValueError(f"kind: expected points, speed, threads or beside, got {relation.kind!r}")
    return Goal(
        row.case.name, relation.kind, relation.text, found, value, relation.bound, value >= relation.bound
    )


def _ratios(row: Row) -> dict[str, float]:
    found = {name: row.ratio(name) for name in row.peers}
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def _beside_peers(row: Row, aim: PeerTarget) -> Goal:
    name, value = min(_ratios(row).items(), key=lambda item: item[1])
    found = f"{name} takes {value:.2f} times our time"
    return Goal(row.case.name, "peers", f"{aim.bound:g}x", found, value, aim.bound, value >= aim.bound)
