"""The command: what it prints and writes, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmark's report needs the extra bench")
pytest.importorskip("matplotlib", reason="the benchmark's figures need the extra bench")

from fastattention import cli, gpu
from fastattention.bench.gpu import results
from fastattention.bench.gpu import run as command
from fastattention.bench.gpu.cases import GpuCase, select

from .fakes import FakeDevice, FakeWay

PREFILL = "prefill/float16/causal/B4/H16/D128/S4096"
DECODE = "decode/float16/B1/H32:8/D128/S32768"


def bench(*arguments: str) -> int:
    """Return the exit code, also where argparse exits by itself."""
    try:
        return cli.main(["bench", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeDevice], FakeDevice]:
    """Make the command find a device that is none."""

    def replace(device: FakeDevice) -> FakeDevice:
        monkeypatch.setattr(command, "open_device", lambda with_pytorch, seed: device)
        return device

    return replace


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "--threads", "1"], "--threads is about CPUs"),
        (["--gpu", "--isa", "avx2"], "--isa is about CPUs"),
        (["--gpu", "--ladder"], "not allowed with"),
        (["--gpu", "--plot", "x.json"], "not allowed with"),
        (["--gpu", "--quick", "--full"], "not allowed with"),
        (["--gpu", "--filter", "nonsense"], "no row of the default set of GPUs matches"),
        (["--gpu", "--quick", "--filter", "S1024"], "no row of the quick set of GPUs matches"),
        (["--plot", "nowhere.json"], "nowhere.json"),
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
    assert bench("--gpu", "--json", str(path)) == 2
    text = capsys.readouterr().err
    assert "needs CuPy" in text
    assert "pip install" in text
    assert not path.parent.exists()


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_card() -> None:
        raise RuntimeError("backend: 'gpu' found no CUDA device that works: cudaErrorNoDevice")

    monkeypatch.setattr(gpu, "card", no_card)
    path = tmp_path / "x.json"
    assert bench("--gpu", "--json", str(path)) == 2
    assert "found no CUDA device" in capsys.readouterr().err
    assert not path.exists()


def test_list_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert bench("--gpu", "--list", "--filter", "decode int8") == 0
    names = capsys.readouterr().out.split()
    assert "decode/int8/B1/H32:8/D128/S32768" in names
    assert all(name.startswith("decode/int8/") for name in names)


def test_peers_are_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def open_device(with_pytorch: bool, seed: int) -> FakeDevice:
        asked.append((with_pytorch, seed))
        raise RuntimeError("enough")

    monkeypatch.setattr(command, "open_device", open_device)
    for words in (["--peers", "none"], ["--peers", "openvino"], ["--peers", "pytorch"], ["--seed", "3"]):
        assert bench("--gpu", *words) == 2
    assert asked == [(False, 0), (False, 0), (True, 0), (True, 3)]
    assert "--gpu: enough" in capsys.readouterr().err


def test_it_runs_and_writes(
    tmp_path: Path, use: Callable[[FakeDevice], FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    device = use(FakeDevice())
    path = tmp_path / "out.json"
    assert bench("--gpu", "--json", str(path)) == 0
    assert device.closed
    captured = capsys.readouterr()
    written = {item.name for item in tmp_path.iterdir()}
    assert written == {"out.json", "out-prefill.png", "out-decode.png"}
    outcome = results.load(path)
    assert [row.case for row in outcome.rows] == select()
    assert outcome.options == {"level": "default", "filter": None, "rounds": 7, "seed": 0}
    assert {name: len(values) for name, values in outcome.limits.items()} == dict.fromkeys(
        device.limit_names(), 2
    )
    assert [clocks["when"] for clocks in outcome.environment["clocks"]] == ["start", "end"]
    for row in outcome.rows:
        assert all(len(values) == 8 for values in row.limits.values())
        for who in row.contenders.values():
            assert len(who.graph) == len(who.launches) == (7 if who.status == "ok" else 0)
    for word in ("NVIDIA Test(R) 200", "emulated on this card", "atom 70 emulated", str(path), "1.43x met"):
        assert word in captured.out
    assert PREFILL in captured.err


def test_quick_and_filter(
    tmp_path: Path, use: Callable[[FakeDevice], FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeDevice())
    path = tmp_path / "out.json"
    assert bench("--gpu", "--quick", "--filter", "decode", "--json", str(path), "--no-plots") == 0
    outcome = results.load(path)
    assert [item.name for item in tmp_path.iterdir()] == ["out.json"]
    assert {row.case.kind for row in outcome.rows} == {"decode"}
    assert len(outcome.rows[0].contenders["atom 80"].graph) == 3
    assert "Prefill" not in capsys.readouterr().out


def test_a_wrong_output_ends_the_run(
    tmp_path: Path, use: Callable[[FakeDevice], FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(case: GpuCase, way: FakeWay) -> None:
        if case.name == PREFILL and way.name == "atom 75":
            way.error = float("nan")

    device = use(FakeDevice(change=spoil))
    path = tmp_path / "out.json"
    assert bench("--gpu", "--json", str(path)) == 1
    text = capsys.readouterr().err
    assert f"WRONG, nothing is written: {PREFILL}: atom 75 (file_75.cu): error nan" in text
    assert list(tmp_path.iterdir()) == []
    assert device.closed


def test_a_wrong_graph_ends_the_run(
    tmp_path: Path, use: Callable[[FakeDevice], FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(case: GpuCase, way: FakeWay) -> None:
        way.graph_error = 0.1

    use(FakeDevice(change=spoil))
    assert bench("--gpu", "--json", str(tmp_path / "out.json")) == 1
    assert "error 1.0e-01, expected at most 5e-03" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_that_do_not_fit_are_left_out(
    tmp_path: Path, use: Callable[[FakeDevice], FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    device = use(FakeDevice(capability=(7, 0), memory_bytes=8 * 2**30))
    device.raises[DECODE] = MemoryError("no room for 1 GiB\nmore")
    path = tmp_path / "out.json"
    assert bench("--gpu", "--json", str(path), "--no-plots") == 0
    outcome = results.load(path)
    assert outcome.left_out["decode/float16/B8/H32/D128/S131072"].startswith(
        "it needs more of the GPU's memory"
    )
    assert "compute capability 8.0" in outcome.left_out["prefill/bfloat16/full/B4/H16/D64/S4096"]
    assert outcome.left_out[DECODE] == "out of memory: MemoryError: no room for 1 GiB"
    assert len(outcome.rows) + len(outcome.left_out) == len(select())
    assert {name for row in outcome.rows for name in row.ours} == {"atom 70", "CUDA cores"}
    text = capsys.readouterr().out
    assert "Left out: " in text
    assert "emulated" not in text.partition("ms: a call")[0], "a V100 has m8n8k4"


def test_without_pytorch_its_columns_are_absent(
    tmp_path: Path, use: Callable[[FakeDevice], FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeDevice(with_peers=False))
    assert bench("--gpu", "--quick", "--json", str(tmp_path / "out.json")) == 0
    text = capsys.readouterr().out
    assert "PyTorch: not installed (No module named 'torch'); no figures of it" in text
    assert "flash" not in text.partition("ms: a call")[0]


def test_an_error_of_the_device_is_no_half_result(
    tmp_path: Path, use: Callable[[FakeDevice], FakeDevice]
) -> None:
    device = use(FakeDevice())
    device.raises[PREFILL] = RuntimeError("cudaErrorIllegalAddress")
    with pytest.raises(RuntimeError, match="IllegalAddress"):
        bench("--gpu", "--json", str(tmp_path / "out.json"))
    assert list(tmp_path.iterdir()) == []
    assert device.closed


def test_without_matplotlib_figures_can_be_drawn_later(
    tmp_path: Path,
    use: Callable[[FakeDevice], FakeDevice],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(FakeDevice())
    path = tmp_path / "out.json"
    with monkeypatch.context() as patch:
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
        assert bench("--gpu", "--quick", "--json", str(path)) == 0
    assert f"fastattention bench --plot {path}" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["out.json"]
    assert bench("--plot", str(path)) == 0
    assert "out-prefill.png" in capsys.readouterr().out
    assert (tmp_path / "out-decode.png").read_bytes().startswith(b"\x89PNG")


def test_plot_takes_files_of_cpus_and_refuses_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).resolve().parents[3]
    committed = sorted((root / "results").glob("bench-intel-*.json"))[-1]
    copy = tmp_path / "cpu.json"
    copy.write_bytes(committed.read_bytes())
    assert bench("--plot", str(copy)) == 0
    assert (tmp_path / "cpu-bars.png").exists()
    for content in ({"schema": "gpu-9"}, []):
        copy.write_text(json.dumps(content), encoding="utf-8")
        assert bench("--plot", str(copy)) == 2
    assert "gpu-9" in capsys.readouterr().err


def test_makefile_lists_it() -> None:
    makefile = (Path(__file__).resolve().parents[3] / "Makefile").read_text(encoding="utf-8")
    assert "bench --gpu $(ARGS)" in makefile
    assert any(line.startswith("bench-gpu:") and "## " in line for line in makefile.splitlines())
