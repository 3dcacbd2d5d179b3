"""The C++ under tools that watch what it does with memory and threads: what ``make sanitize`` runs.

    python tests/run_sanitizers.py [--quick] [--only address|threads|valgrind]

Each tool has a build of its own in build/sanitize/. Two kinds of callers are watched: the kernels' tests,
from Python, and tests/native/calls.cpp, which makes random calls from several threads and checks each result.

Both sanitizers are Clang's:

address     AddressSanitizer and UndefinedBehaviorSanitizer: reads and writes outside arrays, use after free,
            shifts and casts and sums of integers that C++ leaves undefined. GCC has them, too, but takes a
            quarter of an hour to compile the kernels with them.
threads     ThreadSanitizer. GCC's OpenMP is not instrumented, so that each of its barriers
            would look like a race, while LLVM's tells ThreadSanitizer what it does (Archer).
valgrind    memcheck: decisions that depend on memory that nobody wrote. It runs kernels up to AVX2.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "sanitize"
NATIVE = ["-Dnative_tests=true", "-Ddebug=true", "-Db_ndebug=false"]

#: Tests of the kernels that call them by many ways; a quick run takes every fifth case of the first alone.
KERNEL_TESTS = (
    "tests/test_attention.py", "tests/test_decode.py", "tests/test_paged.py", "tests/test_quantized.py",
    "tests/test_varlen.py", "tests/test_layouts.py", "tests/runtime/test_host_step.py",
)  # fmt: skip


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
    """Run a command and show it; leave where it fails."""
    shown = " ".join(str(part) for part in command)
    print(f"$ {shown}", flush=True)
    done = subprocess.run([str(part) for part in command], env=os.environ | (env or {}), cwd=cwd, check=False)
    if done.returncode:
        raise SystemExit(f"failed ({done.returncode}): {shown}")


def need(program: str, package: str) -> str:
    """Return a program's path, or say what to install."""
    found = shutil.which(program)
    if found is None:
        raise SystemExit(f"{program} is not on PATH: apt-get install {package}")
    return found


def file_of(clang: str, name: str, package: str) -> Path:
    """Return the path of a file that comes with Clang, or say what to install."""
    asked = subprocess.run(
        [clang, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    found = (
        [Path(asked)] if Path(asked).is_absolute() else sorted(Path("/usr/lib").glob(f"llvm-*/lib/{name}"))
    )
    if not found:
        raise SystemExit(f"{name} was not found: apt-get install {package}")
    return found[-1]


def build_calls(folder: Path, *options: str, env: dict[str, str] | None = None) -> Path:
    """Build tests/native/calls.cpp and return its path."""
    if not (folder / "build.ninja").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run("meson", "setup", folder, *NATIVE, *options, env=env)
    program = folder / "cpu_kernels" / "calls"
    run("ninja", "-C", folder, program.relative_to(folder))
    return program


def address(quick: bool) -> None:
    """Run random calls and the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer."""
    clang = need("clang++", "clang libomp-dev")
    compilers = {"CC": "clang", "CXX": clang}
    flags = ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Doptimization=1"]
    # Python, and libraries that it loads, never free some of what they have: leaks are no findings here.
    env = {
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    calls = build_calls(WORK / "address", *flags, env=compilers)
    run(calls, "1500" if quick else "20000", "2", env=env)
    site, tree = WORK / "site", WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    # Python is not built with the sanitizer, so its library is one that can be loaded before all others.
    flags += ["-Dcpp_link_args=-shared-libasan", "-Dc_link_args=-shared-libasan"]
    settings = [f"-Csetup-args={flag}" for flag in flags]
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-build-isolation", "--no-deps",
        "--target", site, f"-Cbuild-dir={WORK / 'package'}", *settings, ROOT, env=compilers,
    )  # fmt: skip
    for name in ("tests", "reference", "pyproject.toml"):
        (tree / name).symlink_to(ROOT / name)
    library = file_of(clang, "libclang_rt.asan-x86_64.so", "libclang-rt-dev")
    paths = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    # Not the environment's interpreter: an editable install of the package there would be found first.
    python = getattr(sys, "_base_executable", sys.executable)
    env |= {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONMALLOC": "malloc",
    }
    chosen = KERNEL_TESTS[:1] if quick else KERNEL_TESTS
    run(python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen, env=env, cwd=tree)


def threads(quick: bool) -> None:
    """Run concurrent calls, each with a team of its own, under ThreadSanitizer."""
    clang = need("clang++", "clang libomp-dev")
    archer = file_of(clang, "libarcher.so", "libomp-dev")
    calls = build_calls(
        WORK / "threads", "-Db_sanitize=thread", "-Db_lundef=false", "-Doptimization=1",
        env={"CC": "clang", "CXX": "clang++"},
    )  # fmt: skip
    number = "400" if quick else "4000"
    stop = "halt_on_error=1"
    # Archer takes one call to be over before the next begins on another thread, where its own memory is used
    # again. So races between calls are looked for where no call has a team, and without it.
    run(calls, number, "4", "0", "1", env={"TSAN_OPTIONS": stop, "OMP_TOOL": "disabled"})
    env = {
        "OMP_TOOL_LIBRARIES": str(archer),
        "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:{stop}",
    }
    for callers in ("1", "4"):
        run(calls, number, callers, callers, env=env)


def valgrind(quick: bool) -> None:
    """Run random calls under valgrind's memcheck."""
    tool = need("valgrind", "valgrind")
    calls = build_calls(WORK / "valgrind", "-Doptimization=1")
    run(tool, "--quiet", "--error-exitcode=1", calls, "40" if quick else "400")


TOOLS: dict[str, Callable[[bool], None]] = {
    "address": address,
    "threads": threads,
    "valgrind": valgrind,
}


def main() -> None:
    """Run the tools that were asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer calls, and one file of tests")
    parser.add_argument("--only", choices=TOOLS, help="one tool")
    args = parser.parse_args()
    for name, tool in TOOLS.items():
        if args.only in (None, name):
            start = time.monotonic()
            tool(args.quick)
            print(f"{name}: nothing found, {time.monotonic() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
