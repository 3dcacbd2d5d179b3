"""How many faults put into the reference and into validation the tests notice: ``make mutation`` runs it.

cosmic-ray changes one operator, comparison, constant or statement at a time, in a copy of the package, and
the tests run: first those that name the module, then all of its room. A fault that none notices has
survived. Of the thousands that there are, a random sample is tried, the same one for the same seed.
Annotations are left alone: nothing reads them.

    python tests/measure_mutation.py [--count 200] [--seed 0] [--only reference/tiling.py] [--record]
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutation"
SITE, TREE = WORK / "site", WORK / "tree"
PACKAGE = SITE / "fastattention"

#: What is changed, and the tests that are held to it.
ROOMS = {
    "reference": "tests/reference",
    "validate.py": "tests/api tests/test_attention.py",
    "arguments.py": "tests/api tests/test_attention.py",
}
PATIENCE = 4  # times what a room's tests take without a fault; one that takes longer is told as timed out


def build() -> None:
    """Install a copy to change, and lay out the checkout beside it, without the package."""
    shutil.rmtree(WORK, ignore_errors=True)
    TREE.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--target", SITE, ROOT], check=True)
    for entry in ROOT.iterdir():
        if entry.name not in ("fastattention", "reference", "build", "dist", ".git", ".venv"):
            # Tests are copied: one may go on writing them while this runs.
            if entry.name == "tests":
                shutil.copytree(entry, TREE / "tests", ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (TREE / entry.name).symlink_to(entry)
    (TREE / "reference").symlink_to(PACKAGE / "reference")  # the specification is imported by both names


def mutants(only: str | None) -> list[Any]:
    """Return every change that could be made, as cosmic-ray's work items."""
    paths = sorted(path for room in ROOMS for path in _files(PACKAGE / room))
    if only:
        paths = [path for path in paths if str(path.relative_to(PACKAGE)) == only]
        if not paths:
            raise SystemExit(f"--only: expected a file of {', '.join(ROOMS)}, got {only}")
    with use_db(str(WORK / "session.sqlite"), WorkDB.Mode.create) as session:
        init(paths, session, {})
        found = list(session.work_items)
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    idle = {path: set(_annotations(tree)) for path, tree in trees.items()}
    signs = {path: set(_operators(tree)) for path, tree in trees.items()}

    def counts(mutation: Any) -> bool:
        path = mutation.module_path
        # A lone * or / in a signature is taken for an operator.
        real = "BinaryOperator" not in mutation.operator_name or _within(mutation, signs[path])
        return real and not _within(mutation, idle[path])

    return [item for item in found if counts(item.mutations[0])]


def _files(room: Path) -> Iterator[Path]:
    if room.is_file():
        yield room
    else:
        yield from (path for path in room.rglob("*.py") if path.name != "__init__.py")


Span = tuple[int, int, int, int]  # line and column of the first character, and behind the last


def _span(node: ast.expr) -> Span:
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0


