"""Two figures of a run on a GPU: prefill's rate for each shape, decode's bandwidth for each cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .results import Row, Run

__all__ = ["draw"]

# Okabe and Ito's palette, and hatches that say the same without colour. The ground is white on any page.
_STYLES = {
    "atom 80": ("#0072B2", ""),
    "atom 75": ("#56B4E9", ""),
    "atom 70": ("#CC79A7", ""),
    "CUDA cores": ("#0072B2", ""),
    "memory-efficient": ("#E69F00", "//"),
    "flash": ("#009E73", "\\\\"),
    "PyTorch": ("#E69F00", "//"),
    "PyTorch, heads as rows": ("#009E73", "\\\\"),
}
_OTHER = ("#999999", "xx")
_INK = "#000000"


def draw(run: Run, path: Path) -> list[Path]:
    """Draw the figures beside the JSON file `path`; return their paths.

    Parameters
    ----------
    run : Run
    path : Path
        ``x.json`` gives ``x-prefill.png`` and ``x-decode.png``, for what the run has rows of.
    """
    written = []
    for kind, label in (("prefill", "useful TFLOP/s"), ("decode", "GB/s of keys, values and scales")):
        rows = [row for row in run.rows if row.case.kind == kind and row.ours]
        if rows:
            target = path.with_name(f"{path.stem}-{kind}.png")
            FigureCanvasAgg(bars(run, rows, label)).print_figure(target, dpi=144)
            written.append(target)
    return written


def bars(run: Run, rows: Sequence[Row], label: str) -> Figure:
    """Plot everybody's rate in each row; a line marks the limit of our own kernel.

    Prefill has what is full on the left and what is causal on the right, decode single sequences and batches.
    """
    names = list(
        dict.fromkeys(name for row in rows for name, who in row.contenders.items() if who.status == "ok")
    )
    panels: list[list[Row]] = [[], []]
    for row in rows:
        panels[row.case.causal if row.case.kind == "prefill" else row.case.batch > 1].append(row)
    panels = [panel for panel in panels if panel]
    tallest = max(len(panel) for panel in panels)
    figure = Figure(
        figsize=(7 * len(panels), 1.6 + 0.11 * (len(names) + 1) * tallest),
        layout="constrained",
        facecolor="white",
    )
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        _bars(axes, panel, names)
        axes.set_yticks(range(len(panel)), [row.case.name.partition("/")[2] for row in panel], fontsize=7)
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{run.environment['gpu']}, {run.date[:10]}", fontsize=10)
    shown: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(shown.values()), list(shown), loc="outside lower center", ncols=min(len(shown), 4), fontsize=8
    )
    return figure


def _bars(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        colour, hatch = _STYLES.get(name, _OTHER)
        timed = [
            (place, row) for place, row in enumerate(rows)
            if name in row.contenders and row.contenders[name].status == "ok"
        ]  # fmt: skip
        if not timed:
            continue
        emulated = any(row.contenders[name].emulated for _, row in timed)
        axes.barh(
            [place + (number + 0.5) * height - 0.4 for place, _ in timed],
            [row.rate(name) for _, row in timed],
            height, color=colour, hatch=hatch, edgecolor=_INK, linewidth=0.4,
            label=name + ", emulated on this card" * emulated,
        )  # fmt: skip
    places, limits = [], []
    for place, row in enumerate(rows):
        limit = row.contenders[row.ours[0]].limit
        if limit is not None and row.limits.get(limit):
            places.append(place)
            limits.append(sorted(row.limits[limit])[len(row.limits[limit]) // 2])
    axes.vlines(
        limits, [place - 0.45 for place in places], [place + 0.45 for place in places],
        color="#D55E00", linewidth=2, label="limit of the card's own kernel",
    )  # fmt: skip
