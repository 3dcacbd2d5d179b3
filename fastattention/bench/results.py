"""The results of a run, and their JSON file: hardware, date, versions, limits, every single time."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case
from .limits import Limits
from .measure import Timing

__all__ = ["SCHEMA", "PeerResult", "Row", "Run", "default_path", "load", "save"]

#: Raised whenever a field changes its meaning; `load` refuses other versions.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What another library did on a case.

    Attributes
    ----------
    status : str
        "ok", "failed" (it raised, or its output missed the tolerance: never timed) or "unsupported" (it has
        no such case).
    detail : str
        Which of its ways was timed; or the reason why none was.
    timing : Timing, optional
        Present when the status is "ok".
    """

    status: str
    detail: str
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One case: our time, the limit it is judged by, and the peers.

    Attributes
    ----------
    case : Case
    useful_flops : int
        See `cases.useful_flops`.
    ours : Timing
    limit_name : str
    limit_before, limit_after : float
        The probes next to the timing, in GFLOP/s (prefill) or GB/s (decode).
    target : float, optional
        Percent of the limit.
    peers : dict of str to PeerResult
    """

    case: Case
    useful_flops: int
    ours: Timing
    limit_name: str
    limit_before: float
    limit_after: float
    target: float | None
    peers: dict[str, PeerResult]

    @property
    def unit(self) -> str:
        """Unit of `rate` and `limit`."""
        return "GB/s" if self.case.kind == "decode" else "GFLOP/s"

    def rate(self, seconds: float | None = None) -> float:
        """Useful GFLOP/s (prefill) or GB/s of keys and values (decode), at our median or at `seconds`."""
        work = self.case.kv_bytes if self.case.kind == "decode" else self.useful_flops
        return work / (self.ours.median if seconds is None else seconds) * 1e-9

    @property
    def limit(self) -> float:
        """Mean of the probes before and after."""
        return (self.limit_before + self.limit_after) / 2

    @property
    def percent(self) -> float:
        """Our rate in percent of the limit."""
        return 100 * self.rate() / self.limit

    @property
    def missed(self) -> bool:
        """Whether a target is set and not reached."""
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
        Every arithmetic probe, in order: how much the machine drifted.
    failures : dict of str to str
        Cases whose output was wrong, and how: they were not timed.
    """

    date: str
    environment: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    probes: list[Limits] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def to_json(run: Run) -> dict[str, Any]:
    """Return what the file holds: the fields of `Run`, plus the figures a reader would look for."""
    content: dict[str, Any] = {"schema": SCHEMA, **asdict(run)}
    for row, entry in zip(run.rows, content["rows"], strict=True):
        entry["summary"] = {
            "name": row.case.name,
            "median_ms": 1e3 * row.ours.median,
            "p10_ms": 1e3 * row.ours.spread[0],
            "p90_ms": 1e3 * row.ours.spread[1],
            "rate": row.rate(),
            "unit": row.unit,
            "limit": row.limit,
            "percent_of_limit": row.percent,
        }
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
            f"benchmark results have schema {content.get('schema')!r}; this version reads {SCHEMA}"
        )

    def timing(entry: dict[str, Any] | None) -> Timing | None:
        return None if entry is None else Timing(**entry)

    def row(entry: dict[str, Any]) -> Row:
        case = dict(entry["case"])
        case["window"] = None if case["window"] is None else tuple(case["window"])
        peers = {
            name: PeerResult(peer["status"], peer["detail"], timing(peer["timing"]))
            for name, peer in entry["peers"].items()
        }
        fields = {
            key: entry[key] for key in ("useful_flops", "limit_name", "limit_before", "limit_after", "target")
        }
        return Row(case=Case(**case), ours=Timing(**entry["ours"]), peers=peers, **fields)

    return Run(
        date=content["date"],
        environment=content["environment"],
        options=content["options"],
        rows=[row(entry) for entry in content["rows"]],
        probes=[Limits(**entry) for entry in content["probes"]],
        failures=content["failures"],
    )


def default_path(run: Run) -> Path:
    """Return ``results/bench-<cpu>-<date>.json``, under the current directory."""
    cpu = re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*", " ", run.environment["cpu"].lower())
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu).strip("-") or "cpu"
    return Path("results") / f"bench-{cpu}-{run.date[:10]}.json"


def save(run: Run, path: Path) -> None:
    """Write the run to `path`, whole or not at all: an interrupted run leaves an older file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(to_json(run), file, indent=1)
            file.write("\n")
        Path(draft).chmod(0o644)  # mkstemp's 0600 is for secrets
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def load(path: Path) -> Run:
    """Read a file that `save` wrote; ValueError when it is none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no benchmark results")
    return from_json(content)
