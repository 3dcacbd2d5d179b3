"""What ``fastattention bench --errors`` measured, for the book: figures come from its files alone."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from book_figures import BLUE, GREEN, INK, ORANGE, RED
from matplotlib.figure import Figure

from fastattention.bench.errors.cases import KINDS, SHAPES
from fastattention.bench.errors.results import Row, Run, load
from fastattention.verify.tolerances import TOLERANCES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def newest(folder: Path = RESULTS) -> Run | None:
    """Return the newest run of all rows; None where nothing was measured."""
    whole = (run for run in _runs(folder) if not run.options["filter"])
    return max(whole, key=lambda run: run.date, default=None)


def of_other_sets(whole: Run, folder: Path = RESULTS) -> str:
    """Return, as a table, what runs of some rows found of the sets that the machine of `whole` lacks."""
    seen = {isa for row in whole.rows for isa in row.kernels}
    lines = [
        "| instruction set | machine | type | rows | of the bound, most | of the tolerance, most |",
        "| --- | --- | --- | --: | --: | --: |",
    ]
    for run in _runs(folder):
        for isa in sorted({isa for row in run.rows for isa in row.kernels} - seen):
            for dtype in dtypes(run):
                rows = [row for row in run.rows if row.case.dtype == dtype and isa in row.kernels]
                found = [row.kernels[isa] for row in rows]
                bounds = [error.of_bound for error in found if error.of_bound is not None]
                if bounds:
                    lines.append(
                        f"| {isa} | {where(run)} | {dtype} | {len(found)} | {max(bounds):.2f} "
                        f"| {max(error.of_tolerance for error in found):.2f} |"
                    )
    return "\n".join(lines) if len(lines) > 2 else ""


def _runs(folder: Path) -> list[Run]:
    return [load(path) for path in sorted(folder.glob("errors-*.json"))]


def where(run: Run) -> str:
    """Return which machine it was, and when."""
    versions = run.environment["versions"]
    peer = f", PyTorch {versions['PyTorch']}" if "PyTorch" in versions else ""
    return f"{run.environment['cpu']}, {run.date[:10]}{peer}"


def exp2_coefficients() -> list[float]:
    """Return the kernels' polynomial for 2^f, the constant first, from their source.

    Raises
    ------
    ValueError
        They are no longer there.
    """
    text = (ROOT / "cpu_kernels" / "common.hpp").read_text(encoding="utf-8")
    found = re.findall(r"EXP2_C(\d) = ([-+.\w]+?)f;", text)
    if [int(number) for number, _ in found] != list(range(6)):
        raise ValueError(f"common.hpp: expected EXP2_C0 to EXP2_C5, got {found}")
    return [float.fromhex(value) for _, value in found]


def dtypes(run: Run) -> list[str]:
    """Return the data types of a run, in order."""
    return list(dict.fromkeys(row.case.dtype for row in run.rows))


def by_length(run: Run, shape: str) -> tuple[Figure, str]:
    """Return, by data type, errors and bounds of standard normal numbers over the number of keys."""
    names = [dtype for dtype in dtypes(run) if dtype != "int8" or shape != "chunk"]
    figure, grid = plt.subplots(2, 2, figsize=(7.0, 5.4), sharex=True, layout="constrained")
    words = []
    for axes, dtype in zip(grid.flat, names, strict=False):
        rows = [
            row for row in run.rows
            if (row.case.shape, row.case.dtype, row.case.kind) == (shape, dtype, "normal")
            and row.case.keys > 1  # of one key nothing is rounded
        ]  # fmt: skip
        keys = [row.case.keys for row in rows]
        ours = [max(found.rms for found in row.kernels.values()) for row in rows]
        largest = [max(found.largest for found in row.kernels.values()) for row in rows]
        bound = [max(found.bound or 0.0 for found in row.kernels.values()) for row in rows]
        axes.loglog(keys, bound, color=RED, label="bound")
        axes.loglog(keys, largest, "--", color=BLUE, label="our largest")
        axes.loglog(keys, ours, "o-", color=BLUE, markersize=3, label="our root mean square")
        theirs = [row.pytorch for row in rows]
        if all(found is not None for found in theirs):
            rms = [found.rms for found in theirs if found is not None]
            axes.loglog(keys, rms, "s-.", color=ORANGE, markersize=3, label="PyTorch's")
            words.append(f"{dtype} {ours[-1]:.2f} and {rms[-1]:.2f}")
        axes.axhline(0.5, color=INK, linewidth=0.6, linestyle=":")
        axes.set_title(dtype, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("keys")
    for axes in grid[:, 0]:
        axes.set_ylabel("units in the last place")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    plt.close(figure)
    return figure, (
        f"Errors over the number of keys, {shape}, a panel for each data type, the bound far above. Root "
        f"mean squares of ours and PyTorch's at the longest: {'; '.join(words)}."
    )


def comparison(run: Run) -> str:
    """Return our errors over PyTorch's as Markdown: of each data type and shape, the worst kernel's."""
    lines = [
        "| | " + " | ".join(f"{kind}" for kind in KINDS) + " | of bound | of tolerance | PyTorch's |",
        "| --- |" + " ---: |" * (len(KINDS) + 3),
    ]
    for dtype in dtypes(run):
        for shape in SHAPES:
            rows = [row for row in run.rows if (row.case.dtype, row.case.shape) == (dtype, shape)]
            if not rows:
                continue
            ratios = [_ratio([row for row in rows if row.case.kind == kind]) for kind in KINDS]
            ours = [found for row in rows for found in row.kernels.values()]
            theirs = [row.pytorch.of_tolerance for row in rows if row.pytorch is not None]
            lines.append(
                f"| {dtype}, {shape} | "
                + " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
                + f" | {max(found.of_bound or 0.0 for found in ours):.3f} "
                f"| {max(found.of_tolerance for found in ours):.2f} "
                f"| {f'{max(theirs):.2f}' if theirs else ''} |"
            )
    return "\n".join(lines)


def worse(run: Run) -> str:
    """Return in words where a kernel is less accurate than PyTorch: kinds of numbers, and set by set."""
    places: dict[str, set[str]] = {}
    for name, isa in run.worse():
        shape, dtype, kind = name.split("/")[:3]
        places.setdefault(f"{isa}, {shape}, {dtype}", set()).add(kind)
    return "; ".join(f"{place} ({', '.join(sorted(kinds))})" for place, kinds in places.items()) or "none."


def _ratio(rows: list[Row]) -> float | None:
    """Our root mean square error over PyTorch's: the geometric mean over lengths, the worst kernel's."""
    logs = [
        np.log(max(found.rms for found in row.kernels.values()) / row.pytorch.rms)
        for row in rows
        if row.pytorch is not None and row.pytorch.rms > 0 and row.case.keys > 1
    ]
    return float(np.exp(np.mean(logs))) if logs else None


def tolerance_table() -> str:
    """Return the table of tolerances of `fastattention verify`, as Markdown, from its code."""
    lines = [
        "| storage | accumulation | half a unit | u | of weights | why |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]

    def power(x: float) -> str:
        return f"$2^{{{int(np.log2(x))}}}$" if x else ""

    for (storage, accumulation), found in TOLERANCES.items():
        lines.append(
            f"| {storage} | {accumulation} | {power(found.storage)} | {power(found.accumulation)} "
            f"| {power(found.weights)} | {found.reason} |"
        )
    return "\n".join(lines)


def sums(lengths: list[int], block: int = 64, seed: int = 0) -> tuple[Figure, str]:
    """Return the errors of float32 sums of positive numbers in two orders, with the bounds of both."""
    rng = np.random.default_rng(seed)
    u = 2.0**-24
    found: dict[str, list[float]] = {"one after the other": [], f"in blocks of {block}": []}
    for n in lengths:
        x = rng.uniform(0.5, 1.5, (50, n)).astype(np.float32)
        exact = x.astype(np.float64).sum(-1)
        serial = np.add.accumulate(x, axis=-1)[:, -1]
        parts = np.add.accumulate(x.reshape(50, -1, block), axis=-1)[:, :, -1]
        blocked = np.add.accumulate(parts, axis=-1)[:, -1]
        for name, value in zip(found, (serial, blocked), strict=True):
            error = np.abs(value.astype(np.float64) - exact) / exact / u
            found[name].append(float(np.sqrt((error**2).mean())))
    figure, axes = plt.subplots(figsize=(6.2, 3.2), layout="constrained")
    for (name, values), colour in zip(found.items(), (RED, GREEN), strict=True):
        axes.loglog(lengths, values, "o-", color=colour, markersize=3, label=name)
    axes.loglog(lengths, [n - 1 for n in lengths], "--", color=RED, linewidth=1, label="at most: n - 1")
    axes.loglog(lengths, np.sqrt(lengths), ":", color=RED, linewidth=1, label="random signs: √n")
    blocks = [block + n // block - 2 for n in lengths]
    axes.loglog(lengths, blocks, "--", color=GREEN, linewidth=1, label="at most, in blocks")
    axes.set(xlabel="terms", ylabel="relative error, in u")
    axes.legend(fontsize=8)
    plt.close(figure)
    last = {name: values[-1] for name, values in found.items()}
    return figure, (
        "Relative errors of sums of positive numbers over their length, with bounds. "
        f"At {lengths[-1]:,} terms: "
        + "; ".join(f"{name} {value:.1f} u" for name, value in last.items()) + "."
    )  # fmt: skip
