"""Coverage-guided fuzzing of the kernels' C interface by libFuzzer: what ``make fuzz`` runs.

    python tests/fuzz_native.py [--seconds 60] [--jobs 1] [--target FILE] [--record]

Any bytes are a valid call (tests/native/call.hpp): validation is the Python layer's, and fuzzed there. Each
call runs under AddressSanitizer and UndefinedBehaviorSanitizer, with arrays of exactly their size, and its
result is compared with two nested loops. Inputs that reached something new stay in build/fuzz/corpus; a
small selection of them lies in tests/native/corpus and is where each run begins.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from run_sanitizers import NATIVE, ROOT, need, run

import fastattention
from fastattention.bench.environment import describe

WORK = ROOT / "build" / "fuzz"
CORPUS = WORK / "corpus"
SEEDS = ROOT / "tests" / "native" / "corpus"


def build() -> Path:
    """Build the target with Clang and return its path."""
    need("clang++", "clang libomp-dev")
    folder = WORK / "build"
    if not (folder / "build.ninja").exists():
        shutil.rmtree(folder, ignore_errors=True)
        flags = ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Doptimization=1"]
        flags += ["-Dcpp_args=-fsanitize=fuzzer-no-link"]
        run("meson", "setup", folder, *NATIVE, *flags, env={"CC": "clang", "CXX": "clang++"})
    target = folder / "cpu_kernels" / "fuzz_attention"
    run("ninja", "-C", folder, target.relative_to(folder))
    return target


def main() -> None:
    """Build, fuzz, say how much was tried."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the corpus (default 1)")
    parser.add_argument("--target", type=Path, help="what was built before, here or on another machine")
    parser.add_argument("--record", action="store_true", help="write results/fuzz-native-*.json")
    args = parser.parse_args()
    target = args.target or build()
    CORPUS.mkdir(parents=True, exist_ok=True)
    env = os.environ | {
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "ASAN_OPTIONS": "detect_leaks=1",
        "OMP_WAIT_POLICY": "passive",  # calls are short, and threads many
    }
    command = [
        str(target), str(CORPUS), str(SEEDS), f"-max_total_time={args.seconds}", "-max_len=200",
        "-timeout=20", "-print_final_stats=1", f"-artifact_prefix={WORK}/", "-use_value_profile=0",
    ]  # fmt: skip
    print("$", *command, flush=True)
    jobs = []
    for number in range(args.jobs):
        log = (WORK / f"log-{number}.txt").open("w", encoding="utf-8")
        jobs.append((subprocess.Popen(command, env=env, stdout=log, stderr=log), log))
    failed = 0
    for job, log in jobs:
        failed += job.wait() != 0
        log.close()
    texts = [(WORK / f"log-{number}.txt").read_text(errors="replace") for number in range(args.jobs)]
    for text in texts:
        print(
            "".join(text.splitlines(keepends=True)[-30:] if failed else text.splitlines(keepends=True)[-9:])
        )
    if failed:
        raise SystemExit(f"something was found: inputs that repeat it lie in {WORK}")
    calls = sum(int(n) for text in texts for n in re.findall(r"number_of_executed_units: *(\d+)", text))
    edges = max(int(n) for text in texts for n in re.findall(r" cov: (\d+)", text))
    now = datetime.now(UTC)
    found = {
        "schema": "fuzz-native-2",
        "date": now.isoformat(timespec="seconds"),
        "environment": {**describe(fastattention.get_isa()), "compiler": "clang"},
        "seconds": args.seconds,
        "jobs": args.jobs,
        "calls": calls,
        "edges": edges,
        "corpus": len(list(CORPUS.iterdir())),
    }
    print(json.dumps(found))
    if args.record:
        path = ROOT / "results" / f"fuzz-native-{now:%Y-%m-%d-%H%M}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
