"""The results of a run, and their JSON file: hardware, date, versions, limits, every single time."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import results as cpu_results
from ..gpu.results import default_path
from ..results import Goal
from .cases import ALL_GPU, OffloadCase

__all__ = ["SCHEMA", "LongRun", "Outcome", "Row", "Run", "Sample", "default_path", "load", "save", "to_json"]

#: Raised whenever a field changes its meaning, or a reader must know of a new one.
SCHEMA = "offload-1"


@dataclass(slots=True)
class Outcome:
    """What one way did on a case.

    Attributes
    ----------
    status : str
        "ok", or "left out".
    detail : str
        Why it was left out; or what was done, in words.
    placement : dict of str to int
        How many layers lie where, by the planner's names.
    share : float, optional
        Of the keys of a split layer, what the CPU attends to.
    halves, threads : int, optional
        Half batches that take turns; threads of CPU attention.
    attention : list of float
        Seconds of each step of attention alone, all layers.
    tokens : list of float
        Seconds of each decoded token, the whole decoder.
    predicted : float, optional
        Seconds a token that the planner foretold, from the limits that it measured itself.
    up, down, cpu : float
        Bytes of a step of attention: over the bus, and read by CPU attention.
    attention_error, logits_error : float, optional
        Largest deviation from the all-GPU run (or from whatever `Row.compared_with` says), relative to the
        largest entry of an output row, of the logits.
    """

    status: str
    detail: str = ""
    placement: dict[str, int] = field(default_factory=dict)
    share: float | None = None
    halves: int | None = None
    threads: int | None = None
    attention: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    predicted: float | None = None
    up: float = 0.0
    down: float = 0.0
    cpu: float = 0.0
    attention_error: float | None = None
    logits_error: float | None = None

    @property
    def token(self) -> float:
        """Median seconds of a token."""
        return statistics.median(self.tokens)

    @property
    def step(self) -> float:
        """Median seconds of a step of attention alone."""
        return statistics.median(self.attention)

    @property
    def prediction_error(self) -> float | None:
        """By what part of the measured time the prediction is too long (or, below 0, too short)."""
        return None if self.predicted is None or not self.tokens else self.predicted / self.token - 1


@dataclass(slots=True)
class Row:
    """One case.

    Attributes
    ----------
    case : OffloadCase
    cache_bytes : int
        Keys and values of all layers and sequences when decoding begins.
    compared_with : str
        The way whose outputs the others must have.
    limits : dict of str to list of float
        Before the row and after it: "bus up" and "CPU attention".
    ways : dict of str to Outcome
    peer : dict, optional
        What `hugging_face` reported: "tokens" (seconds), "versions", ...; or "missing", with the reason.
    """

    case: OffloadCase
    cache_bytes: int
    compared_with: str = ALL_GPU
    limits: dict[str, list[float]] = field(default_factory=dict)
    ways: dict[str, Outcome] = field(default_factory=dict)
    peer: dict[str, Any] | None = None

    def layer(self, way: str) -> float:
        """Return median seconds a host layer: of a step of attention alone, over the number of layers."""
        return self.ways[way].step / self.case.layers

    def done(self, *ways: str) -> bool:
        """Whether all of these were timed."""
        return all(way in self.ways and self.ways[way].status == "ok" for way in ways)

    @property
    def peer_token(self) -> float | None:
        """Seconds of the peer's fastest token: its first ones wait for pinned memory to be found."""
        return min(self.peer["tokens"]) if self.peer and self.peer.get("tokens") else None


@dataclass(slots=True)
class Sample:
    """Memory at a moment of the long run: seconds since its start, and bytes."""

    seconds: float
    phase: str
    tokens: int
    pool_used: int
    pool_total: int
    gpu_used: int
    host: int


