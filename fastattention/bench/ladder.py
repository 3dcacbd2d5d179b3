"""``fastattention bench --ladder``: the steps of ``cpu_kernels/ladder``, and the library's kernel above.

Each step is checked against the float64 reference, then timed in rounds between probes of the multiply-add
peak, like any row of the benchmark. One head on one thread; a head for each thread where a step uses several.
The first steps take seconds for what the last do in milliseconds, so they get fewer rows: rates of useful
work compare, since none of the first steps is bound by the size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from .. import get_isa, set_isa
from ..cpu_kernels import ladder
from . import results
from .calls import our_call
from .cases import Case, useful_flops
from .data import Data, make_data
from .environment import describe
from .limits import choose_probe
from .measure import TOLERANCE, error, expected_rows, pin, pinned
from .rounds import take_turns
from .run import allowed_cores, survey

__all__ = ["SCHEMA", "Climb", "Rung", "load", "run", "rungs"]

#: Of the JSON file; raised whenever a field changes its meaning.
SCHEMA = "ladder-1"

LIBRARY = ladder.Step(len(ladder.STEPS), "library", "what fastattention.attention runs")

#: This step and those above it use several threads.
_THREADED = next(step.number for step in ladder.STEPS if step.name.endswith("_threads"))
_SLOW = 3  # steps below this one are an order of magnitude slower


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds of each row, seconds in all of them together, and the rows of slow and of other steps."""

    rounds: int
    budget: float
    slow_length: int
    length: int


# 3072 rows: keys and values of head_dim 128 are then larger than the L2 cache of most processors.
_EFFORT = {
    "quick": Effort(2, 0.02, 128, 256),
    "default": Effort(5, 0.3, 1024, 3072),
    "full": Effort(9, 0.9, 1024, 4096),
}


@dataclass(frozen=True, slots=True)
class Rung:
    """A step and what it is timed on."""

    step: ladder.Step
    case: Case

    @property
    def name(self) -> str:
        """What `--filter` matches, such as ``08_register_tiles/causal/D64/S3072/1t``."""
        case = self.case
        return f"{self.step.name}/{case.visibility}/D{case.head_dim}/S{case.k_len}/{case.threads}t"


@dataclass(frozen=True, slots=True)
class Climb:
    """A run: the steps, and for each of them a row of `record`."""

    steps: list[ladder.Step]
    record: results.Run

    def peak(self, threads: int) -> float:
        """Return the median of all probes on so many threads, in GFLOP/s."""
        return statistics.median(
            limit for row in self.record.rows if row.case.threads == threads for limit in row.limits
        )

    def row(self, step: ladder.Step, head_dim: int, causal: bool) -> results.Row | None:
        """Return a step's row, None where it was not timed."""
        for candidate, row in zip(self.steps, self.record.rows, strict=True):
            if (candidate, row.case.head_dim, row.case.causal) == (step, head_dim, causal):
                return row
        return None

    def gain(self, step: ladder.Step, head_dim: int, causal: bool) -> float | None:
        """Return how many times as fast as the step before it a step is; None where either was not timed.

        By their percents of the peak, since the machine's clock may have moved between them, times what
        more threads add to the peak.
        """
        order = sorted(set(self.steps))
        place = order.index(step)
        if place == 0 or order[place - 1].number != step.number - 1:
            return None
        row, before = (self.row(which, head_dim, causal) for which in (step, order[place - 1]))
        if row is None or before is None:
            return None
        return row.percent * self.peak(row.case.threads) / (before.percent * self.peak(before.case.threads))


def rungs(threads: int, level: str = "default", pattern: str | None = None) -> list[Rung]:
    """Return the steps with their cases, those of one shape together.

    Parameters
    ----------
    threads : int
        For the steps that use several.
    level : str
        "quick", "default" or "full": how many rows.
    pattern : str, optional
        Only what has a part for each word, as in `cases.select`.
    """
    effort = _EFFORT[level]
    words = (pattern or "").replace(",", " ").split()
    found = []
    for head_dim in (64, 128):
        for causal in (False, True):
            for step in (*ladder.STEPS, LIBRARY):
                length = effort.slow_length if step.number < _SLOW else effort.length
                used = threads if step.number >= _THREADED else 1
                case = Case("prefill", "float32", used, used, length, length, head_dim, causal, threads=used)
                found.append(Rung(step, case))
    return [rung for rung in found if all(f"/{word}" in f"/{rung.name}" for word in words)]


