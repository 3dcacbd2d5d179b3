"""Coverage-guided fuzzing of the Python layer: ``make fuzz-python`` runs it.

atheris changes bytes so that they reach new lines; tests/fuzz/ makes a call of `fastattention.attention`, or
a GGUF file, of them, and says what must come of it. The corpora committed there are where each run begins;
what it adds stays in build/fuzz/. A finding ends the run, and its bytes lie in build/fuzz/ for replaying::

    python -m tests.fuzz.fuzz_gguf build/fuzz/gguf-crash-...

    python -m tests.fuzz_python [--seconds 60] [--inputs 20000] [--seed 1] [--only gguf] [--jobs 2]
                                [--workers 4] [--record]
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastattention
from fastattention.bench.environment import describe

ROOT = Path(__file__).resolve().parents[1]
CORPORA, WORK = ROOT / "tests" / "fuzz" / "corpus", ROOT / "build" / "fuzz"
#: What is fuzzed: its module, and the longest input in bytes.
TARGETS = {"attention": ("tests.fuzz.fuzz_python_attention", 160), "gguf": ("tests.fuzz.fuzz_gguf", 9000)}


def fuzz(name: str, seconds: int, inputs: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Run one target until either limit (-1 inputs: none); return what it tried, and what it found.

    Each worker is a process that draws by a seed of its own; they share the folder of inputs, and read there
    what the others have found.
    """
    with ThreadPoolExecutor(workers) as pool:  # each waits for a process
        parts = list(pool.map(lambda i: _run(name, seconds, inputs, seed + i), range(workers)))
    return {
        "seconds": seconds,
        "seed": seed,
        "workers": workers,
        "executions": sum(part["executions"] for part in parts),
        "edges": max(part["edges"] for part in parts),
        "features": max(part["features"] for part in parts),
        "finding": next((part["finding"] for part in parts if part["finding"]), None),
    }


def _run(name: str, seconds: int, inputs: int, seed: int) -> dict[str, Any]:
    """Let one process fuzz; return its counts, and the end of what it printed if it failed."""
    module, longest = TARGETS[name]
    found = WORK / name
    found.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", module, str(found), str(CORPORA / name), f"-max_total_time={seconds}",
        f"-runs={inputs}", f"-seed={seed}", f"-max_len={longest}", "-timeout=10", "-rss_limit_mb=3000",
        "-print_final_stats=1", f"-artifact_prefix={WORK / name}-",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    executed = re.search(r"stat::number_of_executed_units: *(\d+)", done.stderr)
    covered = re.findall(r" cov: (\d+) ft: (\d+)", done.stderr)
    result: dict[str, Any] = {
        "executions": int(executed[1]) if executed else 0,
        "edges": int(covered[-1][0]) if covered else 0,
        "features": int(covered[-1][1]) if covered else 0,
        "finding": None,
    }
    if done.returncode:
        text = (done.stdout + done.stderr).replace(f"{ROOT}/", "")
        lines = [x for x in text.splitlines() if not re.match(r"#\d|INFO|WARNING", x)]
        result["finding"] = lines[-60:]
    return result


def main() -> int:
    """Fuzz, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--inputs", type=int, default=-1, help="at most so many (default: no limit)")
    parser.add_argument("--seed", type=int, help="of all that is drawn (default: another one each time)")
    parser.add_argument("--only", choices=TARGETS, help="one target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once (default 1)")
    parser.add_argument("--workers", type=int, default=1, help="processes for each target (default 1)")
    parser.add_argument("--record", action="store_true", help="write results/fuzz-python-*.json")
    args = parser.parse_args()
    seed = secrets.randbelow(2**31) + 1 if args.seed is None else args.seed
    print(f"seed {seed}")
    names = [args.only] if args.only else list(TARGETS)
    targets = {}
    with ThreadPoolExecutor(args.jobs) as pool:  # each waits for a process
        running = [pool.submit(fuzz, name, args.seconds, args.inputs, seed, args.workers) for name in names]
        for name, job in zip(names, running, strict=True):
            print(f"{name}: at most {args.seconds} s", flush=True)
            result = targets[name] = job.result()
            print(
                f"  {result['executions']} inputs, {result['edges']} edges, {result['features']} features",
                flush=True,
            )
            if result["finding"]:
                print("  FOUND", *result["finding"], sep="\n  ")
    if args.record:
        now = datetime.now(UTC)
        content = {
            "schema": "fuzz-python-1",
            "date": now.isoformat(timespec="seconds"),
            "environment": {**describe(fastattention.get_isa()), "atheris": version("atheris")},
            "targets": targets,
        }
        path = ROOT / "results" / f"fuzz-python-{now:%Y-%m-%d-%H%M}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print("Wrote", path)
    return 1 if any(result["finding"] for result in targets.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
