"""What the book shows of GPUs: recorded audits, profiles and benchmarks, read from ``results/``.

No figure of a GPU stands in the book's text. A page asks for what is recorded, shows it with its hardware and
its date, and says in a sentence when there is nothing yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from book_figures import BLUE, GREEN, ORANGE, PINK, RED, SKY
from fastattention.gpu import configure
from matplotlib.figure import Figure
from matplotlib.patches import Patch

RESULTS = Path(__file__).resolve().parent.parent / "results"
NOTHING = "No {what} is recorded yet: `results/` holds no `{pattern}`."

STALL = ("smsp__average_warps_issue_stalled_", "_per_issue_active")

#: Warp states of the profiler, in words. "selected" is no stall: it is the instruction that is issued.
REASONS = {
    "barrier": "at a barrier, for the CTA's other warps",
    "branch_resolving": "for a branch's target",
    "dispatch_stall": "for the dispatcher",
    "drain": "for stores before it exits",
    "imc_miss": "for a constant that was not cached",
    "lg_throttle": "for room in the queue to global memory",
    "long_scoreboard": "for global memory (or L2)",
    "math_pipe_throttle": "for a busy pipe: tensor, float or integer",
    "membar": "at a memory fence",
    "mio_throttle": "for room in the queue to shared memory",
    "misc": "other reasons",
    "no_instruction": "for instructions to be fetched",
    "not_selected": "ready, but another warp went first",
    "short_scoreboard": "for shared memory or a special function",
    "sleeping": "asleep",
    "tex_throttle": "for room in the texture queue",
    "wait": "a fixed number of cycles, by the compiler's count",
}

#: Metrics that the table shows: beginning of the profiler's name, words, unit, digits.
METRICS = (
    ("gpu__time_duration", "time", "ms", 3),
    ("sm__pipe_tensor_cycles_active", "tensor pipe active", "% of cycles", 1),
    ("sm__inst_executed_pipe_tensor", "tensor instructions issued, of the peak rate", "%", 1),
    ("smsp__issue_active", "cycles in which an instruction is issued", "%", 1),
    ("sm__warps_active", "warps resident, of the most an SM can hold", "%", 1),
    ("launch__registers_per_thread", "registers a thread", "", 0),
    ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared", "cycles lost to bank conflicts", "", 0),
    ("dram__throughput", "memory throughput, of the peak", "%", 1),
)


def newest(pattern: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the newest file of a pattern, by the date that it holds; None where there is none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]
    return max(found, key=lambda content: content["date"], default=None)


def audit(folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return what ``docs/record_audit.py`` recorded of Volta's machine code."""
    return newest("audit-volta.json", folder)


def profile(folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the newest profile: ``{hardware, date, versions, kernels: [{name, shape, metrics}]}``.

    Metrics have the profiler's names and its base units: times in nanoseconds, shares in percent.
    """
    return newest("profile-*.json", folder)


def where(content: dict[str, Any]) -> str:
    """Return the hardware, date and versions of a file in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(content.get("versions", {}).items()))
    return f"{content['hardware']}, {content['date'][:10]}" + (f"; {versions}" if versions else "")


def stalls(metrics: dict[str, float]) -> dict[str, float]:
    """Return the cycles that a warp spends in each state for each instruction issued, the largest first.

    Examples
    --------
    >>> stalls({"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": 0.9, "gpu__time": 3.0})
    {'wait': 0.9}
    """
    found = {}
    for name, value in metrics.items():
        stem = name.partition(".")[0]
        if stem.startswith(STALL[0]) and stem.endswith(STALL[1]):
            found[stem[len(STALL[0]) : -len(STALL[1])]] = float(value)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def label(kernel: dict[str, Any]) -> str:
    """Return what a profiled kernel is called."""
    return f"{kernel['name']}, {kernel['shape']}"


