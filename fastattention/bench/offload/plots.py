"""Figures: milliseconds a token by way, predictions marked, and memory over the time of the long run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .cases import WAYS
from .results import LongRun, Row, Run

__all__ = ["draw", "memory", "tokens"]

# Okabe and Ito's palette, and hatches that say the same without colour. The ground is white on any page.
_STYLES = {
    "all-GPU": ("#999999", ""),
    "classical": ("#E69F00", "//"),
    "cooperative": ("#0072B2", ""),
    "split": ("#009E73", "\\\\"),
    "transformers": ("#CC79A7", "xx"),
}
_INK = "#000000"
_LINES = {
    "pool_used": ("arrays on the GPU", "#0072B2", "-"),
    "pool_total": ("held by CuPy's pool", "#56B4E9", "--"),
    "gpu_used": ("in use on the GPU in all", "#D55E00", "-."),
    "host": ("host memory of the process", "#009E73", "-"),
}


def draw(run: Run, path: Path) -> list[Path]:
    """Draw the figures beside the JSON file `path`, as PNG and SVG; return their paths."""
    written = []
    rows = [row for row in run.rows if any(way.status == "ok" for way in row.ways.values())]
    figures = {"tokens": tokens(run, rows)} if rows else {}
    if run.long is not None and run.long.samples:
        figures["memory"] = memory(run, run.long)
    for name, figure in figures.items():
        for canvas, ending in ((FigureCanvasAgg(figure), "png"), (FigureCanvasSVG(figure), "svg")):
            target = path.with_name(f"{path.stem}-{name}.{ending}")
            canvas.print_figure(target, dpi=144)
            written.append(target)
    return written


def tokens(run: Run, rows: list[Row]) -> Figure:
    """Plot milliseconds a token, a panel for each case; a line across marks what the planner foretold."""
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3.7 * columns, 0.9 + 2.3 * lines), layout="constrained", facecolor="white")
    for place, row in enumerate(rows):
        axes = figure.add_subplot(lines, columns, place + 1)
        bars = [(name, row.ways[name].token, row.ways[name].predicted) for name in WAYS if row.done(name)]
        if row.peer_token is not None:
            bars.append(("transformers", row.peer_token, None))
        for height, (name, seconds, predicted) in enumerate(bars):
            colour, hatch = _STYLES[name]
            axes.barh(height, 1e3 * seconds, 0.7, color=colour, hatch=hatch, edgecolor=_INK, linewidth=0.4)
            axes.text(1e3 * seconds, height, f" {_number(1e3 * seconds)}", va="center", fontsize=7)
            if predicted is not None:
                axes.vlines(1e3 * predicted, height - 0.45, height + 0.45, color="#D55E00", linewidth=2)
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        if row.peer_token is not None:  # some twenty times the others
            axes.set_xscale("log")
        axes.tick_params(axis="x", labelsize=7)
        case = row.case
        axes.set_title(
            f"{case.model}, {case.layers} layers, {case.context // 1024}K tokens, batch {case.batch}",
            fontsize=8,
        )
    figure.supxlabel("ms a token; the line across a bar: what the planner foretold", fontsize=8)
    figure.suptitle(f"{run.environment['gpu']}, {run.date[:10]}", fontsize=9)
    return figure


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def memory(run: Run, long: LongRun) -> Figure:
    """Plot memory and tokens done over the time of the long run; the GPU's limit is a line."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained", facecolor="white")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    seconds = [sample.seconds for sample in long.samples]
    for name, (label, colour, style) in _LINES.items():
        values = [getattr(sample, name) / 2**30 for sample in long.samples]
        axes.plot(seconds, values, style, color=colour, label=label)
    axes.axhline(long.gpu_limit / 2**30, color=_INK, linewidth=0.8, label="limit of CuPy's pool")
    changes = [0, *(n for n, (a, b) in enumerate(pairwise(long.samples), 1) if a.phase != b.phase)]
    for at in changes:
        for panel in (axes, below):
            panel.axvline(seconds[at], color=_INK, linewidth=0.5, linestyle=":")
        axes.annotate(
            long.samples[at].phase, (seconds[at], 1.0), xycoords=("data", "axes fraction"), fontsize=7,
            xytext=(2, 2), textcoords="offset points", rotation=30,
        )  # fmt: skip
    axes.set_ylabel("GiB")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=7, ncols=3)
    below.plot(seconds, [sample.tokens / 1024 for sample in long.samples], color="#0072B2")
    below.set(xlabel="seconds", ylabel="K tokens done")
    figure.suptitle(
        f"{long.model}, {long.context // 1024}K tokens, {run.environment['gpu']}, {run.date[:10]}", fontsize=9
    )
    return figure
