"""Fill the README's section of results from the newest files in ``results/``.

Run it from anywhere: ``python docs/update_readme.py``. With ``--check`` it changes nothing and exits with 1
when the README is out of date. The book reads the same files through the functions here. The standard library
is enough.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))  # for who loads this file by its path
import readme_offload

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SCHEMAS = (2, 3)  # of fastattention/bench/results.py
GPU_SCHEMA = "gpu-1"  # of fastattention/bench/gpu/results.py

TITLES = {
    "prefill": "**Prefill**: as many queries as keys. Work counted: visible pairs only.",
    "decode": "**Decode**: one query a head or a few, keys and values read once.",
}
GPU_TITLES = {
    "prefill": "**Prefill**: as many queries as keys. Work counted: visible pairs only.",
    "decode": "**Decode**: one query a head; caches take turns, so that none waits in the L2.",
}
NOTHING = (
    "No measurement is committed yet. `make bench` writes one into `results/`, and "
    "`python docs/update_readme.py` fills this section from it."
)


def newest(folder: Path, *, gpu: bool = False) -> dict[str, Any] | None:
    """Return the newest benchmark run in `folder` by its own date, or None when there is none.

    Parameters
    ----------
    folder : Path
    gpu : bool
        Of a GPU, rather than of a CPU.

    Raises
    ------
    ValueError
        When a file is of another schema than this script knows.
    """
    runs = []
    for path in sorted(folder.glob("bench-*.json")):
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if run.get("schema") not in (*SCHEMAS, GPU_SCHEMA):
            expected = " or ".join(map(str, (*SCHEMAS, GPU_SCHEMA)))
            raise ValueError(f"{path}: schema {run.get('schema')!r}, expected {expected}")
        if (run["schema"] == GPU_SCHEMA) == gpu:
            runs.append(run)
    return max(runs, key=lambda run: str(run["date"]), default=None)


def machine(run: dict[str, Any]) -> str:
    """Return one sentence on where, when and with what a run was made."""
    where = run["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{where['cpu']}, {where['allowed_cores']} of {where['cores']} cores, "
        f"instruction set {where['isa']}, {where['compiler']}; {str(run['date'])[:10]}; {versions}."
    )


def label(case: dict[str, Any]) -> str:
    """Return what a case's queries may see, in a word or two, and what else is unusual about it."""
    if case["mask"]:
        words = [f"{case['mask']} mask"]
    elif case["window"]:
        words = [f"window of {case['window'][0] + 1 + case['window'][1]}"]
    else:
        words = ["causal" if case["causal"] else "full"]
    if case.get("batch", 1) > 1:
        words.append(f"batch of {case['batch']}")
    if case["kind"] == "decode" and case["q_len"] > 1:
        words.append(f"{case['q_len']} queries")
    if case.get("page_size"):
        words.append(f"pages of {case['page_size']}")
    if case.get("isa"):
        words.append(f"by {case['isa']}")
    return ", ".join(words)


def headline(case: dict[str, Any]) -> bool:
    """Whether a row is among the dozen of its table that the README shows; the book has them all."""
    if case["head_dim"] != 128 or case.get("v_dim") or case["mask"]:
        return False
    grouped = case["kv_heads"] == 8 and case["q_heads"] == 32
    if case["kind"] == "prefill":
        return case["k_len"] == 4096 and case["q_heads"] == case["kv_heads"]
    if case.get("batch", 1) > 1:
        return grouped and case["dtype"] == "float32"
    if case["q_len"] > 1:
        return grouped and case["q_len"] == 16
    if case.get("page_size"):
        return grouped and case["dtype"] == "float16"
    if grouped:
        return case["k_len"] == 32768
    return case["kv_heads"] == 32 and case["dtype"] in ("float32", "int8")