@dataclass(slots=True)
class LongRun:
    """A context that the GPU's memory cannot hold.

    Attributes
    ----------
    model : str
    context : int
        Tokens of the prompt.
    gpu_limit : int
        Bytes that CuPy's pool may take.
    refused : str
        What the planner said to all layers on the GPU.
    largest_without : int
        The largest context that fits without cooperation.
    plan : dict
        The plan that was run, as JSON.
    prefill : float
        Seconds.
    tokens : list of float
        Seconds of each decoded token.
    predicted_prefill, predicted_token : float, optional
        Seconds that the plan foretold.
    peaks : dict of str to int
        Largest of every sample's figures, in bytes.
    samples : list of Sample
    """

    model: str
    context: int
    gpu_limit: int
    refused: str
    largest_without: int
    plan: dict[str, Any] = field(default_factory=dict)
    prefill: float = 0.0
    tokens: list[float] = field(default_factory=list)
    predicted_prefill: float | None = None
    predicted_token: float | None = None
    peaks: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    @property
    def token(self) -> float:
        """Median seconds of a decoded token, the first left out: it finds cold caches and kernels."""
        return statistics.median(self.tokens[1:] or self.tokens)


@dataclass(slots=True)
class Run:
    """A whole run.

    Attributes
    ----------
    date : str
        ISO 8601, UTC.
    environment : dict
        The GPU, the machine around it, versions.
    options : dict
        How the benchmark was called.
    hardware : dict
        What the planner measured, and predicts from.
    limits : dict of str to list of float
        At the start and at the end; units as in `limits.UNITS`.
    rows : list of Row
    left_out : dict of str to str
        Cases that this machine cannot run, and why.
    long : LongRun, optional
    goals : list of Goal
        All targets that could be judged.
    """

    date: str
    environment: dict[str, Any]
    options: dict[str, Any]
    hardware: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    long: LongRun | None = None
    goals: list[Goal] = field(default_factory=list)


def summary(row: Row) -> dict[str, Any]:
    """Return the figures that a reader of the file would look for."""
    found: dict[str, Any] = {"name": row.case.name, "ways": {}}
    for name, way in row.ways.items():
        if way.status != "ok":
            continue
        entry = {
            "token_ms": 1e3 * way.token,
            "token_lowest_ms": 1e3 * min(way.tokens),
            "token_highest_ms": 1e3 * max(way.tokens),
            "layer_ms": 1e3 * row.layer(name),
            "bus_up_gbps": 1e-9 * way.up / way.step,
            "cpu_gbps": 1e-9 * way.cpu / way.step,
            "prediction_error": way.prediction_error,
        }
        if row.done("classical"):
            classical = row.ways["classical"]
            entry |= {
                "times_classical_token": classical.token / way.token,
                "times_classical_layer": classical.step / way.step,
            }
        if row.peer_token is not None:
            entry["times_hugging_face"] = row.peer_token / way.token
        found["ways"][name] = entry
    return found


def to_json(run: Run) -> dict[str, Any]:
    """Return what the file holds: the fields of `Run`, plus a summary of each row."""
    content: dict[str, Any] = {"schema": SCHEMA, **asdict(run)}
    for row, entry in zip(run.rows, content["rows"], strict=True):
        entry["summary"] = summary(row)
    if run.long is not None:  # a line for each sample, not seven
        names = list(Sample.__dataclass_fields__)
        samples = content["long"]["samples"]
        content["long"]["samples"] = {name: [sample[name] for sample in samples] for name in names}
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
            f"benchmark results have schema {content.get('schema')!r}; of offloading, this version reads "
            f"{SCHEMA!r}"
        )

    def row(entry: dict[str, Any]) -> Row:
        fields = {name: value for name, value in entry.items() if name not in ("case", "ways", "summary")}
        ways = {name: Outcome(**way) for name, way in entry["ways"].items()}
        return Row(case=OffloadCase(**entry["case"]), ways=ways, **fields)

    def long_run(entry: dict[str, Any]) -> LongRun:
        columns = entry["samples"]
        samples = [
            Sample(**dict(zip(columns, values, strict=True)))
            for values in zip(*columns.values(), strict=True)
        ]
        return LongRun(**{**entry, "samples": samples})

    plain = ("date", "environment", "options", "hardware", "limits", "left_out")
    return Run(
        **{name: content[name] for name in plain},
        rows=[row(entry) for entry in content["rows"]],
        long=long_run(content["long"]) if content["long"] else None,
        goals=[Goal(**entry) for entry in content["goals"]],
    )


def save(run: Run, path: Path) -> None:
    """Write the run to `path`, whole or not at all."""
    cpu_results.write(to_json(run), path)


def load(path: Path) -> Run:
    """Read a file that `save` wrote; ValueError when it is none."""
    return from_json(cpu_results.read(path))
