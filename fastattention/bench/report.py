"""The table a run ends with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .limits import arithmetic_name
from .memory import MIB
from .results import Goal, PeerResult, Row, Run

__all__ = ["WIDTH", "print_report"]

#: Probes that disagree by more than this are worth a warning: the machine was not left alone.
_DRIFT = 0.10

#: Columns that every table fits.
WIDTH = 110


def print_report(run: Run, console: Console) -> None:
    """Print the machine, a row for each case, and what has to be known to read them."""
    console.width = max(WIDTH, console.width)  # in a narrower window lines wrap, and nothing is cut off
    _print_heading(run, console)
    notes: list[str] = []
    for table in tables(run, notes):
        console.print(table, crop=False)
        console.print()
    for number, note in enumerate(notes, 1):
        console.print(f"[{number}] {note}", markup=False, highlight=False, soft_wrap=True)
    _print_summary(run, console)


def tables(run: Run, notes: list[str]) -> Iterator[Table]:
    """Yield the tables of a run: our rows, the other libraries beside them, memory.

    Parameters
    ----------
    run : Run
    notes : list of str
        What the tables' [1], [2], ... refer to is added here.
    """
    peers = list(dict.fromkeys(name for row in run.rows for name in row.peers))
    for kind, title in (
        ("prefill", "Prefill: as many queries as keys"),
        ("decode", "Decode: one query a head, or the few of Q"),
    ):
        rows = [row for row in run.rows if row.case.kind == kind]
        if rows:
            yield _our_table(title, run, rows)
        beside = [row for row in rows if row.peers]
        if beside:
            yield _peer_table(f"{title}, other libraries", run, beside, peers, notes)
    if run.memory:
        yield _memory_table(run)


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


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("case", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("limit", "target") else "right", no_wrap=True)
    return table


def _our_table(title: str, run: Run, rows: list[Row]) -> Table:
    table = _table(title, "ms", rows[0].unit, "of limit", "limit", "spread", "target")
    for row in rows:
        low, high = row.percent_range
        goals = [goal for goal in run.goals_of(row.case) if goal.kind != "peers"]
        missed = any(not goal.met for goal in goals)
        table.add_row(
            row.case.name.partition("/")[2],  # the title has the kind
            _milliseconds(row.median),
            f"{row.rate:.1f}",
            Text(f"{row.percent:.0f} %", style="bold red" if missed else "bold"),
            row.limit_name,
            f"±{(high - low) / 2:.0f} %",
            _verdicts(goals),
        )
    return table


def _peer_table(title: str, run: Run, rows: list[Row], peers: list[str], notes: list[str]) -> Table:
    table = _table(title, *peers, "target")
    for row in rows:
        goals = [goal for goal in run.goals_of(row.case) if goal.kind == "peers"]
        cells = [_peer_cell(row, peer, notes) for peer in peers]
        table.add_row(row.case.name.partition("/")[2], *cells, _verdicts(goals))
    return table


def _memory_table(run: Run) -> Table:
    table = _table("Memory beyond inputs and output, MiB a thread", "planned", "measured", "target")
    for memory in run.memory:
        measured = memory.measured_bytes
        table.add_row(
            memory.case.name.partition("/")[2],
            f"{memory.planned_per_thread / MIB:.2f}",
            "no" if measured is None else f"{measured / memory.case.threads / MIB:.2f}",
            _verdicts(run.goals_of(memory.case)),
        )
    return table


def _verdicts(goals: list[Goal]) -> Text:
    text = Text()
    for goal in goals:
        text.append(", " if text else "")
        word, style = ("met", "green") if goal.met else ("missed", "bold red")
        text.append(f"{goal.text} {word}", style=style)
    return text


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


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
        add("AMX bf16", limits.threads, "GFLOP/s", [limits.amx_bf16_gflops])
        add("AMX int8", limits.threads, "GOP/s", [limits.amx_int8_gops])
    for row in run.rows:
        if row.case.kind == "decode" and row.limit_name != "read":
            continue  # how fast keys and values would pass if arithmetic alone took time: the row's own
        of = f" of {row.case.kv_bytes / 2**20:.0f} MiB" if row.case.kind == "decode" else ""
        add(row.limit_name + of, row.case.threads, row.unit, row.limits)
    return {name: (min(found), statistics.median(found), max(found)) for name, found in values.items()}


def _print_summary(run: Run, console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    for name, why in run.failures.items():
        say(f"WRONG, not timed: {name}: {why}", "bold red")
    for how in dict.fromkeys(memory.how for memory in run.memory):
        say(f"Memory, measured: {how}.")
    for why in dict.fromkeys(run.left_out.values()):
        names = [name for name, reason in run.left_out.items() if reason == why]
        say(f"Not on this machine: {why}: {', '.join(names)}", "yellow")
    missed = [goal for goal in run.goals if not goal.met]
    if run.goals:
        say(
            f"Targets: {len(run.goals) - len(missed)} of {len(run.goals)} met.",
            "bold red" if missed else "bold green",
        )
    for goal in missed:
        if goal.kind != "limit":  # those the table explains by itself
            say(f"Missed: {goal.row}: {goal.found}; target {goal.text}")
    say(
        "GFLOP/s and GB/s count useful work: visible pairs, each byte of keys and values once. Of limit: in "
        "percent of what the probes reach on the same cores, by arithmetic in the unit that is named, or by "
        "reading the same keys and values, just before and just after; the median of the rounds. Decode has "
        "both limits, and the slower counts. Spread: half the way from the worst round to the best. Targets: "
        "84 %: of the limit; D64 - 8: points below the row with 64 in that place; 0.9 of flat: of the speed "
        "with contiguous keys, 1 of H32: with 32 KV heads, 0.6 of none: without a mask, 1.9 of 1t: on one "
        "thread; 2.3x: beside the fastest library. A library's 2.00x: it takes twice our time in the same "
        "round, in the fastest of its ways to do the case."
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
