"""What the CUDA kernels are meant to reach. A release adds lines.

Two kinds: a part of a limit that was measured in the same rounds, and how many times our time another library
takes. Times are those of graphs on both sides; where one could not be captured, of launches on both, and the
finding says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..results import Goal
from .results import GRAPH, Row, Run

__all__ = ["AIMS", "Aim", "judge"]


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound for one of our kernels in some of the rows.

    Attributes
    ----------
    who : str
        The kernel; "" for the card's own.
    of : mapping
        Fields of the case, and the values of each that this is about.
    bound : float
        Percent of the limit, or how many times our time the peer takes.
    peer : str, optional
        None: the bound is of the limit.
    least_keys : int
    """

    who: str
    of: Mapping[str, tuple[Any, ...]]
    bound: float
    peer: str | None = None
    least_keys: int = field(default=0)

    def applies(self, row: Row) -> bool:
        """Whether `row` is one of the rows that this is about."""
        case = row.case
        return case.k_len >= self.least_keys and all(
            getattr(case, name) in values for name, values in self.of.items()
        )


_PREFILL = {"kind": ("prefill",), "dtype": ("float16",), "head_dim": (64, 128)}
_GROUPED = {"kind": ("decode",), "kv_heads": (8,)}

AIMS: tuple[Aim, ...] = (
    Aim("", _PREFILL, 1.43, "memory-efficient"),
    Aim("atom 80", _PREFILL, 1.0, "flash", least_keys=4096),
    Aim("atom 75", _PREFILL, 50),
    Aim("atom 70", _PREFILL, 60),
    Aim("", _GROUPED, 80),
    Aim("", _GROUPED, 1.1, "PyTorch"),
)


def judge(run: Run) -> list[Goal]:
    """Hold every row to its targets. Where the kernel or the peer was not timed, nothing is judged."""
    goals = []
    for row in run.rows:
        for aim in AIMS:
            if not row.ours or not aim.applies(row):
                continue
            who = aim.who or row.ours[0]
            if who in row.ours and (goal := _judged(row, who, aim)) is not None:
                goals.append(goal)
    return goals


def _judged(row: Row, who: str, aim: Aim) -> Goal | None:
    if aim.peer is None:
        value = row.percent(who)
        limit = row.contenders[who].limit
        text, found, kind = f"{aim.bound:g} %", f"{who}: {value:.1f} % of {limit}", "limit"
        mode = row.mode(who)
    else:
        ratio = row.ratio(who, aim.peer)
        if ratio is None:
            return None
        value, mode = ratio, row.mode(who, aim.peer)
        text, kind = f"{aim.bound:g}x {aim.peer}", "peers"
        found = f"{aim.peer} takes {value:.2f} times the time of {who}"
    if mode != GRAPH:
        found += ", launched one by one"
    return Goal(f"{row.case.name} {who}", kind, text, found, value, aim.bound, value >= aim.bound)
