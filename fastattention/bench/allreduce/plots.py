"""A figure: the speedup of each case over in sequence, by way, the formula's marked."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .results import Run

__all__ = ["draw", "speedups"]

# Okabe and Ito's palette, and hatches that say the same without colour. The ground is white on any page.
_STYLES = {
    "n = 2": ("#56B4E9", ""), "n = 4": ("#0072B2", "//"), "n = 8": ("#CC79A7", ".."),
    "chosen": ("#009E73", ""), "projection": ("#E69F00", "\\\\"),
}  # fmt: skip
_INK = "#000000"


def draw(run: Run, path: Path) -> list[Path]:
    """Draw the figure beside the JSON file `path`; return its path."""
    if not run.rows:
        return []
    target = path.with_suffix(".png")
    FigureCanvasAgg(speedups(run)).print_figure(target, dpi=144)
    return [target]


def speedups(run: Run) -> Figure:
    """Plot bars of each case; a line across marks what the formula promises."""
    figure = Figure(figsize=(7, 1.4 + 0.75 * len(run.rows)), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    height = 0.85 / len(_STYLES)
    for number, (name, (colour, hatch)) in enumerate(_STYLES.items()):
        label = "projection alone, plain streams" if name == "projection" else name
        values = [
            row.streams if name == "projection" else row.speedup(row.chosen if name == "chosen" else name)
            for row in run.rows
        ]
        places = [place - 0.425 + height * (number + 0.5) for place in range(len(run.rows))]
        axes.barh(
            places, values, height, color=colour, hatch=hatch, edgecolor=_INK, linewidth=0.4, label=label
        )
    for place, row in enumerate(run.rows):
        label = "_" if place else "formula, best blocks"  # the legend leaves out what begins so
        axes.vlines(
            row.formula_speedup, place - 0.45, place + 0.45, color="#D55E00", linewidth=2, label=label
        )
    axes.axvline(1, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(run.rows)), [row.case.name for row in run.rows], fontsize=7)
    axes.set_ylim(len(run.rows) - 0.5, -0.5)
    axes.set_xlabel("times as fast as in sequence")
    where = run.environment
    axes.set_title(f"{where['ranks']} ranks, {where.get('gpu', where['cpu'])}, {run.date[:10]}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure
