"""The table and the figure of a climb."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from .ladder import Climb

__all__ = ["draw", "print_table"]

# Okabe and Ito's palette, told apart with any kind of colour vision; the hatch says the same without colour.
_FULL, _CAUSAL, _PEAK = "#0072B2", "#E69F00", "#000000"

#: Columns from which the idea of each step fits beside its figures.
_WIDE = 124


def _head_dims(climb: Climb) -> list[int]:
    return sorted({row.case.head_dim for row in climb.record.rows})


def print_table(climb: Climb, console: Console) -> None:
    """Print the machine, a table for each head_dim, and what has to be known to read them."""
    record = climb.record

    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    environment = record.environment
    say(f"{environment['cpu']}, {environment['isa']}, {environment['compiler']}, {record.date}")
    for head_dim in _head_dims(climb):
        say("")
        console.print(_table(climb, head_dim, wide=console.width >= _WIDE))
    say("")
    for name, why in record.failures.items():
        say(f"WRONG, not timed: {name}: {why}", "bold red")
    for threads in sorted({row.case.threads for row in record.rows}):
        plural = "s" if threads > 1 else ""
        say(f"Peak: {environment['isa']}, {threads} thread{plural}: {climb.peak(threads):.0f} GFLOP/s")
    say(
        "GFLOP/s count visible pairs only, 4 head_dim each. Of peak: of what multiply-adds alone reached on "
        "the same cores just before and after, median of the rounds. Gain: over the step before, by these "
        "percents, times what more threads add to the peak. Rows: heads times queries, with as many keys; a "
        "head for each thread, and fewer rows for the first steps, which are slow."
    )


def _table(climb: Climb, head_dim: int, *, wide: bool) -> Table:
    table = Table(
        title=f"head_dim {head_dim}", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("step", no_wrap=True)
    if wide:
        table.add_column("idea", no_wrap=True)
    table.add_column("rows", justify="right")
    for visibility in ("full", "causal"):
        for heading in (f"{visibility}\nGFLOP/s", "of\npeak", "gain"):
            table.add_column(heading, justify="right", no_wrap=True)
    for step in sorted(set(climb.steps)):
        rows = {causal: climb.row(step, head_dim, causal) for causal in (False, True)}
        lengths = {f"{row.case.q_heads}x{row.case.q_len}" for row in rows.values() if row}
        cells = [step.name, *([step.idea] if wide else []), ", ".join(sorted(lengths))]
        for causal, row in rows.items():
            if row is None:
                cells += ["", "", ""]
                continue
            gain = climb.gain(step, head_dim, causal)
            cells += [
                f"{row.rate:.1f}",
                f"{row.percent:.1f} %",
                "" if gain is None else f"{gain:.2f}x",
            ]
        table.add_row(*cells)
    return table


def draw(climb: Climb, path: Path) -> Path:
    """Draw the figure beside the JSON file `path`: ``x.json`` gives ``x.png``. Return its path."""
    target = path.with_suffix(".png")
    # An opaque white ground, so that it can be read on a dark page too.
    FigureCanvasAgg(figure(climb)).print_figure(target, dpi=144, facecolor="white")
    return target


def figure(climb: Climb) -> Figure:
    """Plot GFLOP/s of each step on a logarithmic axis, where equal gains have equal lengths."""
    head_dims = _head_dims(climb)
    steps = sorted(set(climb.steps))
    drawing = Figure(figsize=(5.2 * len(head_dims) + 1, 1.6 + 0.42 * len(steps)), layout="constrained")
    panels = drawing.subplots(1, len(head_dims), squeeze=False, sharey=True, sharex=True)[0]
    for axes, head_dim in zip(panels, head_dims, strict=True):
        _panel(axes, climb, head_dim)
    panels[0].set_yticks(range(len(steps)), [step.name for step in steps])
    panels[0].invert_yaxis()
    environment = climb.record.environment
    drawing.suptitle(f"{environment['cpu']}, {environment['isa']}, {climb.record.date[:10]}", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    return drawing


def _panel(axes: Axes, climb: Climb, head_dim: int) -> None:
    steps = sorted(set(climb.steps))
    for causal, colour, hatch, shift in ((False, _FULL, "", -0.2), (True, _CAUSAL, "//", 0.2)):
        found = [(place, climb.row(step, head_dim, causal)) for place, step in enumerate(steps)]
        bars = [(place + shift, row) for place, row in found if row]
        axes.barh(
            [place for place, _ in bars],
            [row.rate for _, row in bars],
            0.4,
            color=colour,
            hatch=hatch,
            edgecolor=_PEAK,
            linewidth=0.4,
            label="causal" if causal else "full",
        )
        for place, row in bars:
            text = f"{row.rate:.{0 if row.rate >= 100 else 1}f} ({row.percent:.0f} %)"
            axes.annotate(
                text,
                (row.rate, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    threads = sorted({row.case.threads for row in climb.record.rows if row.case.head_dim == head_dim})
    for number, style in zip(threads, ("-", "--"), strict=False):
        plural = "s" if number > 1 else ""
        axes.axvline(
            climb.peak(number),
            color=_PEAK,
            linestyle=style,
            linewidth=1.2,
            label=f"multiply-adds alone, {number} thread{plural}",
        )
    axes.set(xscale="log", xlabel="useful GFLOP/s", title=f"head_dim {head_dim}")
    slowest = min(row.rate for row in climb.record.rows)
    axes.set_xlim(slowest / 2, 5 * climb.peak(threads[-1]))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
