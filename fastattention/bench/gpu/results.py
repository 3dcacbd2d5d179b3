"""The results of a run on a GPU, and their JSON file: as the CPU's (`bench.results`), with contenders."""

from __future__ import annotations

import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import results as cpu_results
from ..results import Goal
from ..rounds import percents, ratios
from .cases import GpuCase

__all__ = [
    "GRAPH",
    "LAUNCHES",
    "SCHEMA",
    "Contender",
    "Row",
    "Run",
    "default_path",
    "load",
    "save",
    "to_json",
]

#: Raised whenever a field changes its meaning, or a reader must know of a new one.
SCHEMA = "gpu-1"

_PLAIN = ("date", "environment", "options", "limits", "compiled", "left_out")

#: How calls are timed: replayed from a CUDA graph, or launched one by one.
GRAPH, LAUNCHES = "graph", "launches"


@dataclass(slots=True)
class Contender:
    """What somebody did on a case.

    Attributes
    ----------
    ours : bool
    status : str
        "ok", "failed" (it raised, or its output missed the tolerance: no times then) or "unsupported" (it has
        no such case).
    detail : str
        Our kernel's file or the library's backend; or the reason why there are no times.
    limit : str, optional
        Of our kernels: what limits them, a key of the row's `limits`.
    emulated : bool
        The card emulates the kernel's instruction.
    error : float, optional
        Largest relative error of the output, where that was right.
    not_captured : str
        Why there are no times from a graph; "" where there are.
    graph, launches : list of float
        For each round the seconds of a call: replayed from a graph; launched one by one, with what Python and
        the launches cost.
    graph_calls : int
        Calls in the graph.
    """

    ours: bool
    status: str
    detail: str
    limit: str | None = None
    emulated: bool = False
    error: float | None = None
    not_captured: str = ""
    graph: list[float] = field(default_factory=list)
    launches: list[float] = field(default_factory=list)
    graph_calls: int = 0

    def times(self, mode: str) -> list[float]:
        """Return the seconds of a call in each round, in one of the two modes."""
        return self.graph if mode == GRAPH else self.launches


@dataclass(slots=True)
class Row:
    """One case: what limits it, and who did it how fast.

    Attributes
    ----------
    case : GpuCase
    useful_flops : int
        See `bench.cases.useful_flops`.
    caches : int
        That took turns.
    limits : dict of str to list of float
        By name, the probes before each round and after the last: TFLOP/s, or GB/s for "copy".
    contenders : dict of str to Contender
        Ours are "atom 80", "atom 75", "atom 70" or "CUDA cores"; the others are backends of PyTorch.
    """

    case: GpuCase
    useful_flops: int
    caches: int
    limits: dict[str, list[float]] = field(default_factory=dict)
    contenders: dict[str, Contender] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Of rates and limits."""
        return "GB/s" if self.case.kind == "decode" else "TFLOP/s"

    @property
    def work(self) -> float:
        """What one call does, in the unit times seconds."""
        return 1e-9 * self.case.kv_bytes if self.case.kind == "decode" else 1e-12 * self.useful_flops

    @property
    def ours(self) -> list[str]:
        """The names of our kernels that were timed, the card's own first."""
        return [name for name, who in self.contenders.items() if who.ours and who.status == "ok"]

    @property
    def peers(self) -> list[str]:
        """The names of the others, timed or not."""
        return [name for name, who in self.contenders.items() if not who.ours]

    def mode(self, *names: str) -> str:
        """Return in which mode to compare: from graphs, unless one of these was not captured."""
        return GRAPH if all(self.contenders[name].graph for name in names) else LAUNCHES

    def seconds(self, name: str, mode: str | None = None) -> float:
        """Return the median seconds of a call."""
        return statistics.median(self.contenders[name].times(mode or self.mode(name)))

    def rate(self, name: str) -> float:
        """Return useful TFLOP/s (prefill) or GB/s of keys, values and scales (decode)."""
        return self.work / self.seconds(name)

    def percent_rounds(self, name: str) -> list[float]:
        """Return what part of its limit one of our kernels reached in each round, in percent."""
        who = self.contenders[name]
        if who.limit is None:
            raise ValueError(f"{name} has no limit")
        times = [[seconds] for seconds in who.times(self.mode(name))]
        return percents(self.work, times, self.limits[who.limit])

    def percent(self, name: str) -> float:
        """Return the median of `percent_rounds`."""
        return statistics.median(self.percent_rounds(name))

    def ratio(self, ours: str, peer: str) -> float | None:
        """Return how many times our time a peer takes: median of the rounds; None where it was not timed."""
        who = self.contenders.get(peer)
        if who is None or who.status != "ok":
            return None
        mode = self.mode(ours, peer)
        times = ([[seconds] for seconds in self.contenders[name].times(mode)] for name in (ours, peer))
        return statistics.median(ratios(*times))


