"""The table a run ends with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .limits import arithmetic_name
from .results import PeerResult, Row, Run

__all__ = ["print_report"]

#: Probes that disagree by more than this are worth a warning: the machine was not left alone.
_DRIFT = 0.10

#: Columns from which our figures and the peers' fit side by side.
_WIDE = 120


def print_report(run: Run, console: Console) -> None:
    """Print the machine, a row for each case, and what has to be known to read them."""
    _print_heading(run, console)
    notes: list[str] = []
    peers = list(dict.fromkeys(name for row in run.rows for name in row.peers))
    wide = console.width >= _WIDE
    for kind, title in (
        ("prefill", "Prefill: as many queries as keys"),
        ("decode", "Decode: one query a head"),
    ):
        rows = [row for row in run.rows if row.case.kind == kind]
        if not rows:
            continue
        console.print(_table(title, rows, peers if wide else [], notes, ours=True))
        console.print()
        if peers and not wide:
            console.print(_table(f"{title}, other libraries", rows, peers, notes, ours=False))
            console.print()
    for number, note in enumerate(notes, 1):
        console.print(f"[{number}] {note}", markup=False, highlight=False, soft_wrap=True)
    _print_summary(run, console)


def _print_heading(run: Run, console: Console) -> None:
    environment = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        f"{environment['cpu']}, {environment['allowed_cores']} of {environment['cores']} cores, "
        f"{environment['isa']}, {environment['compiler']}, {run.date}",
        versions,
    ]
    lines += [f"{name}: {why}" for name, why in environment["absent_peers"].items()]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()


def _table(title: str, rows: list[Row], peers: list[str], notes: list[str], *, ours: bool) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("case", no_wrap=True)
    if ours:
        for heading in ("ms", rows[0].unit, "of limit", "spread", "target"):
            table.add_column(heading, justify="right", no_wrap=True)
    for name in peers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = row.case.name.partition("/")[2]  # the title has the kind
        table.add_row(
            name, *(_our_cells(row) if ours else ()), *(_peer_cell(row, peer, notes) for peer in peers)
        )
    return table


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _our_cells(row: Row) -> list[str | Text]:
    low, high = row.percent_range
    goal = Text("")
    if row.target is not None:
        verdict, style = ("missed", "red") if row.missed else ("met", "green")
        goal = Text(f"{row.target:.0f} {verdict}", style=style)
    return [
        _milliseconds(row.median),
        f"{row.rate:.1f}",
        Text(f"{row.percent:.0f} %", style="bold red" if row.missed else "bold"),
        f"±{(high - low) / 2:.0f} %",
        goal,
    ]


def _peer_cell(row: Row, name: str, notes: list[str]) -> str:
    result = row.peers.get(name)
    if result is None:
        return ""
    ratio = row.ratio(name)
    if ratio is not None:
        return f"{ratio:.2f}x" + (_note(notes, name, result) if "," in result.detail else "")
    return ("wrong" if result.status == "failed" else "none") + _note(notes, name, result)


def _note(notes: list[str], name: str, result: PeerResult) -> str:
    text = f"{name}: {result.detail}"
    if text not in notes:
        notes.append(text)
    return f" [{notes.index(text) + 1}]"


def drift(run: Run) -> dict[str, tuple[float, float, float]]:
    """Return smallest, median and largest value of each limit of the run, by name with threads and unit."""
    values: dict[str, list[float]] = {}

    def add(name: str, threads: int, unit: str, found: Iterable[float]) -> None:
        plural = "s" if threads > 1 else ""
        values.setdefault(f"{name}, {threads} thread{plural}, {unit}", []).extend(found)

    for limits in run.probes:
        add(arithmetic_name(limits.isa), limits.threads, "GFLOP/s", [limits.fma_gflops])
        add("bf16 dot", limits.threads, "GFLOP/s", [limits.bf16_dot_gflops])
        add("int8 dot", limits.threads, "GOP/s", [limits.int8_dot_gops])
    for row in run.rows:
        of = f" of {row.case.kv_bytes / 2**20:.0f} MiB" if row.case.kind == "decode" else ""
        add(row.limit_name + of, row.case.threads, row.unit, row.limits)
    return {name: (min(found), statistics.median(found), max(found)) for name, found in values.items()}


def _print_summary(run: Run, console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    console.print()
    for name, why in run.failures.items():
        say(f"WRONG, not timed: {name}: {why}", "bold red")
    missed = [row for row in run.rows if row.missed]
    aimed = [row for row in run.rows if row.target is not None]
    if aimed:
        say(
            f"Targets: {len(aimed) - len(missed)} of {len(aimed)} met.",
            "bold red" if missed else "bold green",
        )
    say(
        "GFLOP/s and GB/s count useful work: visible pairs, each byte of keys and values once. Of limit: in "
        "percent of what the probes reach on the same cores, by arithmetic (prefill) or by reading the same "
        "keys and values (decode), just before and just after; the median of the rounds. Spread: half the "
        "way from the worst round to the best. A library's 2.00x: it takes twice our time in the same round, "
        "in the fastest of its ways to do the case."
    )
    moved = []
    for name, (low, median, high) in drift(run).items():
        if high == 0:
            say(f"Limit: {name}: no such instruction here")
            continue
        say(f"Limit: {name}: {low:.1f} - {high:.1f}, median {median:.1f}")
        if high - low > _DRIFT * median:
            moved.append(name.partition(",")[0])
    if moved:
        say(
            f"The limits moved by more than {100 * _DRIFT:.0f} % during the run "
            f"({', '.join(dict.fromkeys(moved))}): something else used the machine. Times and rates are "
            "those of their moment; percentages and ratios follow the machine, as far as their spread says.",
            "yellow",
        )