def _operators(tree: ast.Module) -> Iterator[Span]:
    """Yield what lies between the two sides of each operator."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            yield (*_span(node.left)[2:], *_span(node.right)[:2])
        elif isinstance(node, ast.AugAssign):
            yield (*_span(node.target)[2:], *_span(node.value)[:2])


def _annotations(tree: ast.Module) -> Iterator[Span]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.expr):
                yield _span(part)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias" and node.value:
            yield _span(node.value)


def _within(mutation: Any, spans: set[Span]) -> bool:
    start, end = mutation.start_pos, mutation.end_pos
    return any((a, b) <= start and end <= (c, d) for a, b, c, d in spans)


def command(path: Path) -> str:
    """Return the shell command that tests a module: what names it first, and where that passes, all."""
    room = path.relative_to(PACKAGE).parts[0]
    near = [
        str(test.relative_to(ROOT))
        for folder in ROOMS[room].split()
        for test in sorted(
            (ROOT / folder).rglob("test_*.py") if (ROOT / folder).is_dir() else [ROOT / folder]
        )
        if path.stem in test.stem or f".{path.stem} import" in test.read_text(encoding="utf-8")
    ]
    python = shlex.quote(getattr(sys, "_base_executable", sys.executable))
    pytest = f"{python} -m pytest -q -x -p no:cacheprovider"
    steps = [f"{pytest} {' '.join(near)}"] if near else []
    return " && ".join([*steps, f"{pytest} {ROOMS[room]}"])


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """Let tests find the changed copy and not the environment's own installation."""
    paths = [str(SITE), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    before = Path.cwd()
    os.chdir(TREE)
    try:
        yield
    finally:
        os.chdir(before)
        del os.environ["PYTHONPATH"]


def try_all(chosen: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each change and what became of it."""
    limits = {}
    with surroundings():
        for room in sorted({_room(item.mutations[0]) for item in chosen}):
            whole = command(PACKAGE / room)
            start = time.monotonic()
            if subprocess.run(["sh", "-c", whole], check=False, capture_output=True).returncode:
                raise SystemExit(f"the tests fail without a fault: {whole}")
            limits[room] = 10 + PATIENCE * (time.monotonic() - start)
            print(f"{room}: tests may take {limits[room]:.0f} s", flush=True)
        for item in chosen:  # as drawn: what was tried by an interruption is a random sample, too
            mutation = item.mutations[0]
            whole = f"sh -c {shlex.quote(command(mutation.module_path))}"
            yield mutation, mutate_and_test(item.mutations, whole, limits[_room(mutation)])


def _room(mutation: Any) -> str:
    return str(mutation.module_path.relative_to(PACKAGE).parts[0])


def main() -> int:
    """Sample, try, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="how many faults to try (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="which of them (default 0)")
    parser.add_argument("--only", help="one file, as reference/tiling.py")
    parser.add_argument("--record", action="store_true", help="write results/mutation-<date>.json")
    args = parser.parse_args()
    build()
    everything = mutants(args.only)
    chosen = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    print(f"{len(everything)} faults are possible, {len(chosen)} are tried", flush=True)
    outcomes: Counter[str] = Counter()
    by_file: dict[str, Counter[str]] = {}
    survivors = []
    with contextlib.suppress(KeyboardInterrupt):  # what was tried until then is told and recorded
        for mutation, result in try_all(chosen):
            name = str(mutation.module_path.relative_to(PACKAGE))
            outcome = (
                str(result.test_outcome.value) if result.test_outcome else str(result.worker_outcome.value)
            )
            if result.output == "timeout":  # cosmic-ray counts it with what a test noticed
                outcome = "timed out"
            outcomes[outcome] += 1
            by_file.setdefault(name, Counter())[outcome] += 1
            print(f"{outcome:12} {name}:{mutation.start_pos[0]} {mutation.operator_name}", flush=True)
            if outcome == "survived":
                lines = (result.diff or "").splitlines()
                change = [x for x in lines if x[:1] in ("+", "-") and x[:3] not in ("+++", "---")]
                survivors.append({"file": name, "line": mutation.start_pos[0], "change": change})
                print("   ", "\n    ".join(change), flush=True)
    killed = 100 * (1 - outcomes["survived"] / max(1, outcomes.total()))
    print(f"{killed:.1f} % of {outcomes.total()} faults noticed")
    now = datetime.now(UTC)
    content = {
        "schema": "mutation-1",
        "date": now.isoformat(timespec="seconds"),
        "environment": {"python": platform.python_version(), "cosmic-ray": version("cosmic-ray")},
        "possible": len(everything),
        "seed": args.seed,
        "killed_percent": killed,
        "outcomes": outcomes,
        "files": by_file,
        "survivors": survivors,
    }
    path = (ROOT / "results" if args.record else WORK) / f"mutation-{now.date()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("Wrote", path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
