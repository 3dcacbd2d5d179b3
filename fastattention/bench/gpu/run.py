"""The command ``fastattention bench --gpu``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from ..peers import one_line
from . import results
from .cases import GpuCase, select
from .measure import Device, WrongOutputError, measure_case
from .report import WIDTH, print_report
from .targets import judge

__all__ = ["open_device", "run"]

_ROUNDS = {"quick": 3, "default": 7, "full": 11}
_SURVEY_SECONDS = 0.05
_WARM_SECONDS = 0.5  # an idle card's clock takes a while to rise


def open_device(with_pytorch: bool, seed: int) -> Device:
    """Return the current GPU, arrays by `seed`; the errors are those of `gpu.card`."""
    from .card import GpuDevice

    return GpuDevice(with_pytorch, seed)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark as `args` (see `fastattention.bench.add_arguments`) say; return the exit code."""
    level = "quick" if args.quick else "full" if args.full else "default"
    for name in ("threads", "isa"):
        if getattr(args, name) is not None:
            return _complain(f"--{name} is about CPUs, and goes with no --gpu")
    cases = select(level, args.filter)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not cases:
        return _complain(f"no row of the {level} set of GPUs matches {args.filter!r}; see --gpu --list")
    try:
        device = open_device("pytorch" in args.peers, args.seed)
    except (ImportError, RuntimeError, ValueError) as problem:
        return _complain(f"--gpu: {problem}")
    try:
        outcome = _measure(device, cases, level, args.filter, args.seed)
    except WrongOutputError as problem:
        print(f"fastattention bench: WRONG, nothing is written: {problem}", file=sys.stderr)
        return 1
    finally:
        device.close()
    path = args.json or results.default_path(outcome.environment["gpu"], outcome.date)
    results.save(outcome, path)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    print_report(outcome, console)
    written = [path, *([] if args.no_plots else _figures(outcome, path))]
    console.print("Wrote " + ", ".join(str(item) for item in written), highlight=False, soft_wrap=True)
    return 0


def _complain(text: str) -> int:
    print(f"fastattention bench: {text}", file=sys.stderr)
    return 2


def _figures(outcome: results.Run, path: Path) -> list[Path]:
    if not outcome.rows:
        return []
    if importlib.util.find_spec("matplotlib") is None:
        print(
            f"No figures: matplotlib is not installed. Where it is: fastattention bench --plot {path}",
            file=sys.stderr,
        )
        return []
    from .plots import draw

    return draw(outcome, path)


def _measure(device: Device, cases: list[GpuCase], level: str, pattern: str | None, seed: int) -> results.Run:
    outcome = results.Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        environment={},
        options={"level": level, "filter": pattern, "rounds": _ROUNDS[level], "seed": seed},
    )
    _say("limits of the card")
    device.probe(device.limit_names()[0], _WARM_SECONDS)
    _survey(outcome, device, "start")
    for case in cases:
        if why := device.missing(case):
            outcome.left_out[case.name] = why
    chosen = [case for case in cases if case.name not in outcome.left_out]
    _say(f"kernels of {len(chosen)} rows")
    outcome.compiled = device.compile(chosen)
    for case in chosen:
        _say(case.name)
        try:
            outcome.rows.append(measure_case(case, device, _ROUNDS[level]))
        except MemoryError as problem:
            outcome.left_out[case.name] = f"out of memory: {one_line(problem)}"
    _survey(outcome, device, "end")
    outcome.environment = device.environment()
    outcome.goals.extend(judge(outcome))
    return outcome


def _survey(outcome: results.Run, device: Device, when: str) -> None:
    for name in device.limit_names():
        outcome.limits.setdefault(name, []).append(device.probe(name, _SURVEY_SECONDS))
    device.note_clocks(when)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
