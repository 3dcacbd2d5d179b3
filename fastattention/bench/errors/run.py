"""The command ``fastattention bench --errors``."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from ... import get_isa
from .. import results as cpu_results
from ..environment import describe
from . import results
from .cases import select
from .measure import measure_case
from .peer import PyTorch
from .report import WIDTH, print_report

__all__ = ["default_path", "run"]


def default_path(outcome: results.Run) -> Path:
    """Return ``results/errors-<cpu>-<date>.json``, under the current directory."""
    named = cpu_results.Run(outcome.date, outcome.environment, {})
    return cpu_results.default_path(named, "errors")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark as `args` (see `fastattention.bench.add_arguments`) say; return the exit code.

    It is 1 when an error is above its bound, or above PyTorch's by more than chance and for no known reason.
    """
    if args.isa is not None or args.full or args.threads is not None:
        return _complain("--errors goes with no --isa, no --threads and no --full: it tries every set")
    cases = select(args.quick, args.filter)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not cases:
        return _complain(f"no row of --errors matches {args.filter!r}; see --errors --list")
    peer = None
    if "pytorch" in args.peers:
        try:
            peer = PyTorch()
        except ImportError:
            print("PyTorch is not installed: errors are compared with the bound alone", file=sys.stderr)
    environment = describe(get_isa())
    if peer is not None:
        environment["versions"]["PyTorch"] = peer.version
    options = {"quick": args.quick, "filter": args.filter}
    outcome = results.Run(datetime.now(UTC).isoformat(timespec="seconds"), environment, options)
    for case in cases:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{case.name}", end="", file=sys.stderr, flush=True)
        outcome.rows.append(measure_case(case, peer))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    path = args.json or default_path(outcome)
    results.save(outcome, path)
    console = Console()
    print_report(outcome, console)
    console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=len(str(path)) > WIDTH)
    above = any((found.of_bound or 0) > 1 for row in outcome.rows for found in row.kernels.values())
    return int(above or bool(outcome.unexpected()))


def _complain(text: str) -> int:
    print(f"fastattention bench: {text}", file=sys.stderr)
    return 2
