"""Ranks on GPUs through NCCL: as many as there are, up to 4."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastattention import gpu

_reason = gpu.why_not()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_reason), reason=f"no CUDA device: {_reason}")]
RUNTIME = Path(__file__).parents[1] / "runtime"


def _gpus() -> int:
    return 0 if gpu.why_not() else int(gpu.load_cupy().cuda.runtime.getDeviceCount())


def launch(ranks: int, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if _gpus() < ranks:
        pytest.skip(f"needs {ranks} GPUs, there are {_gpus()}")
    start = [sys.executable, "-m", "fastattention", "launch", "-n", str(ranks), "--gpus"]
    command = [*start, str(RUNTIME / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("blocks", ["null", "4", "[1, 30, 6]"])
def test_same_as_unsplit(ranks, dtype, blocks):
    done = launch(ranks, "ranks_projected.py", dtype, blocks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agrees") == ranks


@pytest.mark.parametrize("fault", ["shapes", "dtypes", "options", "blocks"])
def test_disagreement_is_refused_on_every_rank(fault):
    done = launch(2, "ranks_faults.py", fault)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: None") == 0
    assert done.stdout.count("refused: ") == 2


@pytest.mark.parametrize("fault", ["raises", "dies", "exits"])
def test_a_rank_that_ends_takes_the_others_along(fault):
    done = launch(2, "ranks_faults.py", fault)
    assert done.returncode != 0
    assert "all ranks are stopped" in done.stderr
