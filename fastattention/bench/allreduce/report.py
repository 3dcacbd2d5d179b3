"""The table in the terminal."""

from __future__ import annotations

import statistics

from rich.console import Console
from rich.table import Table

from .results import Row, Run

__all__ = ["WIDTH", "print_report"]

WIDTH = 110
_NO_OVERLAP = 1e3
_READING = (
    "ms: median of the turns, the slowest rank's. formula: from compute alone, AllReduce alone, what a block "
    "costs besides and what compute loses beside a sum, all of the same turns. Every way was checked before "
    "it was timed."
)


def print_report(run: Run, console: Console) -> None:
    """Print the machine, a table for each case, and what was to be reached."""
    console.width = max(WIDTH, console.width)

    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    where = run.environment
    say(f"{where['ranks']} ranks by {where['engine']}; {where.get('gpu', where['cpu'])}; {run.date}")
    say(", ".join(f"{name} {version}" for name, version in where["versions"].items()))
    for row in run.rows:
        say("")
        console.print(_table(row), crop=False)
        for line in _lines(row):
            say(line)
    for name, why in run.left_out.items():
        say(f"Left out: {name}: {why}", "yellow")
    missed = [goal for goal in run.goals if not goal.met]
    if run.goals:
        say(
            f"Targets: {len(run.goals) - len(missed)} of {len(run.goals)} met.",
            "bold red" if missed else "bold green",
        )
    for goal in missed:
        say(f"Missed: {goal.row}: {goal.found}; target {goal.text}")
    say(_READING)


def _table(row: Row) -> Table:
    table = Table(
        title=row.case.name, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    for heading in ("way", "ms", "spread", "formula", "speedup", "blocks"):
        table.add_column(heading, justify="left" if heading in ("way", "blocks") else "right", no_wrap=True)
    for name, way in row.ways.items():
        beside = "projection, in sequence" if name.startswith("projection") else "in sequence"
        timed = way.sizes is not None
        spread = 50 * (max(way.seconds) - min(way.seconds)) / statistics.median(way.seconds)
        blocks = "" if way.sizes is None else " ".join(map(str, way.sizes))
        table.add_row(
            f"{name} (chosen)" if name == row.chosen != "chosen" else name,
            f"{1e3 * way.median:.3f}",
            f"±{spread:.0f} %",
            "" if way.predicted is None else f"{1e3 * way.predicted:.3f}",
            f"{row.speedup(name, beside):.2f}x" if timed else "",
            blocks,
        )
    return table


def _lines(row: Row) -> list[str]:
    costs = row.costs
    beside = (
        "nothing overlaps" if costs.slowdown > _NO_OVERLAP else f"compute beside a sum x {costs.slowdown:.3f}"
    )
    return [
        f"C {1e3 * costs.compute:.3f} ms, M {1e3 * costs.communication:.3f} ms, a block "
        f"{1e3 * costs.compute_overhead:.3f} + {1e3 * costs.communication_overhead:.3f} ms, {beside}, "
        f"skew {costs.skew:.2f}",
        f"formula: {row.formula_speedup:.2f}x with {row.formula_sizes}",
        f"formula if compute lost nothing beside a sum: {row.free_speedup:.2f}x",
        f"{row.chosen} (chosen): {row.speedup(row.chosen):.2f}x, {100 * row.share:.0f} % of the formula's",
        f"projection alone, plain streams: {row.streams:.2f}x of {row.streams_formula:.2f}x",
    ]
