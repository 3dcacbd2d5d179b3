"""The command ``fastattention bench --offload``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..peers import one_line
from . import results
from .cases import OffloadCase, select
from .limits import UNITS
from .measure import LeftOutError, Machine, WrongOutputError, measure_case
from .report import WIDTH, print_report
from .targets import judge

__all__ = ["open_machine", "run"]

_BUDGET = {"quick": 1.0, "default": 1.2, "full": 6.0}  # seconds of timed steps of each way, twice
_SURVEY_SECONDS = 0.3
_GIB = 2**30


def open_machine(threads: int | None, host_bytes: int | None, seed: int) -> Machine:
    """Return the current GPU and its host; the errors are those of `runtime.open_device`."""
    from ...runtime.device import open_device

    device = open_device("cuda")
    from .machine import OffloadMachine

    return OffloadMachine(device, threads, host_bytes=host_bytes, seed=seed)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark as `args` (see `fastattention.bench.add_arguments`) say; return the exit code."""
    level = "quick" if args.quick else "full" if args.full else "default"
    if args.isa is not None:
        return _complain("--isa is about CPUs, and goes with no --offload")
    if args.long and (args.quick or args.full or args.filter or args.list):
        return _complain("--long is one run, and goes with no --quick, --full, --filter, --list")
    cases = select(level, args.filter)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not cases:
        return _complain(
            f"no row of the {level} set of --offload matches {args.filter!r}; see --offload --list"
        )
    start = time.perf_counter()
    host_bytes = None if args.host_memory is None else int(args.host_memory * _GIB)
    try:
        machine = open_machine(args.threads, host_bytes, args.seed)
    except (ImportError, RuntimeError, ValueError) as problem:
        return _complain(f"--offload: {problem}")
    options = {"level": level, "filter": args.filter, "long": args.long, "threads": args.threads}
    options["seed"] = args.seed
    try:
        outcome = results.Run(datetime.now(UTC).isoformat(timespec="seconds"), {}, options)
        if args.long:
            try:
                _long(machine, outcome, args.threads)
            except (MemoryError, ValueError) as problem:
                return _complain(f"--offload --long: {problem}")
        else:
            _measure(machine, outcome, cases, _BUDGET[level], "pytorch" in args.peers)
    except WrongOutputError as problem:
        print(f"fastattention bench: WRONG, nothing is written: {problem}", file=sys.stderr)
        return 1
    finally:
        machine.close()
    outcome.options["seconds"] = time.perf_counter() - start
    outcome.goals.extend(judge(outcome))
    kind = "offload-long" if args.long else "offload"
    path = args.json or results.default_path(outcome.environment["gpu"], outcome.date, kind)
    results.save(outcome, path)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    print_report(outcome, console)
    written = [path, *([] if args.no_plots else _figures(outcome, path))]
    console.print("Wrote " + ", ".join(str(item) for item in written), highlight=False, soft_wrap=True)
    return 0


def _complain(text: str) -> int:
    print(f"fastattention bench: {text}", file=sys.stderr)
    return 2


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _figures(outcome: results.Run, path: Path) -> list[Path]:
    if importlib.util.find_spec("matplotlib") is None:
        _say(f"No figures: matplotlib is not installed. Where it is: fastattention bench --plot {path}")
        return []
    from .plots import draw

    return draw(outcome, path)


def _measure(
    machine: Machine, outcome: results.Run, cases: list[OffloadCase], budget: float, with_peer: bool
) -> None:
    outcome.hardware = machine.hardware()
    _survey(machine, outcome)
    chosen = []
    for case in cases:
        try:
            fitting, why = machine.fit(case)
        except LeftOutError as problem:
            outcome.left_out[case.name] = str(problem)
            continue
        if why:
            outcome.left_out[case.name] = why
        chosen.append(fitting)
    if chosen:
        _say("host memory")
        outcome.options["host_memory_seconds"] = machine.reserve(chosen)
    for case in chosen:
        _say(case.name)
        try:
            outcome.rows.append(measure_case(case, machine, budget, with_peer, _say))
        except LeftOutError as problem:
            outcome.left_out[case.name] = str(problem)
        except MemoryError as problem:
            outcome.left_out[case.name] = f"out of memory: {one_line(problem)}"
    _survey(machine, outcome)
    outcome.environment = machine.environment()


def _survey(machine: Machine, outcome: results.Run) -> None:
    _say("limits of the machine")
    for name, value in machine.limits(_SURVEY_SECONDS, *UNITS).items():
        outcome.limits.setdefault(name, []).append(value)


def _long(machine: Machine, outcome: results.Run, threads: int | None) -> None:
    outcome.hardware = machine.hardware()
    _survey(machine, outcome)
    outcome.environment = machine.environment()
    with _progress() as progress:
        outcome.long = machine.long(threads, _say, progress)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Give what draws a bar of the prompt on standard error; a file gets a line every tenth."""
    if sys.stderr.isatty():
        columns = (TextColumn("prefill"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("prefill")
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            _say(f"prefill: {done} of {total} tokens")

    yield tell
