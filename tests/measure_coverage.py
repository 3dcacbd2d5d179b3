"""Which lines and branches the tests reach, of the Python and of the C++: what ``make coverage`` runs.

The package is built once more, its C++ instrumented, into a folder of its own; the tests run against that,
and what they reached is counted by coverage.py and gcovr. Modules that need a GPU are not counted, nor are
kernels of instruction sets that this processor does not have; the result names both.

    python tests/measure_coverage.py [--record] [pytest's arguments]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "coverage"
SITE, TREE, CPP = WORK / "site", WORK / "tree", WORK / "cpp"

#: What needs a device, by pattern; a test with a GPU reaches it (`make test-gpu`).
NEED_GPU = (
    "gpu/*", "bench/gpu/*", "runtime/cuda_device.py", "runtime/nccl.py", "offload/detect_gpu.py",
    "cache_device.py", "device.py", "explain_gpu.py",
)  # fmt: skip

#: What only some processors can run: the instruction sets, any of which reaches it, and its sources.
NEED_SETS = (
    (("amx",), ("isa/amx.cpp", "isa/pairs_amx.hpp", "isa/tiles.hpp", "table_amx.hpp", "decode_amx.hpp",
                "tile_operands.hpp")),
    (("avx512_bf16",), ("isa/avx512_bf16.cpp", "table_bf16.hpp")),
    (("avx512_bf16", "amx"), ("isa/pairs_dot.hpp", "prefill_bf16.hpp")),
    (("avx512_vnni",), ("isa/avx512_vnni.cpp", "table_vnni.hpp", "decode_vnni.hpp", "vnni_operands.hpp")),
)  # fmt: skip

#: It needs a checkout's package, which is not built in place; here that name is the installed copy's.
UNBUILT = "tests/api/test_sound_input.py::test_import_from_a_source_checkout_says_what_to_do"

#: What each process of the tests does first, where the tests' own installation lies on its path.
_START = """\
import coverage
coverage.process_startup()
"""

_CONFIG = """\
[run]
branch = true
parallel = true
source = {site}/fastattention
omit = {omit}
data_file = {work}/data
patch = _exit
[report]
exclude_also =
    if TYPE_CHECKING:
    ^\\s*\\.\\.\\.$
