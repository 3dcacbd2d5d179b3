"""Files survive, targets are judged, tables and figures say what happened."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmark's report needs the extra bench")
pytest.importorskip("matplotlib", reason="the benchmark's figures need the extra bench")

from rich.console import Console

from fastattention.bench import results as cpu_results
from fastattention.bench.gpu import plots, report, results, targets
from fastattention.bench.gpu.cases import GpuCase, select
from fastattention.bench.gpu.measure import measure_case
from fastattention.bench.gpu.results import Contender, Row, Run

from .fakes import LIMITS, FakeDevice, FakeWay

PREFILL = GpuCase("prefill", "float16", 16, 16, 4096, 4096, 128, causal=True, batch=4)
SHORT = GpuCase("prefill", "float16", 16, 16, 1024, 1024, 64, batch=16)
DECODE = GpuCase("decode", "float16", 32, 8, 1, 32768, 128)


def make_run(device: FakeDevice | None = None, cases: tuple[GpuCase, ...] = (PREFILL, SHORT, DECODE)) -> Run:
    device = device or FakeDevice()
    run = Run("2030-01-02T03:04:05+00:00", device.environment(), {"level": "default"})
    run.limits = {name: [LIMITS[name], LIMITS[name]] for name in device.limit_names()}
    run.compiled = {"kernels": 25.0, "seconds": 9.5}
    run.rows = [measure_case(case, device, 3) for case in cases]
    run.left_out = {"decode/x": "too large", "decode/y": "too large"}
    run.goals = targets.judge(run)
    return run


def render(run: Run, width: int = 200) -> str:
    stream = io.StringIO()
    report.print_report(run, Console(file=stream, width=width))
    return stream.getvalue()


def test_round_trip(tmp_path: Path) -> None:
    run = make_run()
    path = tmp_path / "new" / "run.json"
    results.save(run, path)
    assert results.load(path) == run
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == "gpu-1"
    summary = content["rows"][0]["summary"]
    assert summary["name"] == PREFILL.name
    own = summary["contenders"]["atom 80"]
    assert own["rate"] == pytest.approx(300)
    assert own["percent_of_limit"] == own["lowest_percent"] == pytest.approx(50)
    assert own["peer_ratios"] == pytest.approx({"memory-efficient": 1.5, "flash": 300 / 310})
    assert own["launches_ms"] == pytest.approx(own["graph_ms"] + 2e-3)
    assert content["rows"][0]["contenders"]["flash"]["graph"] == run.rows[0].contenders["flash"].graph


def test_files_of_cpus_and_gpus_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    results.save(make_run(), path)
    with pytest.raises(ValueError, match="'gpu-1'"):
        cpu_results.load(path)
    path.write_text('{"schema": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match="schema 3"):
        results.load(path)


def test_default_path() -> None:
    run = make_run()
    gpu, date = run.environment["gpu"], run.date
    assert results.default_path(gpu, date) == Path("results/bench-nvidia-test-r-200-2030-01-02.json")
    assert results.default_path(gpu, date, "profile") == Path(
        "results/profile-nvidia-test-r-200-2030-01-02.json"
    )
    assert results.default_path("???", date).name == "bench-gpu-2030-01-02.json"


def test_targets_are_judged() -> None:
    goals = {(goal.row, goal.text): goal for goal in make_run().goals}
    assert {key: goal.met for key, goal in goals.items()} == {
        (f"{PREFILL.name} atom 80", "1.43x memory-efficient"): True,
        (f"{PREFILL.name} atom 80", "1x flash"): False,
        (f"{PREFILL.name} atom 75", "50 %"): True,
        (f"{PREFILL.name} atom 70", "60 %"): False,
        (f"{SHORT.name} atom 80", "1.43x memory-efficient"): True,
        (f"{SHORT.name} atom 75", "50 %"): True,
        (f"{SHORT.name} atom 70", "60 %"): False,
        (f"{DECODE.name} atom 80", "80 %"): True,
        (f"{DECODE.name} atom 80", "1.1x PyTorch"): True,
    }
    assert goals[f"{PREFILL.name} atom 80", "1x flash"].found == "flash takes 0.97 times the time of atom 80"
    assert goals[f"{PREFILL.name} atom 70", "60 %"].found == "atom 70: 50.0 % of m8n8k4"


def test_targets_use_graphs_or_say_so() -> None:
    def spoil(case: GpuCase, way: FakeWay) -> None:
        if way.name == "PyTorch":
            way.why_no_graph = "no"

    (goal,) = [goal for goal in make_run(FakeDevice(change=spoil), (DECODE,)).goals if goal.kind == "peers"]
    assert goal.found.endswith(", launched one by one")


def test_a_bound_that_is_just_reached_is_met() -> None:
    row = Row(DECODE, 1, 9, {"copy": [1000.0] * 4})
    for percent, met in ((80.0, True), (79.9, False)):
        seconds = 1e-9 * DECODE.kv_bytes / (10 * percent)
        row.contenders["atom 75"] = Contender(True, "ok", "file", "copy", graph=[seconds] * 3)
        run = Run("", {}, {}, rows=[row])
        assert [goal.met for goal in targets.judge(run)] == [met]


def test_rows_without_targets_or_kernels_are_not_judged() -> None:
    wide = GpuCase("prefill", "float16", 16, 16, 4096, 4096, 256, batch=4)
    heads = GpuCase("decode", "float16", 32, 32, 1, 8192, 128)
    run = make_run(None, (wide, heads))
    assert run.goals == []
    assert targets.judge(Run("", {}, {}, rows=[Row(PREFILL, 1, 1)])) == []


def test_every_aim_has_rows() -> None:
    rows = [Row(case, 1, 1) for case in select("full")]
    assert all(any(aim.applies(row) for row in rows) for aim in targets.AIMS)


def test_report_names_everything() -> None:
    device = FakeDevice()
    device.absent_peers["PyTorch"] = "not installed"
    text = render(make_run(device))
    for piece in (
        "NVIDIA Test(R) 200, compute capability 9.0, 132 SMs, 141 GiB, L2 60 MiB",
        "driver 580.1, for CUDA 13.0; CuPy's CUDA 12.9",
        "PyTorch: not installed; no figures of it",
        "25 kernels compiled in 9.5 s",
        "emulated on this card",
        "atom 70 emulated",
        "1.43x met, 1x missed",
        "80 % met, 1.1x met",
        "Left out: decode/x, decode/y: too large",
        "Targets: 6 of 9 met.",
        f"Missed: {PREFILL.name} atom 80: flash takes 0.97 times the time of atom 80; target 1x flash",
        "Limit: copy: 4000.0 - 4000.0, median 4000.0 GB/s",
    ):
        assert piece in text, piece


def test_report_says_who_was_not_captured_or_wrong() -> None:
    def spoil(case: GpuCase, way: FakeWay) -> None:
        if way.name == "atom 75":
            way.why_no_graph = "RuntimeError: capture"
        if way.name == "flash":
            way.error = 1.0

    text = render(make_run(FakeDevice(change=spoil)))
    assert "atom 75 [2]" in text
    assert "[2] atom 75: launched one by one, no graph: RuntimeError: capture" in text
    assert "wrong [1]" in text
    assert "[1] flash: flash backend: error 1.0e+00" in text


def test_every_table_fits_its_width() -> None:
    def spoil(case: GpuCase, way: FakeWay) -> None:
        way.seconds *= 1.37
        if case.dtype == "bfloat16":
            way.why_no_graph = "no"

    run = make_run(FakeDevice(change=spoil), tuple(select("full")))
    for table in report.tables(run, []):
        assert Console(file=io.StringIO(), width=1000).measure(table).maximum <= report.WIDTH, table.title
    narrow = render(run, width=60)
    for row in run.rows:
        assert f"{row.case.name.partition('/')[2]} " in narrow


def test_figures(tmp_path: Path) -> None:
    written = plots.draw(make_run(), tmp_path / "run.json")
    assert [path.name for path in written] == ["run-prefill.png", "run-decode.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert len(plots.draw(make_run(None, (DECODE,)), tmp_path / "x.json")) == 1
    assert plots.draw(Run("", {}, {}), tmp_path / "y.json") == []


def test_figures_are_legible_on_any_page() -> None:
    run = make_run()
    figure = plots.bars(run, run.rows[:2], "x")
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    full, causal = figure.axes
    assert [bar.get_width() for bar in full.patches] == pytest.approx([300, 240, 10, 200, 310])
    assert [bar.get_width() for bar in causal.patches] == pytest.approx([300, 240, 10, 200, 310])


def test_cases() -> None:
    cases = select("full")
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert {case.batch * case.k_len for case in cases if case.kind == "prefill"} == {16384}
    assert set(select("quick")) < set(select()) < set(cases)
    for words, count in (("prefill float16 D64", 10), ("decode H32:8 float16", 10), ("P64", 5)):
        assert len(select("full", words)) == count, words
    assert GpuCase("decode", "int8", 32, 8, 1, 8192, 128, page_size=64).q_dtype == "float16"