def tables(run: dict[str, Any], *, only: Callable[[dict[str, Any]], bool] = lambda case: True) -> str:
    """Return the rows of a run as Markdown tables, prefill and decode apart.

    Parameters
    ----------
    run : dict
        As `newest` returns it.
    only : callable
        Takes a case; says whether its row is shown.
    """
    goals: dict[str, list[dict[str, Any]]] = {}
    for goal in run.get("goals", []):
        goals.setdefault(goal["row"], []).append(goal)
    parts = []
    for kind, title in TITLES.items():
        rows = [row for row in run["rows"] if row["case"]["kind"] == kind and only(row["case"])]
        if rows:
            parts.append(f"{title}\n\n{_table(rows, goals)}")
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]], goals: dict[str, list[dict[str, Any]]]) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    unit = rows[0]["summary"]["unit"]
    heads = ["type", "sees", "heads", "D", "keys", "threads", "ms", unit, "of limit", "spread"]
    judged = any(row["summary"]["name"] in goals for row in rows)
    lines = [heads + ["target"] * judged + peers]
    lines.append(["---", "---"] + ["--:"] * (len(heads) - 2) + ["---"] * judged + ["--:"] * len(peers))
    for row in rows:
        case, summary = row["case"], row["summary"]
        shared = "" if case["q_heads"] == case["kv_heads"] else f"/{case['kv_heads']}"
        dims = f"{case['head_dim']}/{case['v_dim']}" if case.get("v_dim") else str(case["head_dim"])
        cells = [case["dtype"], label(case), f"{case['q_heads']}{shared}", dims]
        cells += [str(case[name]) for name in ("k_len", "threads")]
        cells += [f"{summary['median_ms']:.3g}", f"{summary['rate']:.1f}"]
        spread = (summary["highest_percent"] - summary["lowest_percent"]) / 2
        cells += [f"{summary['percent_of_limit']:.0f} % of {row['limit_name']}", f"±{spread:.0f} %"]
        cells += [", ".join(map(_verdict, goals.get(summary["name"], [])))] * judged
        lines.append(cells + [_peer(row, name) for name in peers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdict(goal: dict[str, Any]) -> str:
    text = f"{goal['bound']:g}×" if goal["kind"] == "peers" else goal["text"]
    return f"{text} {'met' if goal['met'] else '**missed**'}"


def _peer(row: dict[str, Any], name: str) -> str:
    result = row["peers"].get(name)
    if result is None:
        return ""
    if result["status"] != "ok":
        return "wrong" if result["status"] == "failed" else "none"
    return f"{row['summary']['peer_ratios'][name]:.2f}×"


def remarks(run: dict[str, Any]) -> list[str]:
    """Return what a run says beside its tables: targets, memory, rows that the machine could not run."""
    lines = []
    goals = run.get("goals", [])
    if goals:
        lines.append(f"Targets: {sum(goal['met'] for goal in goals)} of {len(goals)} met, over all rows.")
    for memory in run.get("memory", []):
        case, threads = memory["case"], memory["case"]["threads"]
        planned = (memory["thread_bytes"] + memory["shared_bytes"] / threads) / 2**20
        text = f"planned {planned:.2f} MiB a thread"
        if memory["measured_bytes"] is not None:
            text += f", measured {memory['measured_bytes'] / threads / 2**20:.2f}"
        where = f"{case['k_len']} keys, {threads} thread{'s' if threads > 1 else ''}"
        lines.append(f"Memory beyond inputs and output ({where}): {text}.")
    counts = Counter(run.get("left_out", {}).values())
    return lines + [f"Not on this machine: {count} rows; {why}." for why, count in counts.items()]


def gpu_machine(run: dict[str, Any]) -> str:
    """Return a sentence on the GPU and the software of a run, and one on what the card does at best."""
    where = run["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    limits = ", ".join(
        f"{name} {values[0]:,.0f} {'GB/s' if name == 'copy' else 'TFLOP/s'}"
        for name, values in run["limits"].items()
    )
    runtime = where["cuda_runtime"]
    return (
        f"{where['gpu']}, compute capability {'.'.join(map(str, where['compute_capability']))}, "
        f"driver {where['driver']}, CUDA {runtime // 1000}.{runtime % 1000 // 10}; "
        f"{str(run['date'])[:10]}; {versions}. Limits, measured in the same run: {limits}."
    )


def gpu_headline(case: dict[str, Any]) -> bool:
    """Whether a row of a GPU is among the dozen of its table that the README shows."""
    if case["kind"] == "prefill":
        return case["dtype"] == "float16" and case["head_dim"] <= 128 and case["k_len"] in (4096, 16384)
    plain = case["dtype"] == "float16" and not case["page_size"]
    return case["kv_heads"] == 8 and (plain or case["k_len"] == 32768)


def gpu_older(case: dict[str, Any]) -> bool:
    """Whether the README shows also what the kernels of older cards reach in this row."""
    return case["kind"] == "prefill" and case["k_len"] == 4096


def _always(case: dict[str, Any]) -> bool:
    return True


def gpu_tables(
    run: dict[str, Any],
    *,
    only: Callable[[dict[str, Any]], bool] = _always,
    older: Callable[[dict[str, Any]], bool] = _always,
) -> str:
    """Return the rows of a run on a GPU as Markdown tables, prefill and decode apart.

    Parameters
    ----------
    run : dict
        As `newest` returns it with `gpu`.
    only : callable
        Takes a case; says whether its row is shown.
    older : callable
        Takes a case; says whether the kernels of older cards are shown, beside the card's own.
    """
    goals: dict[str, list[dict[str, Any]]] = {}
    for goal in run["goals"]:
        goals.setdefault(goal["row"], []).append(goal)
    parts = []
    for kind, title in GPU_TITLES.items():
        rows = [row for row in run["rows"] if row["case"]["kind"] == kind and only(row["case"])]
        if rows:
            parts.append(f"{title}\n\n{_gpu_table(rows, goals, older)}")
    return "\n\n".join(parts)


def _gpu_table(
    rows: list[dict[str, Any]],
    goals: dict[str, list[dict[str, Any]]],
    older: Callable[[dict[str, Any]], bool],
) -> str:
    peers = list(
        dict.fromkeys(name for row in rows for name, who in row["contenders"].items() if not who["ours"])
    )
    heads = ["type", "sees", "heads", "D", "keys", "batch", "kernel", "ms", rows[0]["summary"]["unit"]]
    lines = [[*heads, "of limit", "target", *peers]]
    lines.append(["---", "---"] + ["--:"] * 4 + ["---"] + ["--:"] * 3 + ["---"] + ["--:"] * len(peers))
    for row in rows:
        case = row["case"]
        sees = "causal" if case["causal"] else "full"
        if case["page_size"]:
            sees += f", pages of {case['page_size']}"
        shared = "" if case["q_heads"] == case["kv_heads"] else f"/{case['kv_heads']}"
        cells = [case["dtype"], sees, f"{case['q_heads']}{shared}"]
        cells += [str(case[name]) for name in ("head_dim", "k_len", "batch")]
        figures = row["summary"]["contenders"]
        kernels = [name for name, who in row["contenders"].items() if who["ours"] and name in figures]
        for name in kernels if older(case) else kernels[:1]:
            judged = goals.get(f"{row['summary']['name']} {name}", [])
            line = [*cells, *_gpu_cells(name, row["contenders"][name], figures[name])]
            line.append(", ".join(map(_gpu_verdict, judged)))
            lines.append(line + [_gpu_peer(row, figures[name], peer) for peer in peers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gpu_cells(name: str, who: dict[str, Any], found: dict[str, Any]) -> list[str]:
    rate = found["rate"]
    mode = "" if found["mode"] == "graph" else ", launched one by one"
    return [
        name + (", emulated" if who["emulated"] else "") + mode,
        f"{found[found['mode'] + '_ms']:.3g}",
        f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}",
        f"{found['percent_of_limit']:.0f} % of {who['limit']}",
    ]


def _gpu_verdict(goal: dict[str, Any]) -> str:
    text = f"{goal['bound']:g}×" if goal["kind"] == "peers" else goal["text"]
    return f"{text} {'met' if goal['met'] else '**missed**'}"


def _gpu_peer(row: dict[str, Any], found: dict[str, Any], peer: str) -> str:
    who = row["contenders"].get(peer)
    if who is None:
        return ""
    if who["status"] != "ok":
        return "wrong" if who["status"] == "failed" else "none"
    return f"{found['peer_ratios'][peer]:.2f}×"


def gpu_section(run: dict[str, Any] | None) -> str:
    """Return what the README says of a run on a GPU; nothing where there is none."""
    if run is None:
        return ""
    goals = run["goals"]
    met = sum(goal["met"] for goal in goals)
    lines = [f"Targets on this GPU: {met} of {len(goals)} met, over all rows."] if goals else []
    lines += [f"Peer left out: {name}: {why}." for name, why in run["environment"]["absent_peers"].items()]
    counts = Counter(run["left_out"].values())
    lines += [f"Not on this GPU: {count} rows; {why}." for why, count in counts.items()]
    reading = (
        "*ms*: replayed from a CUDA graph. *Of limit*: in percent of what the kernel's own instruction "
        "reaches from registers, or copying memory (bytes read and written), in the same rounds. A backend's "
        "*2.00×*: it takes twice our time in the same round, both from graphs. *Emulated*: the card has no "
        "such instruction, the compiler replaces it."
    )
    rows = gpu_tables(run, only=gpu_headline, older=gpu_older)
    parts = [gpu_machine(run), *([rows] if rows else []), "  \n".join(lines), reading]
    return "### On a GPU\n\n" + "\n\n".join(parts)


def section(run: dict[str, Any] | None, gpu_run: dict[str, Any] | None = None) -> str:
    """Return what belongs between the README's markers."""
    return "\n\n".join(part for part in (_cpu_section(run), gpu_section(gpu_run)) if part)


def _cpu_section(run: dict[str, Any] | None) -> str:
    if run is None:
        return NOTHING
    reading = (
        "*Of limit*: in percent of what probes reached on the same cores just before and just after: "
        "arithmetic for prefill, for decode reading the same keys and values or arithmetic, whichever takes "
        "longer; the median of the rounds. *Spread*: half the way from the worst "
        "round to the best. A library's *2.00×*: it takes twice our time in the same round."
    )
    if run.get("goals"):
        reading += (
            " *Target*: a percentage of the limit, a part of another row's speed, or, with ×, beside the "
            "fastest library."
        )
    parts = [
        machine(run),
        tables(run, only=headline),
        *(["  \n".join(found)] if (found := remarks(run)) else []),
    ]
    return "\n\n".join([*parts, reading])


def fill(readme: str, text: str) -> str:
    """Return the README with `text` between the markers.

    Raises
    ------
    ValueError
        When a marker is missing, doubled, or they stand in the wrong order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README: expected one {BEGIN} and then one {END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Update the README, or with ``--check`` only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file to fill")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="the folder with the results")
    args = parser.parse_args(argv)
    old = args.readme.read_text(encoding="utf-8")
    text = section(newest(args.results), newest(args.results, gpu=True))
    new = fill(old, "\n\n".join(filter(None, [text, readme_offload.section(args.results)])))
    if args.check:
        if new != old:
            print(f"{args.readme} is out of date: run python docs/update_readme.py", file=sys.stderr)
        return int(new != old)
    args.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
