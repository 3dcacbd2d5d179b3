"""Real ranks of MPI, by ``fastattention launch``: the same answer as one rank, and faults that end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .ranks import HERE, launch, needs_mpi

pytestmark = needs_mpi

COSTS = {"compute": 1.0, "communication": 0.7, "compute_overhead": 0.01, "communication_overhead": 0.02}


@pytest.mark.parametrize(
    ("ranks", "dtype", "blocks"),
    [
        (1, "float32", None),
        (2, "float32", None),
        (2, "float16", [1, 30, 6]),
        (3, "bfloat16", 5),
        (4, "float32", COSTS),
        (4, "float32", 37),
    ],
)
def test_same_as_unsplit(ranks, dtype, blocks):
    done = launch(ranks, "ranks_projected.py", dtype, json.dumps(blocks))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agrees") == ranks


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shapes", r"q: expected the same on every rank, got .*5.* on rank 0, .*6.* on rank 1"),
        ("dtypes", r"q: expected the same on every rank, got float32 .* on rank 0, float16 .* on rank 1"),
        ("options", r"causal: expected the same on every rank, got False on rank 0, True on rank 1"),
        ("blocks", r"rank 1: blocks: expected 1 to Sq = 5 of them, got 6"),
    ],
)
def test_disagreement_is_refused_on_every_rank(fault, message):
    done = launch(2, "ranks_faults.py", fault)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("refused: " + message, done.stdout)) == 2, done.stdout


@pytest.mark.parametrize(
    ("fault", "message"),
    [("raises", "out of luck"), ("dies", "all ranks are stopped"), ("exits", "all ranks are stopped")],
)
def test_a_rank_that_ends_takes_the_others_along(fault, message):
    started = time.monotonic()
    done = launch(3, "ranks_faults.py", fault, timeout=40)
    assert time.monotonic() - started < 30
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_launcher(kind):
    start = [sys.executable, "-m", "fastattention", "launch", "-n", "2", "--mpi"]
    command = [*start, str(HERE / "ranks_faults.py"), "waits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        process.send_signal(kind)
        process.wait(30)
        end = time.monotonic() + 20
        while (alive := [pid for pid in pids if _runs(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        assert not alive


def _runs(pid: int) -> bool:
    """Return whether there is such a process that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
