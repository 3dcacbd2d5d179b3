"""Results survive their file, and the report says what happened."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmark's report needs the extra bench")
pytest.importorskip("matplotlib", reason="the benchmark's figures need the extra bench")

from rich.console import Console

from fastattention.bench import plots, report, results, targets
from fastattention.bench.cases import Case
from fastattention.bench.limits import Limits
from fastattention.bench.memory import Memory
from fastattention.bench.rows import select

PREFILL = Case("prefill", "float32", 8, 8, 4096, 4096, 128, causal=True, window=(511, 0))
DECODE = Case("decode", "bfloat16", 32, 8, 1, 32768, 128, level="quick")
THREADS = Case("prefill", "float32", 8, 8, 1024, 1024, 128, threads=2)
MEMORY = Case("memory", "float32", 8, 8, 131072, 131072, 128, causal=True, threads=2)
ROOFLINE = {"read": 7.0, "AMX bf16": 1.0}
ALONE = [[0.18], [0.17, 0.18, 0.19]]


def make_run() -> results.Run:
    peers = {
        "PyTorch": results.PeerResult("ok", "sdpa, window as a mask", 1e-6, [[0.4], [0.2, 0.4, 0.6], [0.5]]),
        "ONNX Runtime": results.PeerResult("unsupported", "no bfloat16"),
        "OpenVINO": results.PeerResult("failed", "op: error 1.0e+00, more than 1e-04"),
    }
    limits = [Limits(1, "avx512", 200.0, 0.0, 800.0), Limits(1, "avx512", 100.0, 0.0, 800.0)]
    run = results.Run(
        date="2030-01-02T03:04:05+00:00",
        environment={
            "cpu": "Intel(R) Core(TM) i9-7900X CPU @ 3.30GHz",
            "allowed_cores": 2,
            "cores": 4,
            "isa": "avx512",
            "compiler": "gcc 13",
            "versions": {"fastattention": "0.1.0", "PyTorch": "2"},
            "absent_peers": {"someone": "not installed"},
        },
        options={"level": "default"},
        rows=[
            results.Row(
                PREFILL,
                30 * 10**9,
                1e-6,
                [[0.2], [0.2, 0.2, 0.21], [0.25]],  # 150, 150, 120 GFLOP/s
                "avx512 FMA",
                [200.0, 100.0, 100.0, 200.0],  # of 150, 100, 150: 100, 150, 80 %
                101.0,
                peers,
            ),
            results.Row(DECODE, 10**9, 1e-3, [[0.01] * 4] * 2, "read", [20.0] * 3, 50.0, {}, "amx", ROOFLINE),
            results.Row(
                THREADS, 10**9, 1e-6, [[0.1]] * 2, "avx512 FMA", [20.0] * 3, None, {}, "avx512", {}, ALONE
            ),
        ],
        probes=limits,
        failures={"prefill/float16/full": "error 1.0e+00, more than 5e-03"},
        left_out={
            "decode/int8/a": "no int8 here",
            "decode/int8/b": "no int8 here",
            "prefill/c": "no amx here",
        },
        memory=[Memory(MEMORY, 2**20, 2**20, 3 * 2**20, "growth of the peak")],
    )
    run.goals.extend(targets.judge(run))
    return run


def render(run: results.Run, width: int = 200) -> str:
    stream = io.StringIO()
    report.print_report(run, Console(file=stream, width=width))
    return stream.getvalue()


def test_rates() -> None:
    prefill, decode, threads = make_run().rows
    assert prefill.median == 0.2
    assert prefill.spread == pytest.approx((0.2, 0.234))
    assert prefill.rate == pytest.approx(150)
    assert prefill.limit == 150
    assert prefill.percent == pytest.approx(100)
    assert prefill.percent_range == pytest.approx((80, 150))
    assert prefill.missed  # 100 of 101
    assert prefill.ratio("PyTorch") == pytest.approx(2)  # of 2, 2 and 2
    assert prefill.peer_percent("PyTorch") == pytest.approx(50)  # of 50, 75 and 40
    assert prefill.ratio("OpenVINO") is prefill.peer_percent("OpenVINO") is None
    assert prefill.ratio("nobody") is prefill.peer_percent("nobody") is None
    assert decode.unit == "GB/s"
    assert decode.rate == pytest.approx(DECODE.kv_bytes / 0.01 * 1e-9)
    assert not decode.missed
    assert decode.speedup is None
    assert threads.speedup == pytest.approx(1.8)  # of 1.8 and 1.8


def test_json_round_trip(tmp_path: Path) -> None:
    run = make_run()
    path = tmp_path / "new" / "run.json"
    results.save(run, path)
    assert results.load(path) == run
    content = json.loads(path.read_text(encoding="utf-8"))
    summary = content["rows"][0]["summary"]
    assert summary["name"] == PREFILL.name
    assert summary["percent_of_limit"] == pytest.approx(100)
    assert (summary["lowest_percent"], summary["highest_percent"]) == pytest.approx((80, 150))
    assert summary["peer_ratios"] == pytest.approx({"PyTorch": 2})
    assert summary["median_ms"] == 200
    assert content["rows"][0]["rounds"] == [[0.2], [0.2, 0.2, 0.21], [0.25]]
    assert content["rows"][0]["limits"] == [200.0, 100.0, 100.0, 200.0]


def test_other_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for schema in (1, 4, 999):
        path.write_text(f'{{"schema": {schema}}}', encoding="utf-8")
        with pytest.raises(ValueError, match=f"schema {schema}"):
            results.load(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="no benchmark results"):
        results.load(path)


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run = make_run()
    results.save(run, path)
    before = path.read_bytes()
    run.environment["bad"] = object()
    with pytest.raises(TypeError):
        results.save(run, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_default_path() -> None:
    assert results.default_path(make_run()) == Path("results/bench-intel-core-i9-7900x-2030-01-02.json")


def test_report_names_everything() -> None:
    text = render(make_run())
    assert "WRONG, not timed: prefill/float16/full" in text
    assert "someone: not installed" in text
    assert "101 % missed" in text
    assert "50 % met" in text
    assert "1.9 of 1t missed" in text
    assert f"Missed: {THREADS.name}: 1.80 times one thread's speed; target 1.9 of 1t" in text
    assert "< 4 MiB met" in text
    assert "1.50" in text  # MiB planned a thread, and as many measured
    assert "Memory, measured: growth of the peak." in text
    assert "Targets: 2 of 4 met." in text
    assert "Not on this machine: no int8 here: decode/int8/a, decode/int8/b\n" in text
    assert "Not on this machine: no amx here: prefill/c\n" in text
    assert "100 %" in text
    assert "±35 %" in text  # from 80 to 150
    assert "2.00x [1]" in text  # PyTorch: twice our time in each round, with the note on its mask
    assert "none [2]" in text
    assert "wrong [3]" in text
    for note in (
        "[1] PyTorch: sdpa, window as a mask",
        "[2] ONNX Runtime: no bfloat16",
        "[3] OpenVINO: op: error",
    ):
        assert note in text
    assert "bf16 dot, 1 thread, GFLOP/s: no such instruction here" in text
    assert "moved by more than 10 %" in text


def test_narrow_report_loses_nothing() -> None:
    text = render(make_run(), width=80)
    assert "other libraries" in text
    for piece in ("101 % missed", "2.00x [1]", "wrong [3]", "H32:8/D128/S32768/1t"):
        assert piece in text


def test_every_table_fits_its_width() -> None:
    # Every name there is, with the longest of figures, limits and targets beside it.
    peers = {
        name: results.PeerResult("ok", "a, b", 0, [[1000.0]])
        for name in ("PyTorch", "ONNX Runtime", "OpenVINO")
    }
    rows = [
        results.Row(case, 10**15, 0, [[10.0]], "baseline mul+add", [10.0, 10.0], targets.target(case), peers)
        for case in select(2, "full")
        if case.kind != "memory"
    ]
    run = results.Run(make_run().date, make_run().environment, {}, rows)
    run.goals.extend(targets.judge(run))
    for table in report.tables(run, []):
        console = Console(file=io.StringIO(), width=1000)
        assert console.measure(table).maximum <= report.WIDTH, table.title
    narrow = render(run, width=60)
    for row in rows:
        assert f"{row.case.name.partition('/')[2]} " in narrow


def test_report_without_peers_or_rows() -> None:
    run = make_run()
    alone = results.Run(run.date, run.environment, {}, [run.rows[1]])
    assert "PyTorch  " not in render(alone)
    empty = results.Run(run.date, run.environment, {}, [], [], run.failures)
    assert "WRONG" in render(empty)


def test_drift_of_quiet_machine_is_silent() -> None:
    run = make_run()
    quiet = results.Run(run.date, run.environment, {}, run.rows[1:2], run.probes[:1] * 2, {})
    assert "moved by" not in render(quiet)


def test_drift_sees_the_probes_of_rows() -> None:
    run = make_run()
    found = report.drift(results.Run(run.date, run.environment, {}, run.rows, run.probes[:1], {}))
    assert found["avx512 FMA, 1 thread, GFLOP/s"] == (100, 200, 200)
    assert found["read of 128 MiB, 1 thread, GB/s"] == (20, 20, 20)


def test_rates_that_arithmetic_sets_are_no_rates_of_reading() -> None:
    row = results.Row(DECODE, 10**9, 1e-3, [[0.01]], "AMX bf16", [5.0, 5.0], None, {})
    assert report.drift(results.Run("", {}, {}, [row])) == {}


def test_figures(tmp_path: Path) -> None:
    run = make_run()
    written = plots.draw(run, tmp_path / "run.json")
    assert [path.name for path in written] == ["run-roofline.png", "run-bars.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_figures_without_decode(tmp_path: Path) -> None:
    run = make_run()
    only = results.Run(run.date, run.environment, {}, run.rows[:1], run.probes, {})
    assert len(plots.draw(only, tmp_path / "run.json")) == 2
    rest = results.Run(run.date, run.environment, {}, run.rows[1:2], run.probes, {})
    assert len(plots.draw(rest, tmp_path / "run.json")) == 2
