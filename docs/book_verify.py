"""Reports of ``fastattention.verify`` as the book shows them: of the reader's kernel, and from results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from book_figures import INK, RED
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from fastattention.verify import Report

RESULTS = Path(__file__).resolve().parent.parent / "results"

_PEERS = ("torch", "jax", "onnxruntime")

#: File names without their dates, and what the table calls them.
NAMES = {
    "fastattention": "FastAttention",
    "pytorch": "PyTorch",
    "jax": "JAX",
    "onnxruntime-plain-float32": "ONNX Runtime, float32",
    "onnxruntime-causal-float32": "ONNX Runtime, float32, causal",
    "onnxruntime-mask-float32": "ONNX Runtime, float32, mask",
    "onnxruntime-plain-float16": "ONNX Runtime, float16",
    "onnxruntime-causal-float16": "ONNX Runtime, float16, causal",
    "onnxruntime-mask-float16": "ONNX Runtime, float16, mask",
}


def groups(report: Report) -> None:
    """Print how many cases of each group are right, and the largest error in units of the tolerance."""
    print(f"{'what':20} {'right':>9} {'worst':>9}")
    for group, results in report.groups.items():
        right = sum(result.passed for result in results)
        worst = max(result.error for result in results)
        mark = "" if right == len(results) else "   <-"
        print(f"{group:20} {right:4} of {len(results):2} {worst:9.2g}{mark}")


def heat_map(report: Report) -> tuple[Figure, str]:
    """Draw where the errors of the first failing case come from; return it with its text."""
    assert report.first is not None
    assert report.smallest is not None
    heat = report.smallest.heat_map
    assert heat is not None
    errors = np.array(heat["errors"])
    shade = np.log10(np.maximum(errors, 1e-2))
    figure, ax = plt.subplots(figsize=(1.2 + 0.8 * errors.shape[1], 0.9 + 0.35 * errors.shape[0]))
    # At most half covering, so that the ink stands out on light pages and on dark ones.
    colours = LinearSegmentedColormap.from_list("errors", [f"{RED}00", f"{RED}80"])
    ax.imshow(shade, cmap=colours, vmin=0, vmax=max(1.0, float(shade.max())), aspect="auto")
    for (i, j), error in np.ndenumerate(errors):
        text = f"{error:.2g}" if error < 100 else f"{error:.0f}" if error < 1e9 else "not finite"
        ax.text(j, i, text, ha="center", va="center", color=INK, fontsize=9)
    block_q, block_k = heat["block_q"], heat["block_k"]
    ax.set_xticks(range(errors.shape[1]), [f"from {block_k * j}" for j in range(errors.shape[1])])
    ax.set_yticks(range(errors.shape[0]), [f"from {block_q * i}" for i in range(errors.shape[0])])
    ax.set(xlabel="keys", ylabel="queries", title=f"{report.first.case}: errors in tolerances")
    ax.set_xticks(np.arange(errors.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(errors.shape[0] + 1) - 0.5, minor=True)
    ax.grid(which="minor", color=INK, linewidth=0.5)
    ax.tick_params(which="both", length=0)
    worst = np.unravel_index(int(errors.argmax()), errors.shape)
    alt = (
        f"Errors of the case {report.first.case} by tiles of {block_q} queries and {block_k} keys. The "
        f"largest is that of queries from {block_q * worst[0]} and keys from {block_k * worst[1]}."
    )
    plt.close(figure)
    return figure, alt


def newest(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the newest recorded report of each kernel that there is one of, in the order of NAMES."""
    found = {}
    for name in NAMES:
        paths = sorted(folder.glob(f"verify-{name}-[0-9]*.json"))
        if paths:
            found[name] = json.loads(paths[-1].read_text(encoding="utf-8"))
    return found


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Return a line for each kernel, as Markdown."""
    lines = [
        "| kernel | cases right | wrong cases, by group | same bits again | for any number of threads |",
        "| --- | ---: | --- | --- | --- |",
    ]
    for name, report in reports.items():
        results = report["results"]
        wrong: dict[str, int] = {}
        for result in results:
            if result["finding"] is not None:
                wrong[result["group"]] = wrong.get(result["group"], 0) + 1
        groups_said = ", ".join(f"{group} ({count})" for group, count in wrong.items())
        right = len(results) - sum(wrong.values())
        cells = [f"{right}&nbsp;of&nbsp;{len(results)}", groups_said]
        cells += [_say(report[kind]) for kind in ("repeats", "threads")]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _say(found: dict[str, bool | None]) -> str:
    bad = [dtype for dtype, same in found.items() if same is False]
    known = [same for same in found.values() if same is not None]
    return f"no: {', '.join(bad)}" if bad else "yes" if known else ""


def where(reports: dict[str, dict[str, Any]]) -> str:
    """Return the processor, versions and days of recorded reports."""
    first = next(iter(reports.values()))
    versions = first["environment"]["versions"]
    days = sorted({report["date"][:10] for report in reports.values()})
    named = ", ".join(f"{name} {number}" for name, number in versions.items() if name in _PEERS)
    return f"{first['environment']['cpu']}; {named}; {', '.join(days)}"
