"""What the README says of caches in host memory: from the newest file of ``make bench-offload``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["SCHEMA", "newest", "section"]

SCHEMA = "offload-1"  # of fastattention/bench/offload/results.py
WAYS = ("all-GPU", "classical", "cooperative", "split")


def newest(folder: Path, *, long: bool = False) -> dict[str, Any] | None:
    """Return the newest run of cases, or of a long context; None where there is none.

    Raises
    ------
    ValueError
        When a file is of another schema than this script knows.
    """
    runs = []
    for path in sorted(folder.glob("offload-*.json")):
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if run.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {run.get('schema')!r}, expected {SCHEMA!r}")
        if run["long"] is not None if long else run["rows"]:
            runs.append(run)
    return max(runs, key=lambda run: str(run["date"]), default=None)


def section(folder: Path) -> str:
    """Return the section; nothing where nothing was measured."""
    run, long = newest(folder), newest(folder, long=True)
    parts = [] if run is None else _cases(run)
    if long is not None:
        parts.append(_long(long["long"]))
    return "\n\n".join(["### CPU and GPU together", *parts]) if parts else ""


def _cases(run: dict[str, Any]) -> list[str]:
    where = run["environment"]
    limits = ", ".join(
        f"{name} {run['limits'][name][0]:.0f} GB/s" for name in ("bus up", "CPU attention", "host read")
    )
    lines = [
        ["model's shape", "layers", "tokens", "batch", *(f"{way}, ms" for way in WAYS), "gain", "target"],
        ["---", *["--:"] * (3 + len(WAYS)), "--:", "---"],
    ]
    goals: dict[str, list[dict[str, Any]]] = {}
    for goal in run["goals"]:
        goals.setdefault(goal["row"].split(" ")[0], []).append(goal)
    for row in run["rows"]:
        case, ways = row["case"], row["summary"]["ways"]
        cells = [case["model"], *(f"{case[name]}" for name in ("layers", "context", "batch"))]
        cells += [_figures(ways[way]["token_ms"]) if way in ways else "none" for way in WAYS]
        gains = [ways[way].get("times_classical_token") for way in WAYS[2:] if way in ways]
        cells.append(", ".join(f"{gain:.2f}×" for gain in gains if gain is not None))
        judged = goals.get(row["summary"]["name"], [])
        cells.append(f"{sum(goal['met'] for goal in judged)} of {len(judged)} met")
        lines.append(cells)
    reading = (
        "Milliseconds a token of the whole decoder, random weights in float16, every layer's cache in host "
        "memory (but for *all-GPU*). *Classical*: the cache goes up for each token. *Cooperative*: the CPU "
        "attends where the cache lies. *Split*: both share each layer. *Gain*: of cooperative and split over "
        "classical."
    )
    return [
        f"{where['gpu']} and {where['threads']} threads of its host ({where['cpu']}); {run['date'][:10]}. "
        f"Limits, measured in the same run: {limits}.",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        reading,
    ]


def _figures(value: float) -> str:
    """Return three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _long(long: dict[str, Any]) -> str:
    tokens = sorted(long["tokens"][1:] or long["tokens"])
    median = tokens[len(tokens) // 2]
    return (
        f"A prompt of {long['context']:,} tokens ({long['model']}'s shape) with the GPU held to "
        f"{long['gpu_limit'] / 2**30:.0f} GiB, where {long['largest_without']:,} fit without the "
        f"host's memory: prefill {long['prefill']:.0f} s, then {1e3 * median:.0f} ms a token."
    )
