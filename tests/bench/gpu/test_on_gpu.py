"""The quick benchmark for real, where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastattention import cli, gpu
from fastattention.bench.gpu import results
from fastattention.bench.gpu.cases import select

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(gpu.why_not()), reason=f"no CUDA device: {gpu.why_not()}"),
]


def test_quick(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="the benchmark's report needs the extra bench")
    path = tmp_path / "out.json"
    assert cli.main(["bench", "--gpu", "--quick", "--no-plots", "--json", str(path)]) == 0
    run = results.load(path)
    assert len(run.rows) + len(run.left_out) == len(select("quick"))
    assert run.rows, run.left_out
    for name, values in run.limits.items():
        assert min(values) > (1 if name != "copy" else 50), name  # TFLOP/s; GB/s
        assert max(values) < 1.5 * min(values), name
    for row in run.rows:
        for name in row.ours:
            assert row.contenders[name].not_captured == ""
            assert 0.1 < row.percent(name) < 130, (row.case.name, name)
        # A peer may have no kernel, but is right where it has one.
        assert all(row.contenders[name].status != "failed" for name in row.peers), row.contenders
