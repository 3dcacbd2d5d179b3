"""The results of a run, and their JSON file: hardware, date, versions, limits, every single time."""

from __future__ import annotations

import json
import os
import re
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case
from .limits import Limits
from .memory import Memory
from .rounds import percents, ratios

__all__ = [
    "READABLE",
    "SCHEMA",
    "Goal",
    "PeerResult",
    "Row",
    "Run",
    "default_path",
    "load",
    "read",
    "save",
    "write",
]

#: Raised whenever a field changes its meaning, or a reader must know of a new one.
SCHEMA = 3

#: What `load` takes. 2: without batches, pages, int8, goals and memory; decode was limited by reading alone.
READABLE = (2, 3)


@dataclass(frozen=True, slots=True)
class Goal:
    """A target, and what was found. See `targets`.

    Attributes
    ----------
    row : str
        Name of the case.
    kind : str
        "limit", "points", "speed", "threads", "beside", "peers" or "memory".
    text : str
        The target in a few characters.
    found : str
        What was found, in words.
    value, bound : float
        What is compared: percent, percentage points, a ratio, MiB.
    met : bool
    """

    row: str
    kind: str
    text: str
    found: str
    value: float
    bound: float
    met: bool


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What another library did on a case.

    Attributes
    ----------
    status : str
        "ok", "failed" (it raised, or its output missed the tolerance: no times then) or "unsupported" (it has
        no such case).
    detail : str
        Which of its ways was timed; or the reason why none was.
    error : float, optional
        Largest relative error of its output, where that was right.
    rounds : list of list of float
        For each round the seconds of each call; empty unless the status is "ok".
    """

    status: str
    detail: str
    error: float | None = None
    rounds: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """One case: our times, the limit they are judged by, and the peers. See `rounds`.

    Attributes
    ----------
    case : Case
    useful_flops : int
        See `cases.useful_flops`.
    error : float
        Largest relative error of our output.
    rounds : list of list of float
        For each round the seconds of each of our calls.
    limit_name : str
        What limits the row: an arithmetic unit, or "read".
    limits : list of float
        The probes before each round and after the last, in GFLOP/s (prefill) or GB/s of keys and values
        (decode, also where arithmetic limits it).
    target : float, optional
        Percent of the limit.
    peers : dict of str to PeerResult
    isa : str, optional
        Whose kernels ran: the set in force or an older one.
    roofline : dict of str to float
        Decode: milliseconds that reading and computing would take by themselves.
    alone : list of list of float
        In the same rounds: of several threads the same call on one; of pages the same memory without.
    """

    case: Case
    useful_flops: int
    error: float
    rounds: list[list[float]]
    limit_name: str
    limits: list[float]
    target: float | None
    peers: dict[str, PeerResult]
    isa: str | None = None
    roofline: dict[str, float] = field(default_factory=dict)
    alone: list[list[float]] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """Unit of `rate` and `limit`."""
        return "GB/s" if self.case.kind == "decode" else "GFLOP/s"

    @property
    def work(self) -> float:
        """What one call does, in 1e9 useful operations (prefill) or bytes of keys and values (decode)."""
        return 1e-9 * (self.case.kv_bytes if self.case.kind == "decode" else self.useful_flops)

    @property
    def median(self) -> float:
        """Median of all our calls in seconds."""
        return statistics.median(time for times in self.rounds for time in times)

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile of all our calls in seconds."""
        low, high = np.percentile([time for times in self.rounds for time in times], (10, 90))
        return float(low), float(high)

    @property
    def rate(self) -> float:
        """Useful GFLOP/s (prefill) or GB/s of keys and values (decode), at our median."""
        return self.work / self.median

    @property
    def limit(self) -> float:
        """Median of the probes."""
        return statistics.median(self.limits)

    @property
    def percent(self) -> float:
        """What part of the limit we reach: median over the rounds, each judged by its own probes.

        On a machine that drifts this is not `rate` over `limit`, whose medians are of different moments.
        """
        return statistics.median(percents(self.work, self.rounds, self.limits))

    @property
    def percent_range(self) -> tuple[float, float]:
        """The percentages of the worst and the best round."""
        found = percents(self.work, self.rounds, self.limits)
        return min(found), max(found)

    def peer_percent(self, name: str) -> float | None:
        """What part of the limit a peer reaches, likewise; None where it was not timed."""
        peer = self.peers.get(name)
        if peer is None or not peer.rounds:
            return None
        # A slow peer took the first rounds only.
        return statistics.median(percents(self.work, peer.rounds, self.limits[: len(peer.rounds) + 1]))

    def ratio(self, name: str) -> float | None:
        """How many times our time a peer takes: median over the rounds; None where it was not timed."""
        peer = self.peers.get(name)
        return statistics.median(ratios(self.rounds, peer.rounds)) if peer and peer.rounds else None

    @property
    def speedup(self) -> float | None:
        """How many times our time the call beside it takes (`alone`): median over the rounds, or None."""
        return statistics.median(ratios(self.rounds, self.alone)) if self.alone else None

    @property
    def missed(self) -> bool:
        """Whether a target of the limit is set and not reached."""
        return self.target is not None and self.percent < self.target


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run of the benchmark.

    Attributes
    ----------
    date : str
        ISO 8601, UTC.
    environment : dict
        See `environment.describe`.
    options : dict
        How the benchmark was called.
    rows : list of Row
    probes : list of Limits
        All arithmetic probes for each number of threads, at the start and at the end.
    failures : dict of str to str
        Cases whose output was wrong, and how: they were not timed.
    left_out : dict of str to str
        Cases that this machine or this build cannot run, and why.
    memory : list of Memory
    goals : list of Goal
        All targets that could be judged.
    """

    date: str
    environment: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    probes: list[Limits] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def goals_of(self, case: Case) -> list[Goal]:
        """Return the targets of a case, those beside other libraries last."""
        return sorted((goal for goal in self.goals if goal.row == case.name), key=lambda g: g.kind == "peers")


def to_json(run: Run) -> dict[str, Any]:
    """Return what the file holds: the fields of `Run`, plus the figures a reader would look for."""
    content: dict[str, Any] = {"schema": SCHEMA, **asdict(run)}
    for row, entry in zip(run.rows, content["rows"], strict=True):
        entry["summary"] = {
            "name": row.case.name,
            "median_ms": 1e3 * row.median,
            "p10_ms": 1e3 * row.spread[0],
            "p90_ms": 1e3 * row.spread[1],
            "speedup": row.speedup,
            "rate": row.rate,
            "unit": row.unit,
            "limit": row.limit,
            "percent_of_limit": row.percent,
            "lowest_percent": row.percent_range[0],
            "highest_percent": row.percent_range[1],
            "peer_ratios": {name: row.ratio(name) for name, peer in row.peers.items() if peer.rounds},
        }
    return content


def from_json(content: dict[str, Any]) -> Run:
    """Return the run that `to_json` gave.

    Raises
    ------
    ValueError
        When the file is of another schema.
    """
    if content.get("schema") not in READABLE:
        raise ValueError(
            f"benchmark results have schema {content.get('schema')!r}; this version reads "
            f"{' and '.join(map(str, READABLE))}"
        )

    def read_case(entry: dict[str, Any]) -> Case:
        window = entry["window"]
        return Case(**{**entry, "window": None if window is None else tuple(window)})

    def row(entry: dict[str, Any]) -> Row:
        fields = {key: value for key, value in entry.items() if key not in ("case", "peers", "summary")}
        peers = {name: PeerResult(**peer) for name, peer in entry["peers"].items()}
        return Row(case=read_case(entry["case"]), peers=peers, **fields)

    def memory(entry: dict[str, Any]) -> Memory:
        return Memory(**{**entry, "case": read_case(entry["case"])})

    return Run(
        date=content["date"],
        environment=content["environment"],
        options=content["options"],
        rows=[row(entry) for entry in content["rows"]],
        probes=[Limits(**entry) for entry in content["probes"]],
        failures=content["failures"],
        left_out=content.get("left_out", {}),
        memory=[memory(entry) for entry in content.get("memory", [])],
        goals=[Goal(**entry) for entry in content.get("goals", [])],
    )


def default_path(run: Run, kind: str = "bench") -> Path:
    """Return ``results/<kind>-<cpu>-<date>.json``, under the current directory."""
    cpu = re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*", " ", run.environment["cpu"].lower())
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu).strip("-") or "cpu"
    return Path("results") / f"{kind}-{cpu}-{run.date[:10]}.json"


def save(run: Run, path: Path) -> None:
    """Write the run to `path`, as `write` does."""
    write(to_json(run), path)


def write(content: dict[str, Any], path: Path) -> None:
    """Write JSON to `path`, whole or not at all: an interrupted run leaves an older file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        Path(draft).chmod(0o644)  # mkstemp's 0600 is for secrets
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def load(path: Path) -> Run:
    """Read a file that `save` wrote; ValueError when it is none."""
    return from_json(read(path))


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError when the file holds something else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no benchmark results")
    return content
