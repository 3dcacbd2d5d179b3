"""The command: what it measures in which order, what it writes, and what it says when it cannot."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmark's report needs the extra bench")
pytest.importorskip("matplotlib", reason="the benchmark's figures need the extra bench")

from fastattention import cli
from fastattention.bench.offload import measure, results
from fastattention.bench.offload import run as command
from fastattention.bench.offload.cases import WAYS, OffloadCase, select
from fastattention.bench.offload.limits import UNITS

from .fakes import FakeMachine

CASE = OffloadCase("llama-3-8b", 4, 32768, 1, peer=True)


def bench(*arguments: str) -> int:
    """Return the exit code, also where argparse exits by itself."""
    try:
        return cli.main(["bench", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeMachine], FakeMachine]:
    """Make the command find a machine that is none, and its clock the benchmark's."""

    def replace(machine: FakeMachine) -> FakeMachine:
        monkeypatch.setattr(command, "open_machine", lambda threads, host_bytes, seed: machine)
        monkeypatch.setattr(time, "perf_counter", lambda: machine.now)
        return machine

    return replace


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--offload", "--isa", "avx2"], "--isa is about CPUs"),
        (["--offload", "--gpu"], "not allowed with"),
        (["--offload", "--ladder"], "not allowed with"),
        (["--offload", "--filter", "nonsense"], "no row of the default set of --offload matches 'nonsense'"),
        (["--offload", "--quick", "--filter", "S131072"], "no row of the quick set"),
        (["--offload", "--long", "--quick"], "--long is one run"),
        (["--offload", "--long", "--filter", "S32768"], "--long is one run"),
        (["--long"], "--long goes with --offload only"),
        (["--gpu", "--host-memory", "8"], "--host-memory goes with --offload only"),
        (["--offload", "--host-memory", "0"], "a number of GiB above 0"),
        (["--offload", "--host-memory", "lots"], "a number of GiB above 0"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_without_cupy_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    path = tmp_path / "new" / "x.json"
    assert bench("--offload", "--json", str(path)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fastattention bench: --offload: ")
    assert "needs CuPy" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not path.parent.exists()


def test_list_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert bench("--offload", "--list", "--filter", "S131072 B4") == 0
    assert capsys.readouterr().out.split() == ["llama-3-8b/L32/S131072/B4"]


def test_cases_are_those_that_were_promised() -> None:
    names = {case.name for case in select()}
    assert {"llama-3-8b/L32/S32768/B1", "llama-3-8b/L32/S32768/B4", "llama-3-8b/L32/S131072/B1"} < names
    assert {"llama-3-8b/L32/S131072/B4", "llama-7b/L32/S32768/B1", "llama-3-8b/L8/S131072/B1"} < names
    assert [case.name for case in select() if case.peer] == ["llama-3-8b/L8/S131072/B1"]


def test_it_runs_and_writes(
    tmp_path: Path, use: Callable[[FakeMachine], FakeMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = use(FakeMachine())
    path = tmp_path / "out.json"
    assert bench("--offload", "--json", str(path)) == 0
    assert machine.closed
    captured = capsys.readouterr()
    assert {item.name for item in tmp_path.iterdir()} == {"out.json", "out-tokens.png", "out-tokens.svg"}
    run = results.load(path)
    assert [row.case for row in run.rows] == select()
    assert run.options["level"] == "default"
    assert run.options["host_memory_seconds"] == 1.5
    assert {name: len(values) for name, values in run.limits.items()} == dict.fromkeys(UNITS, 2)
    for row in run.rows:
        assert list(row.ways) == list(WAYS)
        assert row.compared_with == "all-GPU"
        assert row.ways["all-GPU"].attention_error is None
        assert row.ways["split"].attention_error == row.ways["split"].logits_error == 0
        assert {len(values) for values in row.limits.values()} == {2}
        assert (row.peer is not None) == row.case.peer
    classical = run.rows[-1].ways["classical"]
    assert classical.step == pytest.approx(32 * 4 * 131072 * 4096 / 54e9)
    assert len(classical.attention) == 3
    assert len(run.rows[0].ways["cooperative"].tokens) > 3
    assert f"Wrote {path}" in captured.out
    assert "llama-7b/L32/S32768/B1" in captured.err
    assert "  cooperative: " in captured.err
    assert "105.0 GB/s by the CPU" in captured.err
    assert run.options["seconds"] == pytest.approx(machine.now)


def test_outputs_come_before_times(use: Callable[[FakeMachine], FakeMachine]) -> None:
    machine = use(FakeMachine())
    row = measure.measure_case(CASE, machine, 1e-9, True)
    steps = [entry[2] for entry in machine.log if entry[1] == "split"]
    checks = ["attend", "rewind", "token 0", "rewind"]
    assert steps[: len(checks)] == checks
    assert steps[len(checks) :] == [*["attend"] * 5, "rewind", *(f"token {n}" for n in range(1, 5))]
    assert len(row.ways["split"].attention) == len(row.ways["split"].tokens) == 3
    assert row.ways["split"].cpu == pytest.approx(0.66 * row.cache_bytes)
    assert row.ways["split"].up == pytest.approx(0.34 * row.cache_bytes)


@pytest.mark.parametrize(
    ("attention", "logits", "message"),
    [
        (0.011, 0.0, "attention deviates from all-GPU by 1.1e-02, expected at most 1e-02"),
        (0.0, 0.03, "logits deviates from all-GPU by 3.0e-02"),
        (float("nan"), 0.0, "outputs or logits are not finite"),
        (0.0, float("inf"), "outputs or logits are not finite"),
    ],
)
def test_a_wrong_output_ends_the_run(
    attention: float,
    logits: float,
    message: str,
    tmp_path: Path,
    use: Callable[[FakeMachine], FakeMachine],
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = use(FakeMachine())
    machine.attention_error["split"], machine.logits_error["split"] = attention, logits
    assert bench("--offload", "--json", str(tmp_path / "x.json")) == 1
    assert f"WRONG, nothing is written: llama-3-8b/L8/S131072/B1: split: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert machine.closed


def test_errors_within_the_tolerance_are_recorded(use: Callable[[FakeMachine], FakeMachine]) -> None:
    machine = use(FakeMachine())
    machine.attention_error["split"] = 0.004
    row = measure.measure_case(CASE, machine, 1.0, False)
    assert row.ways["split"].attention_error == pytest.approx(0.004, rel=1e-3)
    assert row.peer is None


@pytest.mark.parametrize("problem", [measure.LeftOutError("64 GiB are too many"), MemoryError("no room")])
def test_a_way_that_does_not_fit_is_left_out(
    problem: Exception, tmp_path: Path, use: Callable[[FakeMachine], FakeMachine],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    machine = use(FakeMachine())
    machine.raises["all-GPU"] = problem
    assert bench("--offload", "--quick", "--no-plots", "--json", str(tmp_path / "x.json")) == 0
    row = results.load(tmp_path / "x.json").rows[0]
    assert row.ways["all-GPU"].status == "left out"
    assert row.compared_with == "classical"
    assert row.ways["cooperative"].attention_error == 0
    text = capsys.readouterr().out
    assert f"all-GPU: {problem}" in text
    assert "outputs were compared with those of classical" in text


def test_fewer_layers_where_memory_is_short(
    tmp_path: Path, use: Callable[[FakeMachine], FakeMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = use(FakeMachine())
    machine.layers_that_fit = 20
    assert bench("--offload", "--no-plots", "--filter", "B4", "--json", str(tmp_path / "x.json")) == 0
    run = results.load(tmp_path / "x.json")
    assert {row.case.layers for row in run.rows} == {20}
    assert run.left_out["llama-3-8b/L32/S131072/B4"] == "so 20 of 32 layers take part"
    machine.layers_that_fit = 1
    assert bench("--offload", "--no-plots", "--quick", "--json", str(tmp_path / "y.json")) == 0
    assert results.load(tmp_path / "y.json").rows == []
    assert "a layer takes 1.0 GiB" in capsys.readouterr().out


def test_the_peer_can_be_left_out(tmp_path: Path, use: Callable[[FakeMachine], FakeMachine]) -> None:
    use(FakeMachine())
    path = tmp_path / "x.json"
    assert bench("--offload", "--no-plots", "--filter", "L8", "--peers", "none", "--json", str(path)) == 0
    assert results.load(path).rows[0].peer is None


def test_the_long_run(
    tmp_path: Path, use: Callable[[FakeMachine], FakeMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeMachine())
    path = tmp_path / "long.json"
    assert bench("--offload", "--long", "--json", str(path)) == 0
    run = results.load(path)
    assert run.rows == []
    assert run.long is not None
    assert run.long.token == 0.2
    assert {item.name for item in tmp_path.iterdir()} == {"long.json", "long-memory.png", "long-memory.svg"}
    captured = capsys.readouterr()
    assert captured.err.count("prefill: ") == 10
    assert "prefill: 262144 of 262144 tokens" in captured.err
    assert "most memory: 30.0 GiB" in captured.out


def test_files_have_names_of_their_own(
    tmp_path: Path, use: Callable[[FakeMachine], FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeMachine())
    monkeypatch.chdir(tmp_path)
    assert bench("--offload", "--quick", "--no-plots") == 0
    assert bench("--offload", "--long", "--no-plots") == 0
    names = sorted(item.name.rpartition("-20")[0] for item in (tmp_path / "results").iterdir())
    assert names == ["offload-long-nvidia-test-200", "offload-nvidia-test-200"]


def test_makefile_lists_it() -> None:
    makefile = (Path(__file__).resolve().parents[3] / "Makefile").read_text(encoding="utf-8")
    assert "bench --offload $(ARGS)" in makefile
    assert any(line.startswith("bench-offload:") and "## " in line for line in makefile.splitlines())