@dataclass(slots=True)
class Run:
    """A whole run.

    Attributes
    ----------
    date : str
        ISO 8601, UTC.
    environment : dict
        The GPU, its driver and libraries, the machine around it.
    options : dict
        How the benchmark was called.
    limits : dict of str to list of float
        The card's limits by name, at the start and at the end.
    compiled : dict
        How many kernels were compiled, and in how many seconds.
    rows : list of Row
    left_out : dict of str to str
        Cases that this card cannot run, and why.
    goals : list of Goal
        All targets that could be judged.
    """

    date: str
    environment: dict[str, Any]
    options: dict[str, Any]
    limits: dict[str, list[float]] = field(default_factory=dict)
    compiled: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)


def summary(row: Row) -> dict[str, Any]:
    """Return the figures that a reader of the file would look for."""
    found: dict[str, Any] = {"name": row.case.name, "unit": row.unit, "contenders": {}}
    for name, who in row.contenders.items():
        if who.status != "ok":
            continue
        entry: dict[str, Any] = {"mode": row.mode(name), "rate": row.rate(name)}
        entry |= {
            f"{mode}_ms": 1e3 * row.seconds(name, mode) for mode in (GRAPH, LAUNCHES) if who.times(mode)
        }
        if who.ours:
            rounds = row.percent_rounds(name)
            entry |= {
                "percent_of_limit": statistics.median(rounds),
                "lowest_percent": min(rounds),
                "highest_percent": max(rounds),
                "peer_ratios": {
                    peer: ratio for peer in row.peers if (ratio := row.ratio(name, peer)) is not None
                },
            }
        found["contenders"][name] = entry
    return found


def to_json(run: Run) -> dict[str, Any]:
    """Return what the file holds: the fields of `Run`, plus a summary of each row."""
    content: dict[str, Any] = {"schema": SCHEMA, **asdict(run)}
    for row, entry in zip(run.rows, content["rows"], strict=True):
        entry["summary"] = summary(row)
    return content


def from_json(content: dict[str, Any]) -> Run:
    """Return the run that `to_json` gave.

    Raises
    ------
    ValueError
        When the file is of another schema.
    """
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"benchmark results have schema {content.get('schema')!r}; of GPUs, this version reads {SCHEMA!r}"
        )

    def row(entry: dict[str, Any]) -> Row:
        case = dict(entry["case"])
        case["window"] = tuple(case["window"]) if case["window"] else None
        return Row(
            GpuCase(**case), entry["useful_flops"], entry["caches"], entry["limits"],
            {name: Contender(**who) for name, who in entry["contenders"].items()},
        )  # fmt: skip

    fields = {name: content[name] for name in _PLAIN}
    goals = [Goal(**entry) for entry in content["goals"]]
    return Run(**fields, rows=[row(entry) for entry in content["rows"]], goals=goals)


def default_path(gpu: str, date: str, kind: str = "bench") -> Path:
    """Return ``results/<kind>-<gpu>-<date>.json``, under the current directory."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "gpu"
    return Path("results") / f"{kind}-{name}-{date[:10]}.json"


def save(run: Run, path: Path) -> None:
    """Write the run to `path`, whole or not at all."""
    cpu_results.write(to_json(run), path)


def load(path: Path) -> Run:
    """Read a file that `save` wrote; ValueError when it is none."""
    return from_json(cpu_results.read(path))
