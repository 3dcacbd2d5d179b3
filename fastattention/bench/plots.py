"""Two figures of a run: a roofline, and bars of every case against its limit and the peers."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .results import Row, Run

__all__ = ["draw"]

# Okabe and Ito's palette: told apart with any kind of colour vision. Markers and hatches say the same without
# colour.
_BLUE, _ORANGE, _GREEN, _PURPLE, _BLACK, _SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#000000",
    "#56B4E9",
)
_DTYPE = {
    "float32": (_BLUE, "o"),
    "bfloat16": (_ORANGE, "s"),
    "float16": (_GREEN, "^"),
    "int8": (_PURPLE, "D"),
}
_PEERS = {"PyTorch": (_ORANGE, "//"), "ONNX Runtime": (_GREEN, "\\\\"), "OpenVINO": (_PURPLE, "..")}


def draw(run: Run, path: Path) -> list[Path]:
    """Draw the figures beside the JSON file `path`; return their paths.

    Parameters
    ----------
    run : Run
        With at least one row.
    path : Path
        ``x.json`` gives ``x-roofline.png`` and ``x-bars.png``.
    """
    written = []
    for name, figure in (("roofline", roofline(run)), ("bars", bars(run))):
        target = path.with_name(f"{path.stem}-{name}.png")
        FigureCanvasAgg(figure).print_figure(target, dpi=144)
        written.append(target)
    return written


def _caption(run: Run) -> str:
    environment = run.environment
    return f"{environment['cpu']}, {environment['isa']}, {run.date[:10]}"


def roofline(run: Run) -> Figure:
    """Plot useful GFLOP/s of the one-thread rows over useful FLOPs a byte, under the measured limits.

    Bytes are queries, keys, values and output, each moved once. Rows on other numbers of threads have other
    limits and are left out; a run that has nothing else shows those instead.
    """
    threads = min(row.case.threads for row in run.rows)
    rows = [row for row in run.rows if row.case.threads == threads]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    intensities = [row.useful_flops / row.case.moved_bytes for row in rows]
    left, right = min(intensities) / 2, max(intensities) * 2
    _roofs(axes, run, rows, threads, left, right)
    for dtype, (colour, marker) in _DTYPE.items():
        chosen = [(x, row) for x, row in zip(intensities, rows, strict=True) if row.case.dtype == dtype]
        if chosen:
            axes.plot(
                [x for x, _ in chosen],
                [row.useful_flops / row.median * 1e-9 for _, row in chosen],
                marker,
                color=colour,
                markersize=8,
                markeredgecolor=_BLACK,
                linestyle="none",
                label=dtype,
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(left, right),
        xlabel="useful FLOPs per byte",
        ylabel="useful GFLOP/s",
    )
    plural = "s" if threads > 1 else ""
    axes.set_title(f"Roofline, {threads} thread{plural}\n{_caption(run)}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _roofs(axes: Axes, run: Run, rows: list[Row], threads: int, left: float, right: float) -> None:
    reads = [row.limit for row in rows if row.limit_name == "read"]
    surveys = [limits for limits in run.probes if limits.threads == threads]
    peaks = {
        "float32 multiply-add": [limits.fma_gflops for limits in surveys],
        "bf16 dot": [limits.bf16_dot_gflops for limits in surveys],
        "AMX bf16": [limits.amx_bf16_gflops for limits in surveys],
    }
    for row in rows:  # what the rows saw counts too
        if row.case.kind == "prefill":
            peaks[row.limit_name if row.limit_name in peaks else "float32 multiply-add"].extend(row.limits)
    read = statistics.median(reads) if reads else None
    for (name, values), style in zip(peaks.items(), ("-", "--", ":"), strict=True):
        peak = statistics.median(values) if values else 0.0
        if not peak:
            continue
        start = peak / read if read else left
        axes.plot([max(start, left), right], [peak, peak], style, color=_BLACK, linewidth=1.2)
        axes.annotate(
            f"{name} {peak:.0f} GFLOP/s",
            (right, peak),
            (-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    if read:
        top = max((statistics.median(values) for values in peaks.values() if values), default=right * read)
        stop = min(top / read, right)
        axes.plot([left, stop], [left * read, stop * read], "-", color=_BLACK, linewidth=1.2)
        axes.annotate(
            f"read {read:.1f} GB/s",
            (left, left * read),
            (6, 0),
            textcoords="offset points",
            va="top",
            fontsize=8,
        )


def bars(run: Run) -> Figure:
    """Plot each row's rate, and the peers', in percent of the row's limit; ticks mark the targets.

    Prefill on the left, decode on the right.
    """
    names = list(dict.fromkeys(name for row in run.rows for name, peer in row.peers.items() if peer.rounds))
    series = 1 + len(names)
    kinds = [[row for row in run.rows if row.case.kind == kind] for kind in ("prefill", "decode")]
    kinds = [rows for rows in kinds if rows]
    tallest = max(len(rows) for rows in kinds)
    figure = Figure(figsize=(8 * len(kinds), 1.6 + 0.13 * (series + 1) * tallest), layout="constrained")
    for place, rows in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        _bars(axes, rows, names)
    figure.suptitle(_caption(run), fontsize=10)
    shown: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(shown.values()), list(shown), loc="outside lower center", ncols=min(series + 2, 6), fontsize=8
    )
    return figure


def _bars(axes: Axes, rows: list[Row], names: list[str]) -> None:
    height = 0.8 / (1 + len(names))
    prefill = rows[0].case.kind == "prefill"
    for number, name in enumerate([None, *names]):
        colour, hatch = (_BLUE, "") if name is None else _PEERS.get(name, (_SKY, "xx"))
        places, widths = [], []
        for place, row in enumerate(rows):
            percent = row.percent if name is None else row.peer_percent(name)
            if percent is not None:
                places.append(place + number * height - 0.4 + height / 2)
                widths.append(percent)
        axes.barh(
            places,
            widths,
            height,
            color=colour,
            hatch=hatch,
            edgecolor=_BLACK,
            linewidth=0.4,
            label=name or "ours",
        )
    axes.hlines(
        [place - 0.4 + height / 2 for place in range(len(rows))],
        [row.percent_range[0] for row in rows],
        [row.percent_range[1] for row in rows],
        color=_BLACK,
        linewidth=1.2,
        label="ours, worst to best round",
    )
    marks = [(place, row.target) for place, row in enumerate(rows) if row.target is not None]
    for index, (place, goal) in enumerate(marks):
        label = "_" if index else "target"  # the legend leaves out what begins so
        axes.vlines(goal, place - 0.45, place - 0.35 + height, color="#D55E00", linewidth=2.5, label=label)
    axes.set_yticks(range(len(rows)), [row.case.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(100, color=_BLACK, linewidth=0.8)
    axes.set_xlabel(
        f"percent of the measured limit ({'useful FLOPs' if prefill else 'bytes of keys and values'})"
    )
    axes.grid(axis="x", alpha=0.3)
