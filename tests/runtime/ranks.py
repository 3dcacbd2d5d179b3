"""Starts this folder's scripts on MPI ranks, with a limit of time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def why_not() -> str:
    """Return why no MPI ranks can be started here; empty where they can. A process of its own finds out."""
    code = "from fastattention.runtime.mpi import load_mpi; load_mpi()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


_reason = why_not()
needs_mpi = pytest.mark.skipif(bool(_reason), reason=_reason or "there is MPI")


def launch(ranks: int, script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder by ``fastattention launch --mpi``."""
    start = [sys.executable, "-m", "fastattention", "launch", "-n", str(ranks), "--mpi"]
    command = [*start, str(HERE / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )
