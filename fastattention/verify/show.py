"""A report in the terminal, and as a page: the same tables, by rich."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .cases import FEATURES
from .report import Report, Result, amount, describe

__all__ = ["page", "progress", "show"]

_LEAST_WIDTH = 88
_PAGE_WIDTH = 110
_MOST_FAILURES = 8
_SHADES = ((1.0, "green"), (2.0, "yellow"), (10.0, "dark_orange"), (math.inf, "red"))


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """Show how far it is, on stderr, where that is a terminal; yield what to call for each case."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=escape(what)[:44].ljust(44))

        yield tell


def show(report: Report, kernel: str, console: Console | None = None) -> None:
    """Print a report.

    Parameters
    ----------
    report : Report
    kernel : str
        As the command was called with it, for the line that replays a case.
    console : Console, optional
    """
    console = console or Console()
    console.width = max(console.width, _LEAST_WIDTH)
    console.print(f"[bold]{escape(report.kernel)}[/bold]", highlight=False)
    machine = report.environment
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    console.print(escape(f"{machine['cpu']}; {report.date}; {versions}; seed {report.seed}"), highlight=False)
    if report.note:
        console.print(escape(report.note[:1].upper() + report.note[1:] + "."), highlight=False)
    console.print()
    console.print(_groups(report))
    console.print(escape(_properties(report)), highlight=False)
    failures = report.failures
    if not failures:
        console.print(f"[bold green]All {len(report.results)} cases are right.[/bold green]")
        return
    console.print(f"\n[bold red]{len(failures)} of {len(report.results)} cases are wrong.[/bold red]")
    for result in failures[:_MOST_FAILURES]:
        _print_case(console, result)
    if len(failures) > _MOST_FAILURES:
        console.print(f"  and {len(failures) - _MOST_FAILURES} more", highlight=False)
    first = failures[0]
    console.print(f"\nWhat breaks first: [bold]{escape(first.group)}[/bold]")
    if report.smallest is not None:
        console.print("At its smallest:")
        _print_case(console, report.smallest.result)
        if report.smallest.heat_map is not None and max(_sizes(report)) > 1:
            console.print("Where it comes from, in tolerances by tiles of queries and of keys:")
            console.print(_heat_map(report))
    again = ["fastattention", "verify", kernel, "--only", first.case, "--dtypes", first.dtype]
    console.print(Text(f"Again: {shlex.join([*again, '--seed', str(report.seed)])}"))


def page(report: Report, kernel: str) -> str:
    """Return the report as an HTML page that needs no other file."""
    from io import StringIO

    console = Console(record=True, width=_PAGE_WIDTH, file=StringIO(), force_terminal=True)
    show(report, kernel, console)
    return console.export_html()


def _print_case(console: Console, result: Result) -> None:
    case, _, wrong = describe(result, "\n").partition("\n")
    console.print(Padding(Text(case), (0, 0, 0, 2)))
    console.print(Padding(Text(wrong.replace("\n", " ")), (0, 0, 0, 4)))


def _groups(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    for name in report.dtypes:
        table.add_column(name)
        table.add_column("worst", justify="right")
    for group, results in report.groups.items():
        cells = []
        for dtype in report.dtypes:
            mine = [result for result in results if result.dtype == dtype]
            cells += [_count(mine), _worst(mine)]
        table.add_row(escape(group), *cells)
    return table


def _count(results: list[Result]) -> str:
    right = sum(result.passed for result in results)
    colour = "green" if right == len(results) else "red"
    return f"[{colour}]{right} of {len(results)}[/{colour}]" if results else ""


def _worst(results: list[Result]) -> str:
    if not results:
        return ""
    error = max(result.error for result in results)
    return "[red]inf[/red]" if math.isinf(error) else f"{error:.2f}" if error < 100 else f"{error:.2g}"


def _properties(report: Report) -> str:
    lines = ["worst: largest error in units of the tolerance; above 1 is wrong."]
    if report.tiles:
        lines.append(f"Key tiles end at {', '.join(map(str, report.tiles))}, by their roundings.")
    for name, found in (
        ("The same bits again", report.repeats),
        ("For any number of threads", report.threads),
    ):
        words = [f"{dtype} {'yes' if same else 'NO'}" for dtype, same in found.items() if same is not None]
        if words:
            lines.append(f"{name}: {', '.join(words)}.")
    if report.not_declared:
        missing = [name for name in FEATURES if name in report.not_declared]
        lines.append(f"Not declared, so not tried: {', '.join(missing)}.")
    return "\n".join(lines)


def _sizes(report: Report) -> tuple[int, int]:
    assert report.smallest is not None
    assert report.smallest.heat_map is not None
    errors = report.smallest.heat_map["errors"]
    return len(errors), len(errors[0]) if errors else 0


def _heat_map(report: Report) -> Table:
    assert report.smallest is not None
    heat = report.smallest.heat_map
    assert heat is not None
    table = Table(box=None, pad_edge=False)
    table.add_column("queries \\ keys")
    rows, columns = heat["errors"][:16], range(min(12, len(heat["errors"][0])))
    for column in columns:
        table.add_column(f"{column * heat['block_k']}-", justify="right")
    for row, errors in enumerate(rows):
        cells = []
        for column in columns:
            error = errors[column]
            colour = next(name for limit, name in _SHADES if error <= limit)
            cells.append(Text(amount(error) if error < 1e9 else "inf", style=colour))
        table.add_row(f"{row * heat['block_q']}-", *cells)
    return table