def _call(rung: Rung, data: Data, out: np.ndarray, isa: str) -> Callable[[], object]:
    case = rung.case
    if rung.step == LIBRARY:
        return our_call(case, data, out)
    q, k, v = data.q[0], data.k[0], data.v[0]
    return lambda: ladder.attention(
        rung.step.number, q, k, v, out[0], causal=case.causal, isa=isa, num_threads=case.threads
    )


def _measure(rung: Rung, climb: Climb, effort: Effort, isa: str, seed: int) -> None:
    """Check a step, then time it: add a row to `climb`, or a failure if the step is wrong."""
    case = rung.case
    data = make_data(case, seed)
    expected = expected_rows(case, data, seed + 1)
    with pinned(case.threads) as cores:
        out = np.full_like(data.q, np.nan)  # what the step leaves out shows
        call = _call(rung, data, out, isa)
        call()
        deviation = error(expected, out)
        if not deviation <= TOLERANCE[case.dtype]:
            climb.record.failures[rung.name] = f"error {deviation:.1e}, more than {TOLERANCE[case.dtype]:.0e}"
            return
        probe = choose_probe(case, data.kv, isa)
        seen = take_turns(
            probe.measure,
            call,
            {},
            count=effort.rounds,
            budget=effort.budget,
            peer_budget=0.0,
            settle=lambda: pin(cores),
        )
    climb.steps.append(rung.step)
    climb.record.rows.append(
        results.Row(
            case=case,
            useful_flops=useful_flops(case),
            error=deviation,
            rounds=seen.ours,
            limit_name=probe.name,
            limits=seen.limits,
            target=None,
            peers={},
        )
    )


def to_json(climb: Climb) -> dict[str, Any]:
    """Return what the file holds: `results.to_json` of the record, with the step of each row."""
    content = {**results.to_json(climb.record), "schema": SCHEMA}
    for step, row, entry in zip(climb.steps, climb.record.rows, content["rows"], strict=True):
        entry["step"] = step._asdict()
        entry["summary"]["gain"] = climb.gain(step, row.case.head_dim, row.case.causal)
    return content


def load(path: Path) -> Climb:
    """Read a file that `run` wrote; ValueError when it is none."""
    content = results.read(path)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {content.get('schema')!r}; this version reads {SCHEMA!r}")
    steps = [ladder.Step(**entry.pop("step")) for entry in content["rows"]]
    return Climb(steps, results.from_json({**content, "schema": results.SCHEMA}))


def run(args: argparse.Namespace) -> int:
    """Climb as `args` (see `fastattention.bench.add_arguments`) say; return the exit code."""
    level = "quick" if args.quick else "full" if args.full else "default"
    cores = allowed_cores()
    threads = args.threads or cores
    if threads > cores:
        print(
            f"fastattention bench: --threads {threads}: this process may use {cores} cores", file=sys.stderr
        )
        return 2
    chosen = rungs(threads, level, args.filter)
    if args.list:
        print("\n".join(rung.name for rung in chosen))
        return 0
    if not chosen:
        print(f"fastattention bench: no step matches {args.filter!r}; see --ladder --list", file=sys.stderr)
        return 2
    try:
        if args.isa:
            set_isa(args.isa)
        isa = ladder.closest_isa(get_isa())
        set_isa(isa)  # the library on the same terms as the steps
        return _run(args, chosen, level, threads, isa)
    except ValueError as problem:
        if not args.isa:
            raise
        print(f"fastattention bench: --isa: {problem}", file=sys.stderr)
        return 2
    finally:
        set_isa(None)


def _run(args: argparse.Namespace, chosen: list[Rung], level: str, threads: int, isa: str) -> int:
    # A file or a pipe has no width of its own; the whole table fits this one.
    console = Console() if sys.stdout.isatty() else Console(width=130)
    record = results.Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=describe(isa),
        options={
            "level": level,
            "threads": threads,
            "filter": args.filter,
            "isa": args.isa,
            "seed": args.seed,
        },
    )
    climb = Climb([], record)
    cases = [rung.case for rung in chosen]
    survey(record, cases)
    for rung in chosen:
        print(rung.name, file=sys.stderr, flush=True)
        _measure(rung, climb, _EFFORT[level], isa, args.seed)
    survey(record, cases)
    path = args.json or results.default_path(record, "ladder")
    results.write(to_json(climb), path)
    from .ladder_report import draw, print_table

    print_table(climb, console)
    written = [path]
    if not args.no_plots and record.rows:
        written.append(draw(climb, path))
    console.print("Wrote " + ", ".join(str(item) for item in written), highlight=False, soft_wrap=True)
    return 1 if record.failures else 0
