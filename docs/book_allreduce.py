"""What ``fastattention bench --allreduce`` measured, for the book: figures come from its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from book_figures import BLUE, GREEN, INK, ORANGE, RED
from matplotlib.figure import Figure

SCHEMA = "allreduce-1"


def newest(folder: Path) -> list[dict[str, Any]]:
    """Return the newest results of each engine, GPUs first; none where nothing was measured."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("allreduce-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{path.name}: schema {content.get('schema')!r}; this book reads {SCHEMA!r}")
        engine = content["environment"]["engine"]
        if engine not in found or content["date"] > found[engine]["date"]:
            found[engine] = content
    return sorted(found.values(), key=lambda content: "gpu" not in content["environment"])


def machine(content: dict[str, Any]) -> str:
    """Return which machine it was, and when."""
    where = content["environment"]
    name = where.get("gpu", where["cpu"])
    return f"{where['ranks']} ranks by {where['engine']}, {name}, {content['date'][:10]}"


def table(content: dict[str, Any]) -> str:
    """Return the cases as Markdown."""
    lines = [
        f"{machine(content)}:",
        "",
        "| case | compute, ms | AllReduce, ms | in sequence, ms | chosen, ms | speedup | formula "
        "| of formula |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in content["rows"]:
        found, ms = row["summary"], row["summary"]["ms"]
        times = [ms[name] for name in ("compute", "sum", "in sequence", found["chosen"])]
        blocks = len(row["ways"][found["chosen"]]["sizes"])
        lines.append(
            f"| {found['name']}, {blocks} block{'s' if blocks > 1 else ''} | "
            + " | ".join(f"{value:.2f}" for value in times)
            + f" | {found['chosen_speedup']:.2f} | {found['formula_speedup']:.2f} "
            f"| {100 * found['share_of_formula']:.0f} % |"
        )
    return "\n".join(lines)


def speedups(content: dict[str, Any]) -> tuple[Figure, str]:
    """Return bars of the cases, the formula's promise marked, and what they show in words."""
    rows = [row["summary"] for row in content["rows"]]
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.42 * len(rows)), layout="constrained")
    series = (
        ("4 equal blocks", BLUE, [row["speedups"]["n = 4"] for row in rows]),
        ("chosen", GREEN, [row["chosen_speedup"] for row in rows]),
        ("projection alone, plain streams", ORANGE, [row["projection_speedup"] for row in rows]),
    )
    for number, (label, colour, values) in enumerate(series):
        axes.barh(
            [place + 0.26 * (number - 1) for place in range(len(rows))],
            values,
            0.26,
            color=colour,
            label=label,
        )
    promised = [row["formula_speedup"] for row in rows]
    axes.plot(promised, range(len(rows)), "|", color=RED, markersize=18, markeredgewidth=2, label="formula")
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(xlabel="times as fast as in sequence", title=machine(content))
    axes.title.set_fontsize(10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    plt.close(figure)
    words = "; ".join(f"{row['name']} {row['chosen_speedup']:.2f}" for row in rows)
    return figure, f"Bars of how many times as fast as in sequence blocks are, the chosen ones: {words}."
