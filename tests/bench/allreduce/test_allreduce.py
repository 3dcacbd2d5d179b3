"""AllReduce in tiles, benchmarked: what is wrong is noticed, what is timed is written and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastattention.bench.allreduce import results
from fastattention.bench.allreduce.cases import AllReduceCase, select
from fastattention.bench.allreduce.measure import WrongOutputError, check, measure_case, operands
from fastattention.cli import main
from fastattention.runtime.communicator import Single
from fastattention.runtime.tensor_parallel import overlapped, projection

from ...runtime.ranks import needs_mpi

CASE = AllReduceCase(64, 96, "float32", 16)


@pytest.fixture(scope="module")
def row() -> results.Row:
    return measure_case(Single(), CASE, repeats=3, threads=1)


def test_every_way_is_timed(row: results.Row) -> None:
    for name in (
        "compute",
        "sum",
        "in sequence",
        "n = 2",
        "n = 4",
        "n = 8",
        "projection",
        "projection, n = 4",
    ):
        assert len(row.ways[name].seconds) == 3
        assert min(row.ways[name].seconds) > 0
    assert row.chosen in row.ways
    assert sum(row.formula_sizes) == 96
    assert row.ways["n = 4"].sizes == [24] * 4
    assert row.error <= 1


def test_figures_follow_from_times(row: results.Row) -> None:
    row.ways["in sequence"].seconds[:] = [3.0, 4.0, 5.0]
    row.ways["n = 2"].seconds[:] = [2.0, 2.0, 2.0]
    row.chosen, row.formula, row.ways["in sequence"].predicted = "n = 2", 1.0, 2.5
    assert row.speedup("n = 2") == 2.0
    assert row.share == pytest.approx(2.0 / 2.5)
    share, never_slower = results.judge(row)
    assert not share.met
    assert never_slower.met
    row.ways["n = 2"].seconds[:] = [4.2, 4.2, 4.2]
    assert not results.judge(row)[1].met


@pytest.mark.parametrize("fault", ["a row is left out", "a block is wrong", "all is wrong"])
def test_wrong_outputs_are_noticed(fault: str) -> None:
    group = Single()
    operand = operands(group, CASE)
    step = projection(*operand, group, {"causal": True})

    def faulty(start: int, stop: int, rows: np.ndarray) -> None:
        keep = rows[-1].copy()
        step(start, stop, rows)
        if fault == "a row is left out" and stop - start < 96:
            rows[-1] = keep
        elif fault == "all is wrong" or (fault == "a block is wrong" and start == 48):
            rows *= 1.01

    def run(out, sizes):
        overlapped(faulty, out, sizes, group)

    with pytest.raises(WrongOutputError, match="in sequence" if fault == "all is wrong" else "halves"):
        check(group, operand, run, {"halves": [48, 48]})


def test_file_is_read_and_drawn(row: results.Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    environment = {"cpu": "some CPU", "ranks": 1, "engine": "MPI", "versions": {}}
    run = results.Run("2026-01-01T00:00:00", environment, {}, [row], goals=results.judge(row))
    path = tmp_path / "allreduce.json"
    results.save(run, path)
    assert results.load(path) == run
    assert main(["bench", "--plot", str(path)]) == 0
    assert path.with_suffix(".png").stat().st_size > 1000
    with pytest.raises(ValueError, match="schema 'x'"):
        results.from_json({"schema": "x"})


def test_cases() -> None:
    gpus = select("gpus", False, None)
    assert {(case.hidden, case.tokens) for case in gpus} == {
        (hidden, tokens) for hidden in (4096, 8192) for tokens in (4096, 8192, 16384, 32768)
    }
    assert {case.dtype for case in gpus} == {"float16"}
    assert [case.tokens for case in select("gpus", False, "hidden4096 S8192")] == [8192]
    assert 0 < len(select("mpi", True, None)) < len(select("mpi", False, None))
    group = Single()
    group.size = 5
    with pytest.raises(ValueError, match="5 ranks can share"):
        operands(group, CASE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "2"], "--ranks goes with --allreduce only"),
        (["--gpus"], "--gpus goes with --allreduce only"),
        (["--allreduce", "--isa", "avx2"], "no --isa"),
        (["--allreduce", "--filter", "nonsense"], "no row of --allreduce matches"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@needs_mpi
def test_on_two_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    path = tmp_path / "found.json"
    words = ["--allreduce", "--quick", "--seed", "3", "--filter", "hidden512", "--threads", "1", "--no-plots"]
    assert main(["bench", *words, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["environment"]["ranks"] == 2
    assert content["options"]["seed"] == 3
    assert content["rows"][0]["costs"]["communication"] > 0
    assert "plain streams" in capfd.readouterr().out
