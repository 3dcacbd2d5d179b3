"""The table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .results import Row, Run

__all__ = ["WIDTH", "print_report"]

WIDTH = 110
_READING = (
    "ulps: error in units in the last place of the output's type, of the element or of its row's root mean "
    "square, whichever is larger; correctly rounded is 0.5 at most, 0.29 on average. of bound: the largest "
    "error of an element in parts of what it can be at most. tolerance: in parts of what `fastattention "
    "verify` allows. int8: PyTorch got float32 keys and values. * less accurate than PyTorch."
)


def print_report(run: Run, console: Console) -> None:
    """Print the machine, a table for each shape and data type, and what was to be reached."""
    console.width = max(WIDTH, console.width)

    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    say(f"{run.environment['cpu']}; {run.date}")
    say(", ".join(f"{name} {version}" for name, version in run.environment["versions"].items()))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in run.rows:
        groups.setdefault((row.case.dtype, row.case.shape), []).append(row)
    for (dtype, shape), rows in groups.items():
        say("")
        console.print(_table(f"{dtype}, {shape}", rows), crop=False)
    over = [row.case.name for row in run.rows for found in row.kernels.values() if (found.of_bound or 0) > 1]
    known, worse = ([f"{n} ({isa})" for n, isa in found] for found in (run.worse(), run.unexpected()))
    known = [name for name in known if name not in worse]
    say(f"Above the bound: {', '.join(over) or 'none'}.", "bold red" if over else "bold green")
    say(f"Less accurate than PyTorch: {', '.join(worse) or 'none'}.", "bold red" if worse else "bold green")
    if known:
        say(f"Likewise, with a reason that is known (results.KNOWN): {', '.join(known)}.")
    say(_READING)


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for heading in ("keys", "numbers", "kernel", "rms", "max", "bound", "of bound", "tolerance", "PyTorch"):
        left = heading in ("numbers", "kernel")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    table.add_column("its max", justify="right", no_wrap=True)
    for row in rows:
        worse = row.worse()
        for isa, found in row.kernels.items():
            table.add_row(
                f"{row.case.keys:,}",
                row.case.kind,
                isa,
                f"{found.rms:.3f}{'*' if isa in worse else ' '}",
                f"{found.largest:.2f}",
                "" if found.bound is None else f"{found.bound:,.1f}",
                "" if found.of_bound is None else f"{found.of_bound:.3f}",
                f"{found.of_tolerance:.2f}",
                "" if row.pytorch is None else f"{row.pytorch.rms:.3f}",
                "" if row.pytorch is None else f"{row.pytorch.largest:.2f}",
            )
    return table
