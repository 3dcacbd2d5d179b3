"""Fill the README's section of results from the newest file that ``make bench`` left in ``results/``.

Run it from anywhere: ``python docs/update_readme.py``. With ``--check`` it changes nothing and exits with 1
when the README is out of date. The book reads the same files through the functions here. The standard library
is enough.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SCHEMA = 2  # of fastattention/bench/results.py

TITLES = {
    "prefill": "**Prefill**: as many queries as keys. Work counted: visible pairs only.",
    "decode": "**Decode**: one query a head, keys and values read once.",
}
NOTHING = (
    "No measurement is committed yet. `make bench` writes one into `results/`, and "
    "`python docs/update_readme.py` fills this section from it."
)


def newest(folder: Path) -> dict[str, Any] | None:
    """Return the newest benchmark run in `folder` by its own date, or None when there is none.

    Raises
    ------
    ValueError
        When a file is of another schema than this script knows.
    """
    runs = []
    for path in sorted(folder.glob("bench-*.json")):
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if run.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {run.get('schema')!r}, expected {SCHEMA}")
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
    """Return what a case's queries may see, in a word or two."""
    if case["mask"]:
        return f"{case['mask']} mask"
    if case["window"]:
        return f"window of {case['window'][0] + 1 + case['window'][1]}"
    return "causal" if case["causal"] else "full"


def tables(run: dict[str, Any], *, shortest: int = 0) -> str:
    """Return the rows of a run as Markdown tables, prefill and decode apart.

    Parameters
    ----------
    run : dict
        As `newest` returns it.
    shortest : int
        Leave out rows with fewer keys than this.
    """
    parts = []
    for kind, title in TITLES.items():
        rows = [row for row in run["rows"] if row["case"]["kind"] == kind]
        rows = [row for row in rows if row["case"]["k_len"] >= shortest]
        if rows:
            parts.append(f"{title}\n\n{_table(rows)}")
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    unit = rows[0]["summary"]["unit"]
    heads = ["type", "sees", "heads", "D", "keys", "threads", "ms", unit, "of limit", "spread", *peers]
    lines = [heads, ["---", "---"] + ["--:"] * (len(heads) - 2)]
    for row in rows:
        case, summary = row["case"], row["summary"]
        shared = "" if case["q_heads"] == case["kv_heads"] else f"/{case['kv_heads']}"
        cells = [case["dtype"], label(case), f"{case['q_heads']}{shared}"]
        cells += [str(case[name]) for name in ("head_dim", "k_len", "threads")]
        cells += [f"{summary['median_ms']:.3g}", f"{summary['rate']:.1f}"]
        spread = (summary["highest_percent"] - summary["lowest_percent"]) / 2
        cells += [f"{summary['percent_of_limit']:.0f} %", f"±{spread:.0f} %"]
        lines.append(cells + [_peer(row, name) for name in peers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _peer(row: dict[str, Any], name: str) -> str:
    result = row["peers"].get(name)
    if result is None:
        return ""
    if result["status"] != "ok":
        return "wrong" if result["status"] == "failed" else "none"
    return f"{row['summary']['peer_ratios'][name]:.2f}×"


def section(run: dict[str, Any] | None) -> str:
    """Return what belongs between the README's markers."""
    if run is None:
        return NOTHING
    reading = (
        "*Of limit*: in percent of what probes reached on the same cores just before and just after: "
        "arithmetic for prefill, reading the same keys and values for decode; the median of the rounds. "
        "*Spread*: half the way from the worst round to the best. A library's *2.00×*: it takes twice our "
        "time in the same round."
    )
    return f"{machine(run)}\n\n{tables(run, shortest=4096)}\n\n{reading}"


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
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="the folder with bench-*.json")
    args = parser.parse_args(argv)
    old = args.readme.read_text(encoding="utf-8")
    new = fill(old, section(newest(args.results)))
    if args.check:
        if new != old:
            print(f"{args.readme} is out of date: run python docs/update_readme.py", file=sys.stderr)
        return int(new != old)
    args.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
