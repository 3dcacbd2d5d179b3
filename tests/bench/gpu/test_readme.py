"""Results of GPUs in the README: there where there is a file, absent where there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("rich", reason="the benchmark's report needs the extra bench")
pytest.importorskip("matplotlib", reason="the benchmark's figures need the extra bench")

from dataclasses import asdict

from fastattention.bench.gpu import results
from fastattention.bench.gpu.cases import GpuCase, select

from .fakes import FakeDevice, FakeWay
from .test_results import make_run

PREFILL = GpuCase("prefill", "float16", 16, 16, 4096, 4096, 128, causal=True, batch=4)
LONG = GpuCase("prefill", "float16", 16, 16, 16384, 16384, 64)
WIDE = GpuCase("prefill", "float16", 16, 16, 4096, 4096, 256, batch=4)
PAGED = GpuCase("decode", "float16", 32, 8, 1, 32768, 128, page_size=64)


@pytest.fixture
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "docs" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(script: ModuleType, folder: Path) -> str:
    text: str = script.section(script.newest(folder), script.newest(folder, gpu=True))
    return text


def test_the_script_knows_the_schema(script: ModuleType) -> None:
    assert script.GPU_SCHEMA == results.SCHEMA


def test_without_a_file_there_is_no_table(script: ModuleType, tmp_path: Path) -> None:
    assert script.newest(tmp_path, gpu=True) is None
    assert script.gpu_section(None) == ""
    assert section(script, tmp_path) == script.NOTHING


def test_the_newest_run_is_shown(script: ModuleType, tmp_path: Path) -> None:
    def spoil(case: GpuCase, way: FakeWay) -> None:
        if way.name == "flash":
            way.error = 1.0

    run = make_run(FakeDevice(change=spoil), (PREFILL, LONG, WIDE, PAGED))
    results.save(run, tmp_path / "bench-gpu.json")
    run.date = "2029-01-01T00:00:00+00:00"
    run.environment["gpu"] = "An older run"
    results.save(run, tmp_path / "bench-z.json")

    assert script.newest(tmp_path) is None, "a GPU's file is no CPU's"
    text = section(script, tmp_path)
    assert text.startswith(script.NOTHING + "\n\n### On a GPU\n\nNVIDIA Test(R) 200, compute capability 9.0")
    assert "An older run" not in text
    assert "m8n8k4 20 TFLOP/s, float32 FMA 50 TFLOP/s, copy 4,000 GB/s." in text
    start = "| float16 | causal | 16 | 128 | 4096 | 4 "
    assert f"{start}| atom 80 | 0.916 | 300 | 50 % of m16n8k16 | 1.43× met | 1.50× | wrong |" in text
    assert (
        f"{start}| atom 70, emulated | 27.5 | 10.0 | 50 % of m8n8k4 | 60 % **missed** | 0.05× | wrong |"
        in text
    )
    assert text.count("| 16384 |") == 1, "older kernels are shown at one length"
    assert "| 256 |" not in text
    paged = "| float16 | full, pages of 64 | 32/8 | 128 | 32768 | 1 "
    assert f"{paged}| atom 80 | 0.0373 | 3600 | 90 % of copy | 80 % met |" in text
    assert f"Targets on this GPU: {sum(goal.met for goal in run.goals)} of {len(run.goals)} met" in text
    assert "Not on this GPU: 2 rows; too large." in text

    everything = script.gpu_tables(script.newest(tmp_path, gpu=True))
    assert everything.count("| 16384 |") == 3
    assert "| 256 |" in everything


def test_launched_one_by_one_is_said(script: ModuleType, tmp_path: Path) -> None:
    def spoil(case: GpuCase, way: FakeWay) -> None:
        way.why_no_graph = "no"

    results.save(make_run(FakeDevice(change=spoil), (PAGED,)), tmp_path / "bench-x.json")
    assert "| atom 80, launched one by one | 0.0393 |" in section(script, tmp_path)


def test_without_peers_or_rows_it_holds(script: ModuleType, tmp_path: Path) -> None:
    results.save(make_run(FakeDevice(with_peers=False), (PREFILL,)), tmp_path / "bench-x.json")
    text = section(script, tmp_path)
    assert "| of limit | target |\n" in text
    assert "Peer left out: PyTorch: not installed" in text
    results.save(make_run(FakeDevice(), ()), tmp_path / "bench-x.json")
    assert "|" not in section(script, tmp_path)


def test_the_readme_shows_about_a_dozen_rows_of_each_kind(script: ModuleType) -> None:
    def lines(kind: str) -> int:
        shown: list[dict[str, Any]] = [asdict(case) for case in select() if case.kind == kind]
        shown = [case for case in shown if script.gpu_headline(case)]
        return sum(3 if script.gpu_older(case) else 1 for case in shown)

    assert 9 <= lines("prefill") <= 16
    assert 9 <= lines("decode") <= 14
