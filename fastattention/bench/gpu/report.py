"""The tables a run on a GPU ends with."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...gpu.rates import LIMITS
from ..results import Goal
from .results import GRAPH, LAUNCHES, Contender, Row, Run

__all__ = ["WIDTH", "print_report", "tables"]

#: Columns that every table fits.
WIDTH = 126

# Headings of peers with long names.
_SHORT = {"memory-efficient": "mem-eff.", "PyTorch, heads as rows": "as rows"}

#: Limits that differ by more than this between start and end, or within a row, are worth a warning.
_DRIFT = 0.05

_TITLES = {
    "prefill": "Prefill: as many queries as keys, 16384 tokens in all where it is no longer",
    "decode": "Decode: one query a head",
}


_READING = (
    "ms: a call replayed from a CUDA graph, the GPU's own time. launched: the same calls, one launch after "
    "another, with what Python and the launches cost. TFLOP/s count visible pairs, 4 D operations each; GB/s "
    "keys, values and scales, each byte once. Of limit: in percent of the kernel's own instruction from "
    "registers, or of copying memory, in the same rounds, ± half the way from the worst round to the best. "
    "2.00x: it takes twice our time, from graphs on both sides. mem-eff., flash: PyTorch's backends. "
    "as rows: PyTorch, the query heads of a KV head given as rows of one head. Caches of decode take turns, "
    "so that none is read from the L2. Outputs were compared with float64 before anything was timed."
)


def print_report(run: Run, console: Console) -> None:
    """Print the GPU, its limits, a line for each kernel of each case, and what must be known to read them."""
    console.width = max(WIDTH, console.width)  # in a narrower window lines wrap, and nothing is cut off
    say = _sayer(console)
    for line in heading(run):
        say(line)
    say("")
    console.print(_limits_table(run), crop=False)
    say("")
    notes: list[str] = []
    for table in tables(run, notes):
        console.print(table, crop=False)
        say("")
    for number, note in enumerate(notes, 1):
        say(f"[{number}] {note}")
    _print_summary(run, console)


def _sayer(console: Console) -> Callable[..., None]:
    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    return say


def heading(run: Run) -> list[str]:
    """Return what the GPU is, and the versions of everything."""
    where = run.environment
    capability = ".".join(map(str, where["compute_capability"]))
    lines = [
        f"{where['gpu']}, compute capability {capability}, {where['sms']} SMs, "
        f"{where['memory_bytes'] / 2**30:.0f} GiB, L2 {where['l2_bytes'] / 2**20:.0f} MiB, {run.date}",
        f"driver {where['driver']}, for CUDA {_cuda(where['cuda_driver'])}; CuPy's CUDA "
        f"{_cuda(where['cuda_runtime'])}",
        ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
    ]
    lines += [f"{name}: {why}; no figures of it" for name, why in where["absent_peers"].items()]
    for clocks in where["clocks"]:
        lines.append(", ".join(f"{key} {value}" for key, value in clocks.items()))
    if run.compiled:
        lines.append(f"{run.compiled['kernels']:.0f} kernels compiled in {run.compiled['seconds']:.1f} s")
    return lines


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for heading_ in headings:
        left = heading_ in ("case", "kernel", "target", "limit", "")
        table.add_column(heading_, justify="left" if left else "right", no_wrap=True)
    return table


def _limits_table(run: Run) -> Table:
    table = _table("Limits of this card", "limit", "start", "end", "unit", "")
    capability = tuple(run.environment["compute_capability"])
    for name, values in run.limits.items():
        instruction = LIMITS.get(name)
        emulated = instruction is not None and instruction.emulated(capability)
        unit = "GB/s, read and written" if name == "copy" else "TFLOP/s"
        note = "emulated on this card" if emulated else ""
        table.add_row(name, f"{values[0]:.1f}", f"{values[-1]:.1f}", unit, note)
    return table


def tables(run: Run, notes: list[str]) -> Iterator[Table]:
    """Yield the tables of a run.

    Parameters
    ----------
    run : Run
    notes : list of str
        What the tables' [1], [2], ... refer to is added here.
    """
    for kind, title in _TITLES.items():
        rows = [row for row in run.rows if row.case.kind == kind and row.ours]
        if not rows:
            continue
        peers = list(dict.fromkeys(name for row in rows for name in row.peers))
        headings = ["case", "kernel", "ms", "launched", rows[0].unit, "of limit"]
        table = _table(title, *headings, *(_SHORT.get(peer, peer) for peer in peers), "target")
        for row in rows:
            for place, name in enumerate(row.ours):
                goals = [goal for goal in run.goals if goal.row == f"{row.case.name} {name}"]
                case = "" if place else row.case.name.partition("/")[2]
                table.add_row(case, *_cells(row, name, peers, notes), _verdicts(goals))
        yield table


def _cells(row: Row, name: str, peers: list[str], notes: list[str]) -> list[str]:
    who = row.contenders[name]
    rounds = row.percent_rounds(name)
    label = name + " emulated" * who.emulated
    if who.not_captured:
        label += _note(notes, f"{name}: launched one by one, no graph: {who.not_captured}")
    graph = _milliseconds(row.seconds(name, GRAPH)) if who.graph else "-"
    return [
        label,
        graph,
        _milliseconds(row.seconds(name, LAUNCHES)),
        f"{row.rate(name):.0f}" if row.rate(name) >= 100 else f"{row.rate(name):.1f}",
        f"{statistics.median(rounds):.0f} ±{(max(rounds) - min(rounds)) / 2:.0f} %",
        *(_peer(row, name, peer, notes) for peer in peers),
    ]


def _peer(row: Row, name: str, peer: str, notes: list[str]) -> str:
    who: Contender | None = row.contenders.get(peer)
    if who is None:
        return ""
    ratio = row.ratio(name, peer)
    if ratio is None:
        return ("wrong" if who.status == "failed" else "none") + _note(notes, f"{peer}: {who.detail}")
    text = f"{ratio:.2f}x"
    if who.not_captured:
        text += _note(notes, f"{peer}: launched one by one, no graph: {who.not_captured}")
    return text


def _note(notes: list[str], text: str) -> str:
    if text not in notes:
        notes.append(text)
    return f" [{notes.index(text) + 1}]"


def _verdicts(goals: list[Goal]) -> Text:
    text = Text()
    for goal in goals:
        text.append(", " if text else "")
        word, style = ("met", "green") if goal.met else ("missed", "bold red")
        bound = goal.text.partition(" ")[0] if goal.kind == "peers" else goal.text
        text.append(f"{bound} {word}", style=style)
    return text


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 4}f}"


def drift(run: Run) -> dict[str, tuple[float, float, float]]:
    """Return smallest, median and largest value of each limit, over the whole run."""
    values = {name: list(found) for name, found in run.limits.items()}
    for row in run.rows:
        for name, found in row.limits.items():
            values.setdefault(name, []).extend(found)
    return {name: (min(found), statistics.median(found), max(found)) for name, found in values.items()}


def _print_summary(run: Run, console: Console) -> None:
    say = _sayer(console)
    for why in dict.fromkeys(run.left_out.values()):
        names = [name for name, reason in run.left_out.items() if reason == why]
        say(f"Left out: {', '.join(names)}: {why}", "yellow")
    missed = [goal for goal in run.goals if not goal.met]
    if run.goals:
        style = "bold red" if missed else "bold green"
        say(f"Targets: {len(run.goals) - len(missed)} of {len(run.goals)} met.", style)
    for goal in missed:
        say(f"Missed: {goal.row}: {goal.found}; target {goal.text}")
    say(_READING)
    for name, (low, median, high) in drift(run).items():
        unit = "GB/s" if name == "copy" else "TFLOP/s"
        text = f"Limit: {name}: {low:.1f} - {high:.1f}, median {median:.1f} {unit}"
        say(text, "yellow" if high - low > 2 * _DRIFT * median else "")
