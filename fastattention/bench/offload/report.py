"""The tables a run of offloading ends with."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..results import Goal
from .cases import ALL_GPU
from .limits import UNITS
from .results import LongRun, Outcome, Row, Run

__all__ = ["WIDTH", "print_report", "tables"]

#: Columns that every table fits.
WIDTH = 126

_LEFT = ("way", "limit", "target", "unit")

_READING = (
    "ms a token: the whole decoder, median of the steps; ± half the way from the fastest to the slowest. "
    "a layer: milliseconds of a step of attention alone, over the number of layers; GB/s up the bus and "
    "read by CPU attention are of such steps. foretold: the planner's time a token, from limits "
    "measured just before, and by how much that is too long (+) or too short (-). 1.90x: that many times as "
    "fast as classical offloading. Every layer's cache lies in host memory but in the all-GPU run, whose "
    "outputs all others had, within the tolerance, before anything was timed. Contents are random."
)


def print_report(run: Run, console: Console) -> None:
    """Print the machine, its limits, a line for each way of each case, and how to read them."""
    console.width = max(WIDTH, console.width)

    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    for line in heading(run):
        say(line)
    say("")
    if run.limits:
        console.print(_limits_table(run), crop=False)
        say("")
    for table in tables(run):
        console.print(table, crop=False)
        say("")
    if run.long is not None:
        for line in long_lines(run.long):
            say(line)
        say("")
    for name, why in run.left_out.items():
        say(f"Left out: {name}: {why}", "yellow")
    for row in run.rows:
        for name, way in row.ways.items():
            if way.status != "ok":
                say(f"Left out: {row.case.name}: {name}: {way.detail}", "yellow")
        if row.peer is not None and row.peer_token is None:
            say(f"Left out: {row.case.name}: transformers: {row.peer.get('missing', 'no figures')}", "yellow")
        if row.compared_with != ALL_GPU:
            say(f"{row.case.name}: outputs were compared with those of {row.compared_with}", "yellow")
    missed = [goal for goal in run.goals if not goal.met]
    if run.goals:
        style = "bold red" if missed else "bold green"
        say(f"Targets: {len(run.goals) - len(missed)} of {len(run.goals)} met.", style)
    for goal in missed:
        say(f"Missed: {goal.row}: {goal.found}; target {goal.text}")
    if run.rows:
        say(_READING)


def heading(run: Run) -> list[str]:
    """Return what the machine is, and the versions of everything."""
    where = run.environment
    return [
        f"{where['gpu']}, {where['gpu_memory_bytes'] / 2**30:.0f} GiB; {where['cpu']}, "
        f"{where['allowed_cores']} cores, {where['host_bytes'] / 2**30:.0f} GiB for caches; {run.date}",
        ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
    ]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for heading_ in headings:
        table.add_column(heading_, justify="left" if heading_ in _LEFT else "right", no_wrap=True)
    return table


def _limits_table(run: Run) -> Table:
    table = _table("Limits of this machine", "limit", "start", "end", "unit")
    for name, values in run.limits.items():
        unit = UNITS[name]
        if name.startswith("CPU attention"):
            unit += f", float16, {run.environment['threads']} threads"
        elif name == "GPU copy":
            unit += ", read and written"
        elif name == "trip":
            unit += ", a token's rows down, an empty call, an output up"
        table.add_row(name, *(f"{value:.1f}" for value in (values[0], values[-1])), unit)
    return table


def tables(run: Run) -> Iterator[Table]:
    """Yield a table for each row."""
    for row in run.rows:
        case = row.case
        title = (
            f"{case.model}, {case.layers} layers, {case.context} tokens, batch {case.batch}: "
            f"{row.cache_bytes / 2**30:.1f} GiB of keys and values"
        )
        table = _table(
            title, "way", "ms a token", "spread", "a layer", "up", "CPU", "foretold", "off by", "by token",
            "by layer", "target",
        )  # fmt: skip
        for name, way in row.ways.items():
            if way.status == "ok":
                goals = [goal for goal in run.goals if goal.row == f"{case.name} {name}"]
                table.add_row(*_cells(row, name, way), _verdicts(goals))
        if row.peer is not None and row.peer_token is not None:
            times = row.peer["tokens"]
            name = f"transformers {row.peer['versions']['transformers']}"
            table.add_row(name, _milliseconds(row.peer_token), _spread(times))
        yield table


def _cells(row: Row, name: str, way: Outcome) -> list[str]:
    label = name
    if way.share is not None:
        label += f", {100 * way.share:.0f} % CPU"
    if way.halves == 2:
        label += ", halves"
    error = way.prediction_error
    beside = row.done("classical") and name not in (ALL_GPU, "classical")
    classical = row.ways["classical"] if beside else way
    return [
        label,
        _milliseconds(way.token),
        _spread(way.tokens),
        _milliseconds(row.layer(name)),
        _rate(way.up / way.step),
        _rate(way.cpu / way.step),
        "" if way.predicted is None else _milliseconds(way.predicted),
        "" if error is None else f"{100 * error:+.0f} %",
        f"{classical.token / way.token:.2f}x" if beside else "",
        f"{classical.step / way.step:.2f}x" if beside else "",
    ]


def _spread(times: list[float]) -> str:
    return f"±{50 * (max(times) - min(times)) / statistics.median(times):.0f} %"


def _rate(value: float) -> str:
    return f"{1e-9 * value:.0f} GB/s" if value >= 0.5e9 else ""


def _verdicts(goals: list[Goal]) -> Text:
    missed = sum(not goal.met for goal in goals)
    met = len(goals) - missed
    text = Text(f"{met} met" if met else "", style="green")
    if missed:
        text.append(f"{', ' if met else ''}{missed} missed", style="bold red")
    return text


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def long_lines(long: LongRun) -> list[str]:
    """Return what the long run found."""
    limit = long.gpu_limit / 2**30

    def foretold(seconds: float | None, found: float, unit: float, name: str) -> str:
        return (
            ""
            if seconds is None
            else f" (foretold: {unit * seconds:.1f} {name}, {100 * (seconds / found - 1):+.0f} %)"
        )

    peaks = {name: value / 2**30 for name, value in long.peaks.items()}
    layers = [
        f"{long.plan['placement'].count(place)} {place}" for place in dict.fromkeys(long.plan["placement"])
    ]
    return [
        f"{long.model}, {long.context} tokens, CuPy's pool held to {limit:g} GiB",
        f"without cooperation: refused: {long.refused}",
        f"with cooperation: layers: {', '.join(layers)}; prefill {long.prefill:.1f} s"
        + foretold(long.predicted_prefill, long.prefill, 1.0, "s")
        + f", then {len(long.tokens)} tokens, {1e3 * long.token:.1f} ms each (median, "
        + f"{1e3 * min(long.tokens):.1f} - {1e3 * max(long.tokens):.1f})"
        + foretold(long.predicted_token, long.token, 1e3, "ms"),
        f"most memory: {peaks['pool_used']:.1f} GiB in arrays on the GPU, {peaks['pool_total']:.1f} held by "
        f"the pool, {peaks['gpu_used']:.1f} in use on the GPU in all, {peaks['host']:.1f} GiB of host memory "
        "resident",
    ]