"""


def not_runnable() -> tuple[list[str], list[str]]:
    """Return the instruction sets that this processor lacks, and the sources that are for them alone."""
    code = "from fastattention.cpu_kernels import *; print(*ISAS); print(*available_isas())"
    answer = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=WORK).splitlines()
    every, isas = (line.split() for line in answer)
    sources = [source for sets, sources in NEED_SETS if not set(sets) & set(isas) for source in sources]
    return [isa for isa in every if isa not in isas], sources


def run(*command: str | Path, **options: Any) -> int:
    """Run a command and show it; return its exit code."""
    print("$", " ".join(map(str, command)), flush=True)
    return subprocess.run([str(part) for part in command], check=False, **options).returncode


def build() -> None:
    """Install the package, instrumented, and lay out a tree of the checkout without it."""
    shutil.rmtree(WORK, ignore_errors=True)
    TREE.mkdir(parents=True)
    failed = run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps",
        "--target", SITE, f"-Cbuild-dir={CPP}", "-Csetup-args=-Db_coverage=true", ROOT,
    )  # fmt: skip
    if failed:
        raise SystemExit("the instrumented build failed")
    for entry in ROOT.iterdir():
        if entry.name not in ("fastattention", "reference", "build", "dist", ".git", ".venv"):
            # Tests are copied: one may go on writing them while this runs.
            if entry.name == "tests":
                shutil.copytree(entry, TREE / "tests", ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (TREE / entry.name).symlink_to(entry)
    # The specification by its other name, and the folder in which tests read sources.
    (TREE / "fastattention").symlink_to(SITE / "fastattention")
    (TREE / "reference").symlink_to(SITE / "fastattention" / "reference")
    (SITE / "sitecustomize.py").write_text(_START, encoding="utf-8")
    omit = "\n    ".join(["", *(f"{SITE}/fastattention/{pattern}" for pattern in NEED_GPU)])
    text = _CONFIG.format(site=SITE, work=WORK, omit=omit)
    (WORK / "config").write_text(text, encoding="utf-8")


def measure(arguments: list[str]) -> bool:
    """Run the tests; whether they passed."""
    # Not the environment's interpreter: an editable install of the package there would be found first.
    python = getattr(sys, "_base_executable", sys.executable)
    paths = [str(SITE), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "COVERAGE_PROCESS_START": f"{WORK}/config",
        "LD_LIBRARY_PATH": f"{sys.prefix}/lib",  # MPI's wheel lays its library and its launcher there
        "PATH": os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]]),
    }
    return not run(python, "-m", "pytest", "-q", "--deselect", UNBUILT, *arguments, cwd=TREE, env=env)


def collect() -> dict[str, Any]:
    """Return the shares reached, and what was not, by file."""
    tool = [sys.executable, "-m", "coverage"]
    env = os.environ | {"COVERAGE_RCFILE": f"{WORK}/config"}
    run(*tool, "combine", "-q", env=env)
    run(*tool, "json", "-q", "-o", WORK / "python.json", env=env)
    found = json.loads((WORK / "python.json").read_text(encoding="utf-8"))
    cells = ["--json", WORK / "cpp.json", "--json-summary", WORK / "cpp-summary.json"]
    lacking, left_out = not_runnable()
    # Templates are counted once for each instruction set that they are compiled for.
    folders = [word for isa in lacking for word in ("--exclude-directory", rf".*/lib(fa|ladder)_{isa}\.a\.p")]
    excluded = folders + [word for source in left_out for word in ("--exclude", rf".*/{re.escape(source)}")]
    run(
        Path(sys.executable).with_name("gcovr"), "--root", ROOT / "cpu_kernels", "--object-directory", CPP,
        "--exclude-throw-branches", "--exclude-unreachable-branches", "--exclude", r".*_(native|ladder)\.c",
        *excluded,
        "--merge-mode-functions=merge-use-line-min", "--gcov-ignore-parse-errors=all", *cells, CPP,
    )  # fmt: skip
    cpp = json.loads((WORK / "cpp-summary.json").read_text(encoding="utf-8"))
    files = {
        str((ROOT / name).relative_to(SITE / "fastattention")): content
        for name, content in found["files"].items()
    }
    totals = found["totals"]
    return {
        "python": {
            "lines_percent": 100 * totals["covered_lines"] / totals["num_statements"],
            "branches_percent": 100 * totals["covered_branches"] / totals["num_branches"],
            "lines": totals["num_statements"],
            "branches": totals["num_branches"],
            "left_out": list(NEED_GPU),
            "missing": {
                name: {
                    "percent": content["summary"]["percent_covered"],
                    "lines": content["missing_lines"],
                    "branches": content["missing_branches"],
                }
                for name, content in sorted(files.items())
                if content["missing_lines"] or content["missing_branches"]
            },
        },
        "cpp": {
            "lines_percent": cpp["line_percent"],
            "branches_percent": cpp["branch_percent"],
            "lines": cpp["line_total"],
            "branches": cpp["branch_total"],
            "left_out": [*(f"kernels for {isa}" for isa in lacking), *left_out],
            "files": {
                content["filename"]: {
                    "lines_percent": content["line_percent"],
                    "branches_percent": content["branch_percent"],
                }
                for content in cpp["files"]
            },
        },
    }


def main() -> int:
    """Build, run, print, and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write results/coverage-<date>.json")
    args, rest = parser.parse_known_args()
    build()
    passed = measure(rest)
    found = collect()
    for language, shares in found.items():
        print(
            f"{language}: {shares['lines_percent']:.1f} % of {shares['lines']} lines, "
            f"{shares['branches_percent']:.1f} % of {shares['branches']} branches"
        )
    now = datetime.now(UTC)
    content = {
        "schema": "coverage-1",
        "date": now.isoformat(timespec="seconds"),
        "environment": {"python": platform.python_version(), "machine": platform.machine()},
        "arguments": rest,
        "passed": passed,
        **found,
    }
    folder = ROOT / "results" if args.record else WORK
    path = folder / f"coverage-{now.date()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("Wrote", path)
    return not passed


if __name__ == "__main__":
    sys.exit(main())
