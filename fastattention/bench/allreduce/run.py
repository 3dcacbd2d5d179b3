"""The command ``fastattention bench --allreduce``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ...runtime.launch import launch_gpus, launch_mpi
from .. import results as cpu_results
from ..gpu.results import default_path
from . import results
from .cases import select
from .report import WIDTH, print_report

__all__ = ["run"]

_SCRIPT = Path(__file__).with_name("on_rank.py")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark as `args` (see `fastattention.bench.add_arguments`) say; return the exit code."""
    engine, ranks = "gpus" if args.gpus else "mpi", args.ranks or 2
    if args.isa is not None or args.full:
        return _complain("--allreduce goes with no --isa and no --full")
    cases = select(engine, args.quick, args.filter)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not cases:
        return _complain(f"no row of --allreduce matches {args.filter!r}; see --allreduce --list")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options = {
        "engine": engine, "ranks": ranks, "quick": args.quick, "filter": args.filter,
        "threads": args.threads or max(1, cores // ranks), "seed": args.seed,
    }  # fmt: skip
    launch = launch_gpus if args.gpus else launch_mpi
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        try:
            with _blas_threads(int(options["threads"])):
                code = launch(ranks, _SCRIPT, [json.dumps(options), str(file)])
        except (ImportError, OSError) as problem:
            return _complain(f"--allreduce: {problem}")
        if code or not file.exists():
            print("fastattention bench: --allreduce: the ranks failed, nothing is written", file=sys.stderr)
            return 1
        outcome = results.load(file)
    path = args.json or _default_path(outcome)
    results.save(outcome, path)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    print_report(outcome, console)
    written = [path, *([] if args.no_plots else _figures(outcome, path))]
    console.print("Wrote " + ", ".join(str(item) for item in written), highlight=False, soft_wrap=True)
    return 0


@contextmanager
def _blas_threads(count: int) -> Iterator[None]:
    """Let ranks multiply with so many threads each; a choice of the user's stands."""
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(count)
    try:
        yield
    finally:
        del os.environ[name]


def _default_path(outcome: results.Run) -> Path:
    if "gpu" in outcome.environment:
        return default_path(outcome.environment["gpu"], outcome.date, "allreduce")
    return cpu_results.default_path(cpu_results.Run(outcome.date, outcome.environment, {}), "allreduce")


def _figures(outcome: results.Run, path: Path) -> list[Path]:
    if importlib.util.find_spec("matplotlib") is None:
        print(
            f"No figure: matplotlib is not installed. Later: fastattention bench --plot {path}",
            file=sys.stderr,
        )
        return []
    from .plots import draw

    return draw(outcome, path)


def _complain(text: str) -> int:
    print(f"fastattention bench: {text}", file=sys.stderr)
    return 2