def profile_table(content: dict[str, Any]) -> str:
    """Return the metrics of all kernels of a profile as a Markdown table, one kernel a column."""
    kernels = content["kernels"]
    lines = [
        "| | " + " | ".join(label(kernel) for kernel in kernels) + " |",
        "|---" + "|---:" * len(kernels) + "|",
    ]
    for name, words, unit, digits in METRICS:
        cells = []
        for kernel in kernels:
            values = [value for key, value in kernel["metrics"].items() if key.startswith(name)]
            value = (
                float(values[0]) / 1e6 if values and unit == "ms" else float(values[0]) if values else None
            )
            cells.append("" if value is None else f"{value:.{digits}f}")
        if any(cells):
            lines.append(f"| {words}{', ' + unit if unit else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main_kernel(content: dict[str, Any]) -> dict[str, Any]:
    """Return the profiled prefill kernel that took the longest: the one that the chapter reads."""
    kernels = [kernel for kernel in content["kernels"] if "decode" not in kernel["name"]]
    return max(kernels or content["kernels"], key=lambda kernel: _time(kernel["metrics"]))


def _time(metrics: dict[str, float]) -> float:
    return max((float(v) for k, v in metrics.items() if k.startswith("gpu__time_duration")), default=0.0)


def stall_figure(kernel: dict[str, Any], most: int = 8) -> tuple[Figure, str]:
    """Draw the states of a kernel's warps as bars, the longest first; "selected" is drawn apart."""
    found = stalls(kernel["metrics"])
    if not found:
        raise ValueError(
            f"{label(kernel)}: the profile has no stall reasons, got {sorted(kernel['metrics'])}"
        )
    shown = list(found.items())[:most]
    figure, axes = plt.subplots(figsize=(4.8, 0.42 * len(shown) + 0.9))
    for row, (reason, cycles) in enumerate(shown):
        axes.barh(row, cycles, height=0.4, color=GREEN if reason == "selected" else BLUE)
        words = "issued" if reason == "selected" else f"{reason}: {REASONS.get(reason, 'see the guide')}"
        axes.text(0, row - 0.26, f"{words}, {cycles:.2f}", ha="left", va="bottom", fontsize=9)
    axes.set(
        yticks=[], ylim=(len(shown) - 0.5, -0.85), xlim=(0, None), xlabel="cycles for each instruction issued"
    )
    axes.spines["left"].set_visible(False)
    plt.close(figure)
    top, cycles = next((pair for pair in shown if pair[0] != "selected"), shown[0])
    return figure, (
        f"Where the warps of {label(kernel)} spend their cycles, for each instruction issued: the longest "
        f"is {top} ({REASONS.get(top, top)}), {cycles:.2f} of {sum(found.values()):.2f} cycles."
    )


# -- Benchmarks ------------------------------------------------------------------------------------

BENCH_SCHEMA = "gpu-1"  # of what the benchmark of GPUs writes
LENGTH = 4096  # tokens of the rows that are drawn; others where a run has none
HALF_INSTRUCTIONS = ("m8n8k4", "m16n8k8", "m16n8k16")  # whose operands are float16


def gpu_runs(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the recorded benchmarks of GPUs, the newest first: those of the CPU have another schema."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("bench-*.json"))]
    runs = [run for run in found if run.get("schema") == BENCH_SCHEMA]
    return sorted(runs, key=lambda run: run["date"], reverse=True)


def hardware(run: dict[str, Any]) -> str:
    """Return what a benchmark ran on."""
    return str(run["environment"]["gpu"])


def prefill_rows(run: dict[str, Any], length: int = LENGTH) -> list[tuple[str, str, dict[str, float]]]:
    """Return (case, our kernel, TFLOP/s by name) of a benchmark's prefill rows in float16, ours first.

    Of our kernels the card's own counts: the first that the row names.
    """
    prefill = [
        row for row in run["rows"] if row["case"]["kind"] == "prefill" and row["case"]["dtype"] == "float16"
    ]
    rows = []
    for row in [row for row in prefill if row["case"]["q_len"] == length] or prefill:
        case, timed = row["case"], row["summary"]["contenders"]
        ours = next((name for name in timed if row["contenders"][name]["ours"]), None)
        if ours is None:
            continue  # refused, or wrong: the benchmark says so in its own report
        if row["summary"]["unit"] != "TFLOP/s":
            raise ValueError(f"{case}: expected TFLOP/s, got {row['summary']['unit']}")
        rates = {ours: timed[ours]["rate"]}
        rates |= {name: x["rate"] for name, x in timed.items() if not row["contenders"][name]["ours"]}
        words = f"D={case['head_dim']}, {'causal' if case['causal'] else 'full'}, {case['q_len']} tokens"
        rows.append((words, ours, rates))
    return rows


def prefill_figure(run: dict[str, Any]) -> tuple[Figure, str]:
    """Draw the measured prefill of one benchmark: a group of bars a case, one bar an implementation."""
    rows = prefill_rows(run)
    if not rows:
        raise ValueError("the benchmark has no prefill rows in float16")
    peers = sorted({name for _, ours, rates in rows for name in rates if name != ours})
    names, colours = ["FastAttention", *peers], (BLUE, ORANGE, GREEN, PINK, SKY, RED)
    height = 0.8 / len(names)
    figure, axes = plt.subplots(figsize=(3.5, 0.8 + 0.24 * len(rows) * (len(names) + 1)))
    for n, name in enumerate(names):
        for row, (_, ours, rates) in enumerate(rows):
            place, rate = row - 0.4 + (n + 0.5) * height, rates.get(ours if n == 0 else name)
            if rate is not None:
                axes.barh(place, rate, height=height, color=colours[n % len(colours)])
                axes.text(rate, place, f" {rate:.0f}", va="center", fontsize=8)
    axes.set(yticks=range(len(rows)), yticklabels=[case.replace(", ", "\n", 1) for case, _, _ in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="TFLOP/s of useful work")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.margins(x=0.12)
    patches = [Patch(color=colours[n % len(colours)], label=name) for n, name in enumerate(names)]
    axes.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=9)
    plt.close(figure)
    said = "; ".join(f"{case}: {rates[ours]:.0f}" for case, ours, rates in rows)
    return (
        figure,
        f"Measured prefill on {hardware(run)}, {run['date'][:10]}, TFLOP/s of FastAttention: {said}.",
    )


class Roofline(NamedTuple):
    """What a card reached in a benchmark, in operations and bytes a second, and our kernel beside it."""

    peak: float
    bandwidth: float
    instruction: str
    tokens: int
    head_dim: int
    tile_rows: int
    reached: float


def roofline(run: dict[str, Any]) -> Roofline | None:
    """Return a card's limits in float16, as a benchmark measured them, and its longest full prefill.

    The limits are those of the fastest tensor-core instruction in float16 and of copying memory. Tiles are
    those that the launcher chooses for the card's own kernel. None where a run has no such row.
    """
    found = []
    for row in run["rows"]:
        case, timed = row["case"], row["summary"]["contenders"]
        hides = case["causal"] or case.get("window") or case.get("mask")
        if case["kind"] == "prefill" and case["dtype"] == "float16" and not hides:
            # The card's own kernel is the first that a row names; others are those of older cards, forced.
            name = next((name for name in timed if row["contenders"][name]["ours"]), None)
            if name is not None:
                found.append((case["q_len"], -case["head_dim"], name, timed[name]["rate"]))
    if not found:
        return None
    tokens, negative_dim, name, rate = max(found)
    dim = -negative_dim
    kernel = configure(
        int(name.removeprefix("atom ")), "float16", "float16", dim, dim, tokens, aligned=True, modified=False
    )
    half = {name: values for name, values in run["limits"].items() if name in HALF_INSTRUCTIONS}
    instruction = max(half, key=lambda name: median(half[name]))
    return Roofline(
        peak=1e12 * median(half[instruction]),
        bandwidth=1e9 * median(run["limits"]["copy"]),
        instruction=instruction,
        tokens=tokens,
        head_dim=dim,
        tile_rows=kernel.rows,
        reached=1e12 * rate,
    )
