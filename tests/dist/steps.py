"""Steps of a check: each runs, says how it went and how long it took; a failed one does not hide the next."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: What would change how another environment's interpreter, pip or the package behaves.
_OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "FASTATTENTION_ISA", "PIP_QUIET")
_TAIL = 40  # lines of a command's output that tell why it failed


class Failed(Exception):  # noqa: N818 (what happened to a step)
    """What is wrong, for whoever has to mend it."""


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment as a newcomer's, with `changes`."""
    return {name: value for name, value in os.environ.items() if name not in _OURS} | changes


def attempt(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return its exit code, and all that it said as its standard output."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=environment() if env is None else env, check=False, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def output(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Return what a command says; when its exit code is not 0, `Failed` shows how it ended."""
    done = attempt(*command, cwd=cwd, env=env)
    if done.returncode:
        told = "\n".join(done.stdout.splitlines()[-_TAIL:])
        raise Failed(f"$ {' '.join(map(str, command))}\n{told}\n(exit code {done.returncode})")
    return done.stdout


class Steps:
    """Runs steps and remembers which failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, name: str, function: Callable[[], str]) -> bool:
        """Run one step, which returns a remark or raises `Failed`; return whether it went well."""
        begin = time.perf_counter()
        try:
            remark = function()
        except Failed as problem:
            self.failed.append(name)
            print(f"FAILED  {name}\n{problem}\n", flush=True)
            return False
        print(
            f"ok {time.perf_counter() - begin:4.0f} s  {name}" + (f": {remark}" if remark else ""), flush=True
        )
        return True
