"""Drawings of an NPU's time, from the model in ``reference.ascend``: no bar is placed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from book_figures import BLUE, GREEN, INK, ORANGE, PINK, RED, SKY, YELLOW
from fastattention.reference.ascend.pipeline import Timeline
from fastattention.reference.ascend.sweep import Sensitivity
from matplotlib.figure import Figure

#: The units of a core and its Vector cores, along the way of the data.
UNITS = ("MTE2", "MTE1", "Cube", "FIX", "MTE2v", "Vector", "MTE3v")
_NAMES = {
    "MTE2": "L2 → L1",
    "MTE1": "L1 → L0",
    "Cube": "Cube",
    "FIX": "L0C → L2",
    "MTE2v": "L2 → UB",
    "Vector": "Vector",
    "MTE3v": "UB → L2",
}
#: What a task is for, by a word in its name; the first that fits.
_COLOURS = (
    ("P V", GREEN), ("Q K^T", BLUE), ("softmax", ORANGE), ("rescale", PINK), (" out", PINK), ("divide", PINK),
    (" S", SKY), (" O", PINK), ("P", YELLOW), ("V", GREEN), ("K", BLUE), ("Q", BLUE),
)  # fmt: skip


def gantt(
    timelines: Sequence[tuple[str, Timeline]], *, until: int | None = None, clock_hz: float = 1.8e9
) -> tuple[Figure, str]:
    """Draw what each unit does when, one panel a timeline on one scale; the caption says how busy.

    Parameters
    ----------
    timelines : sequence of (str, Timeline)
        Title and ``pipeline.Engine.timeline(...)`` of each.
    until : int, optional
        Cycles to show; to the end of the longest by default. Shares are of the whole timeline all the same.
    clock_hz : float
        Turns cycles into microseconds.
    """
    end = max(timeline.end for _, timeline in timelines) if until is None else until
    micro = 1e6 / clock_hz
    figure, panels = plt.subplots(
        len(timelines),
        1,
        figsize=(7.4, 2.1 * len(timelines)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    words = []
    for axes, (title, timeline) in zip(panels[:, 0], timelines, strict=True):
        for row, unit in enumerate(UNITS):
            spans = [span for span in timeline.spans if span.unit == unit and span.start < end]
            for colour in dict.fromkeys(_colour(span.name) for span in spans):
                bars = [
                    (span.start * micro, (min(span.end, end) - span.start) * micro)
                    for span in spans
                    if _colour(span.name) == colour
                ]
                axes.broken_barh(bars, (row - 0.4, 0.8), facecolor=colour, edgecolor=INK, linewidth=0.15)
        axes.set(ylim=(len(UNITS) - 0.5, -0.5), xlim=(0, end * micro), title=title)
        axes.title.set_fontsize(10)
        axes.set_yticks(range(len(UNITS)), [_NAMES[unit] for unit in UNITS])
        axes.tick_params(length=2, labelsize=8)
        shares = {
            unit: sum(span.end - span.start for span in timeline.spans if span.unit == unit) / timeline.end
            for unit in ("Cube", "Vector")
        }
        words.append(
            f"{title}: {timeline.end * micro:.1f} µs, the Cube works {shares['Cube']:.0%} of it, "
            f"the Vector core {shares['Vector']:.0%}"
        )
    panels[-1, 0].set_xlabel("µs of the model")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (BLUE, SKY, ORANGE, YELLOW, GREEN, PINK)
    ]
    figure.legend(
        handles, ["Q Kᵀ", "S", "softmax", "P", "P V", "O"], loc="outside lower center", ncols=6, fontsize=8
    )
    plt.close(figure)
    return figure, ". ".join(words) + "."


def tornado(rows: Sequence[Sensitivity], base: float, *, most: int = 12) -> tuple[Figure, str]:
    """Draw what halving and doubling each parameter does to the speedup; assumed ones are marked."""
    rows = list(rows)[:most]
    figure, axes = plt.subplots(figsize=(6.4, 0.28 * len(rows) + 0.9), layout="constrained")
    for i, row in enumerate(rows):
        for value, colour, label in ((row.halved, RED, "halved"), (row.doubled, BLUE, "doubled")):
            shift = -0.19 if label == "halved" else 0.19
            axes.barh(
                i + shift, value - base, left=base, height=0.34, color=colour, label=label if i == 0 else None
            )
    axes.axvline(base, color=INK, linewidth=0.8)
    names = [row.parameter + (" (assumed)" if row.source == "assumed" else "") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as standard attention, in the model")
    axes.legend(fontsize=8)
    plt.close(figure)
    ends = "; ".join(f"{row.parameter} {row.halved:.1f} and {row.doubled:.1f}" for row in rows[:3])
    return figure, f"The speedup, {base:.1f}, with each parameter halved and doubled: {ends}."


def _colour(name: str) -> str:
    return next(colour for word, colour in _COLOURS if word in name)
