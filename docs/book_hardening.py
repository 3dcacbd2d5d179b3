"""The page on what has been tried to break the library: its tables, from ``results/``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"


def newest(kind: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the newest ``<kind>-*.json``; None where there is none."""
    return max(_all(kind, folder), key=lambda content: content["date"], default=None)


def _all(kind: str, folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{kind}-2*.json"))]


def fuzzed(folder: Path = RESULTS) -> str:
    """Return, as a table, how often each fuzzer called what in each recorded run, and what it found."""
    lines = ["| what is called | by | when | processor's set | executions | edges reached | found |"]
    lines.append("| --- | --- | --- | --- | --: | --: | --- |")
    total = 0
    for run in _all("fuzz-native", folder):
        counts = run["calls"], run["edges"], None  # a run that found something writes no file
        lines.append(_line("the C interface", "libFuzzer", run, *counts))
        total += run["calls"]
    names = {"attention": "the public functions", "gguf": "the reader of GGUF files"}
    for run in _all("fuzz-python", folder):
        for name, found in run["targets"].items():
            counts = found["executions"], found["edges"], found["finding"]
            lines.append(_line(names[name], "atheris", run, *counts))
            total += found["executions"]
    return "\n".join(lines) + f"\n\n{total:,} executions in all."


def soaked(folder: Path = RESULTS) -> str:
    """Return what eight threads did, as a sentence."""
    found = newest("soak", folder)
    if found is None:
        return "Not run yet: `make soak ARGS=--record`"
    counts, failures = found["counts"], found["failures"]
    memory = ""
    if found["held_early"]:
        held = [found[key]["resident_bytes"] / 1e6 for key in ("held_early", "held_late")]
        memory = " The process held {:.0f} MB after the first seconds, {:.0f} MB at the end.".format(*held)
    return (
        f"{found['date'][:10]}, {found['threads']} threads, {found['seconds']:.0f} s: "
        f"{counts['attention calls']:,} calls of `attention`, {counts['cache: append']:,} appends to "
        f"{counts['caches made']:,} caches; {counts['attention results checked']:,} and "
        f"{counts['cache: attend, checked']:,} results checked; failures: {len(failures)}.{memory}"
    )


def covered(folder: Path = RESULTS) -> str:
    """Return, as a table, what share of lines and branches the tests reach."""
    found = newest("coverage", folder)
    if found is None:
        return "Not measured yet: `make coverage ARGS=--record`"
    lines = ["| language | lines reached, % | branches reached, % | left out |", "| --- | --: | --: | --- |"]
    for key, name in (("python", "Python"), ("cpp", "C++")):
        part = found[key]
        left_out = ", ".join(f"`{pattern}`" for pattern in part["left_out"]) or "nothing"
        lines.append(
            f"| {name} | {part['lines_percent']:.1f} | {part['branches_percent']:.1f} | {left_out} |"
        )
    failed = "" if found["passed"] else ", in a run in which a test failed"
    return f"{found['date'][:10]}{failed}:\n\n" + "\n".join(lines)


def mutated(folder: Path = RESULTS) -> tuple[str, str]:
    """Return how many planted faults were noticed, as a sentence, and a table of those that were not."""
    found = newest("mutation", folder)
    if found is None:
        return "Not measured yet: `make mutation ARGS=--record`", ""
    tried = sum(found["outcomes"].values())
    lines = ["| file | line | was | became |", "| --- | --: | --- | --- |"]
    for survivor in found["survivors"]:
        changed = [" ".join(line[1:].split()).replace("|", "\\|") for line in survivor["change"]]
        old, new = changed[: len(changed) // 2], changed[len(changed) // 2 :]
        cells = (f"`{' '.join(part) or ' '}`" for part in (old, new))
        lines.append(f"| {survivor['file']} | {survivor['line']} | {' | '.join(cells)} |")
    return (
        f"{found['date'][:10]}: of {found['possible']:,} possible faults {tried} were tried, chosen at "
        f"random; {found['killed_percent']:.1f} % were noticed.",
        "\n".join(lines) if found["survivors"] else "",
    )


def _line(
    what: str, by: str, run: dict[str, Any], executions: int, edges: int, finding: list[str] | None
) -> str:
    found = "a fault, mended since" if finding else "nothing"
    cells = (
        what,
        by,
        run["date"][:10],
        f"`{run['environment']['isa']}`",
        f"{executions:,}",
        f"{edges:,}",
        found,
    )
    return f"| {' | '.join(cells)} |"
