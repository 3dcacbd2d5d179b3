"""``fastattention bench --plot``: the figures of a run that was made before, or on another machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import plots, results
from .allreduce import plots as allreduce_plots
from .allreduce import results as allreduce_results
from .gpu import plots as gpu_plots
from .gpu import results as gpu_results
from .offload import plots as offload_plots
from .offload import results as offload_results

__all__ = ["draw", "run"]


def draw(path: Path) -> list[Path]:
    """Draw the figures beside a results file; return their paths.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It holds no results that this version reads.
    """
    content = results.read(path)
    if content.get("schema") == gpu_results.SCHEMA:
        return gpu_plots.draw(gpu_results.from_json(content), path)
    if content.get("schema") == offload_results.SCHEMA:
        return offload_plots.draw(offload_results.from_json(content), path)
    if content.get("schema") == allreduce_results.SCHEMA:
        return allreduce_plots.draw(allreduce_results.from_json(content), path)
    outcome = results.from_json(content)
    return plots.draw(outcome, path) if outcome.rows else []


def run(args: argparse.Namespace) -> int:
    """Do what the command says; return the exit code."""
    try:
        written = draw(args.plot)
    except (OSError, ValueError) as problem:
        print(f"fastattention bench: --plot {args.plot}: {problem}", file=sys.stderr)
        return 2
    print("Wrote " + (", ".join(map(str, written)) or "nothing: the file has no rows"))
    return 0
