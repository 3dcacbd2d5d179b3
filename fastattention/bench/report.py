"""The table a run ends with."""

from __future__ import annotations

import statistics

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .results import PeerResult, Row, Run

__all__ = ["print_report"]

#: Probes that disagree by more than this are worth a warning: the machine was not left alone.
_DRIFT = 0.10


def print_report(run: Run, console: Console) -> None:
    """Print the machine, a row for each case, and what has to be known to read them."""
    _print_heading(run, console)
    notes: list[str] = []
    names = list(dict.fromkeys(name for row in run.rows for name in row.peers))
    for kind, title in (("prefill", "Prefill: queries, keys and values of one length"), ("decode", "Decode: one query")):
        rows = [row for row in run.rows if row.case.kind == kind]
        if rows:
            console.print(_table(title, rows, names, notes))
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


def _table(title: str, rows: list[Row], peers: list[str], notes: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    decode = rows[0].case.kind == "decode"
    for heading in ("dtype", "visibility", "heads", "D", "keys", "threads"):
        table.add_column(heading, justify="left" if heading in ("dtype", "visibility") else "right", no_wrap=True)
    table.add_column("ms (p10-p90)", justify="right", no_wrap=True)
    table.add_column("GB/s of KV" if decode else "useful GFLOP/s", justify="right")
    table.add_column("of limit", justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    for name in peers:
        table.add_column(f"{name} takes", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row), *(_peer_cell(row, name, notes) for name in peers))
    return table


def _cells(row: Row) -> list[str | Text]:
    case = row.case
    low, high = row.ours.spread
    reached = Text(f"{row.percent:.0f} %", style="bold red" if row.missed else "bold")
    goal: str | Text = ""
    if row.target is not None:
        goal = Text(f"{row.target:.0f} % {'missed' if row.missed else 'met'}", style="red" if row.missed else "green")
    return [
        case.dtype,
        case.visibility if not case.window else f"window {case.window[0] + 1 + case.window[1]}",
        case.heads,
        str(case.head_dim),
        str(case.k_len),
        str(case.threads),
        f"{1e3 * row.ours.median:.3g} ({1e3 * low:.3g}-{1e3 * high:.3g})",
        f"{row.rate():.1f}",
        reached,
        goal,
    ]


def _peer_cell(row: Row, name: str, notes: list[str]) -> str:
    result = row.peers.get(name)
    if result is None:
        return ""
    if result.status == "ok" and result.timing is not None:
        text = f"{result.timing.median / row.ours.median:.2f}x"
        return text + (_note(notes, name, result) if "," in result.detail else "")
    return ("wrong" if result.status == "failed" else "-") + _note(notes, name, result)


def _note(notes: list[str], name: str, result: PeerResult) -> str:
    text = f"{name}: {result.detail}"
    if text not in notes:
        notes.append(text)
    return f" [{notes.index(text) + 1}]"


def drift(run: Run) -> dict[str, tuple[float, float, float]]:
    """Return smallest, median and largest value of each probe of the run, by name with unit and threads."""
    values: dict[str, list[float]] = {}
    for limits in run.probes:
        threads = f"{limits.threads} thread{'s' if limits.threads > 1 else ''}"
        for name, value in (
            (f"{limits.isa} float32 multiply-add, {threads}, GFLOP/s", limits.fma_gflops),
            (f"bf16 dot, {threads}, GFLOP/s", limits.bf16_dot_gflops),
            (f"int8 dot, {threads}, GOP/s", limits.int8_dot_gops),
        ):
            values.setdefault(name, []).append(value)
    for row in run.rows:
        if row.case.kind == "decode":
            threads = f"{row.case.threads} thread{'s' if row.case.threads > 1 else ''}"
            name = f"read of {row.case.kv_bytes / 2**20:.0f} MiB, {threads}, GB/s"
            values.setdefault(name, []).extend((row.limit_before, row.limit_after))
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
        say(f"Targets: {len(aimed) - len(missed)} of {len(aimed)} met.", "bold red" if missed else "bold green")
    say(
        "Of limit: useful work a second (hidden pairs count nothing), in percent of what the probes reach on the same "
        "cores: arithmetic for prefill, reading the same keys and values for decode; mean of the probe just before and "
        "the one just after. Nx: the peer's median over ours, so more than 1 means that ours is faster."
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
            f"The limits moved by more than {100 * _DRIFT:.0f} % during the run ({', '.join(dict.fromkeys(moved))}): "
            "something else used the machine, and so every figure above is less certain.",
            "yellow",
        )
