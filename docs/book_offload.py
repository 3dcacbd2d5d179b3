"""What ``fastattention bench --offload`` measured, for the book: figures come from its files alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from book_figures import BLUE, GREEN, INK, ORANGE, PINK, RED, SKY
from matplotlib.figure import Figure

from fastattention.bench.offload.results import Row, Run, load

RESULTS = Path(__file__).resolve().parent.parent / "results"

_COLOURS = {"classical": ORANGE, "cooperative": BLUE, "split": GREEN}


def newest(folder: Path = RESULTS, *, long: bool = False) -> Run | None:
    """Return the newest run of cases, or of a long context; None where nothing was measured."""
    runs = [load(path) for path in sorted(folder.glob("offload-*.json"))]
    wanted = [run for run in runs if (run.long is not None if long else run.rows)]
    return max(wanted, key=lambda run: run.date, default=None)


def where(run: Run) -> str:
    """Return which machine it was, and when."""
    host = run.environment
    return f"{host['gpu']}, {host['threads']} threads of its host, {run.date[:10]}"


def limits(run: Run) -> str:
    """Return what the machine did at most, as Markdown."""
    lines = ["| limit | at the start | at the end |", "| --- | ---: | ---: |"]
    for name, values in run.limits.items():
        unit = "µs" if name == "trip" else "GB/s"
        lines.append(f"| {name} | {values[0]:,.0f} {unit} | {values[-1]:,.0f} {unit} |")
    return "\n".join(lines)


def table(run: Run) -> str:
    """Return a line for each case and way, as Markdown."""
    lines = [
        "| case | way | ms a token | ms a layer | classical's time, a token | a layer | foretold off by |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in run.rows:
        head = f"**{name(row)}**"  # once: the rows below are of the same case
        for way, found in row.ways.items():
            if found.status != "ok":
                lines.append(f"| {head} | {way}: {found.detail} | | | | | |")
                head = ""
                continue
            times = ["", ""]
            if row.done("classical") and way in ("cooperative", "split"):
                classical = row.ways["classical"]
                times = [f"{classical.token / found.token:.2f}×", f"{classical.step / found.step:.2f}×"]
            error = found.prediction_error
            lines.append(
                f"| {head} | {way} | {1e3 * found.token:.1f} | {1e3 * row.layer(way):.2f} | "
                f"{times[0]} | {times[1]} | {'' if error is None else f'{100 * error:+.0f} %'} |"
            )
            head = ""
        if row.peer_token is not None:
            lines.append(f"| | transformers, its fastest token | {1e3 * row.peer_token:.1f} | | | | |")
    return "\n".join(lines)


def name(row: Row) -> str:
    """Return a case in a few words."""
    case = row.case
    return f"{case.model}, {case.layers} layers, {case.context // 1024}K tokens, batch {case.batch}"


def speedups(run: Run) -> tuple[Figure, str]:
    """Return bars of how many times as fast as classical offloading a token was, and the same in words."""
    rows = [row for row in run.rows if row.done("classical", "cooperative", "split")]
    figure, axes = plt.subplots(figsize=(6.2, 0.9 + 0.5 * len(rows)), layout="constrained")
    words = []
    for number, way in enumerate(("cooperative", "split")):
        ratios = [row.ways["classical"].token / row.ways[way].token for row in rows]
        places = [place + 0.36 * (number - 0.5) for place in range(len(rows))]
        axes.barh(places, ratios, 0.36, color=_COLOURS[way], label=way)
        words.append(f"{way} {min(ratios):.2f} to {max(ratios):.2f}")
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name(row).replace(", batch", ",\nbatch") for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("a token, times as fast as classical offloading")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    plt.close(figure)
    return figure, f"Bars of a token's speed over classical offloading: {'; '.join(words)}."


def memory(run: Run) -> tuple[Figure, str]:
    """Return the memory of a long run over time, and what it shows in words."""
    long = run.long
    assert long is not None
    seconds = [sample.seconds for sample in long.samples]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(6.2, 4.2), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    gib = 2.0**-30
    series = (
        ("arrays on the GPU", BLUE, "-", [sample.pool_used for sample in long.samples]),
        ("held by CuPy's pool", SKY, "--", [sample.pool_total for sample in long.samples]),
        ("host memory of the process", GREEN, "-.", [sample.host for sample in long.samples]),
    )
    for label, colour, style, values in series:
        above.plot(seconds, [gib * value for value in values], style, color=colour, label=label)
    above.axhline(gib * long.gpu_limit, color=RED, linewidth=1, label="the pool's limit")
    above.set(ylabel="GiB", ylim=(0, None))
    below.plot(seconds, [sample.tokens / 1024 for sample in long.samples], color=PINK)
    below.set(xlabel="seconds", ylabel="K tokens", ylim=(0, None))
    phases = {sample.phase: sample.seconds for sample in reversed(long.samples)}
    for phase, start in phases.items():
        if phase in ("prefill", "decode"):
            for axes in (above, below):
                axes.axvline(start, color=INK, linewidth=0.6, linestyle=":")
            above.annotate(phase, (start, 1), xycoords=("data", "axes fraction"), fontsize=8, va="bottom")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    plt.close(figure)
    peak = gib * max(series[1][3])
    return figure, (
        f"Memory over time: the GPU's pool rises to {peak:.1f} GiB, below its limit of "
        f"{gib * long.gpu_limit:.0f} GiB, and stays there through prefill and decoding."
    )
