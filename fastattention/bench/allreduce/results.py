"""The results of a run, and their JSON file: hardware, date, versions, every single time."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...reference.tiling_allreduce import Costs, block_costs, choose, schedule
from ...runtime.measure_allreduce import grain
from .. import results as cpu_results
from ..results import Goal
from .cases import AllReduceCase

__all__ = ["SCHEMA", "Row", "Run", "Way", "from_json", "judge", "load", "save", "to_json"]

#: Raised whenever a field changes its meaning, or a reader must know of a new one.
SCHEMA = "allreduce-1"

_SEQUENCE = "in sequence"
_SHARE = 0.85  # of the formula's speedup
_NOISE = 1.02  # what is as fast as in sequence may differ by


@dataclass(slots=True)
class Way:
    """One way of a case.

    Attributes
    ----------
    seconds : list of float
        Of a call in each turn, the slowest rank's.
    sizes : list of int, optional
        Rows of each block.
    predicted : float, optional
        Seconds by the formula, from this row's costs; of a projection alone without overheads.
    """

    seconds: list[float]
    sizes: list[int] | None = None
    predicted: float | None = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


@dataclass(slots=True)
class Row:
    """One case.

    Attributes
    ----------
    case : AllReduceCase
    costs : Costs
        Of compute and AllReduce, in seconds, from the same turns as everything else.
    chosen : str
        The way that the library takes.
    formula_sizes : list of int
        The blocks that these costs speak for.
    formula : float
        Seconds that they should take.
    error : float
        Largest error of any way, in parts of what is allowed.
    ways : dict of str to Way
    """

    case: AllReduceCase
    costs: Costs
    chosen: str
    formula_sizes: list[int]
    formula: float
    error: float
    ways: dict[str, Way]

    def speedup(self, name: str, beside: str = _SEQUENCE) -> float:
        """Return how many times a way's time another takes: the median over the turns."""
        pairs = zip(self.ways[beside].seconds, self.ways[name].seconds, strict=True)
        return statistics.median(there / here for there, here in pairs)

    @property
    def formula_speedup(self) -> float:
        """What the formula promises of its own blocks."""
        predicted = self.ways[_SEQUENCE].predicted
        assert predicted is not None
        return predicted / self.formula

    @property
    def free_speedup(self) -> float:
        """What the formula would promise if compute lost nothing beside a sum."""
        free = replace(self.costs, slowdown=1.0)
        rows = self.case.tokens
        best, one = (
            schedule(*block_costs(sizes, free)).time
            for sizes in (choose(rows, free, unit=grain(rows)), [rows])
        )
        return one / best

    @property
    def share(self) -> float:
        """What part of the formula's speedup the chosen way reaches."""
        return self.speedup(self.chosen) / self.formula_speedup

    @property
    def streams(self) -> float:
        """The best speedup of a projection alone, beside its own AllReduce in blocks."""
        names = [name for name in self.ways if name.startswith("projection, n")]
        return max(self.speedup(name, f"projection, {_SEQUENCE}") for name in names)

    @property
    def streams_formula(self) -> float:
        """What the formula without overheads promises of the best of these."""
        whole = self.ways[f"projection, {_SEQUENCE}"].predicted
        found = [way.predicted for name, way in self.ways.items() if name.startswith("projection, n")]
        assert whole is not None
        return whole / min(seconds for seconds in found if seconds is not None)


@dataclass(slots=True)
class Run:
    """A whole run.

    Attributes
    ----------
    date : str
        ISO 8601, UTC.
    environment : dict
        The machine, the engine and its ranks, versions.
    options : dict
        How the benchmark was called.
    rows : list of Row
    left_out : dict of str to str
        Cases that these ranks cannot run, and why.
    goals : list of Goal
    """

    date: str
    environment: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)


def judge(row: Row) -> list[Goal]:
    """Return what a row was to reach, and whether it did."""
    share, speedup = row.share, row.speedup(row.chosen)
    return [
        Goal(
            row.case.name, "share", f"{100 * _SHARE:.0f} % of the formula's speedup",
            f"{100 * share:.0f} % of {row.formula_speedup:.2f}x", share, _SHARE, share >= _SHARE,
        ),
        Goal(
            row.case.name, "sequence", "never slower than in sequence", f"{speedup:.2f}x ({row.chosen})",
            1 / speedup, _NOISE, 1 / speedup <= _NOISE,
        ),
    ]  # fmt: skip


def _summary(row: Row) -> dict[str, Any]:
    return {
        "name": row.case.name,
        "ms": {name: 1e3 * way.median for name, way in row.ways.items()},
        "speedups": {
            name: row.speedup(name) for name, way in row.ways.items() if name.startswith(("n =", "chosen"))
        },
        "chosen": row.chosen,
        "chosen_speedup": row.speedup(row.chosen),
        "formula_speedup": row.formula_speedup,
        "share_of_formula": row.share,
        "formula_speedup_without_slowdown": row.free_speedup,
        "compute_beside_sum": row.costs.slowdown,
        "projection_speedup": row.streams,
        "projection_formula_speedup": row.streams_formula,
    }


def to_json(run: Run) -> dict[str, Any]:
    """Return what the file holds: the fields of `Run`, plus a summary of each row."""
    content: dict[str, Any] = {"schema": SCHEMA, **asdict(run)}
    for row, entry in zip(run.rows, content["rows"], strict=True):
        entry["summary"] = _summary(row)
    return content


def from_json(content: dict[str, Any]) -> Run:
    """Return the run that `to_json` gave; ValueError for another schema."""
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"results have schema {content.get('schema')!r}; of ranks, this version reads {SCHEMA!r}"
        )

    def row(entry: dict[str, Any]) -> Row:
        return Row(
            AllReduceCase(**entry["case"]), Costs(**entry["costs"]), entry["chosen"], entry["formula_sizes"],
            entry["formula"], entry["error"], {name: Way(**way) for name, way in entry["ways"].items()},
        )  # fmt: skip

    rows = [row(entry) for entry in content["rows"]]
    goals = [Goal(**goal) for goal in content["goals"]]
    plain = {name: content[name] for name in ("date", "environment", "options", "left_out")}
    return Run(**plain, rows=rows, goals=goals)


def save(run: Run, path: Path) -> None:
    """Write the run to `path`, whole or not at all."""
    cpu_results.write(to_json(run), path)


def load(path: Path) -> Run:
    """Read a file that `save` wrote; ValueError when it is none."""
    return from_json(cpu_results.read(path))
