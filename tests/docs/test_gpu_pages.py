"""What the chapters on GPUs read and draw, on files made up here: real ones come from other machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastattention.bench.gpu import results
from fastattention.bench.gpu.cases import GpuCase

pytest.importorskip("matplotlib", reason="the book's figures need the extra `docs`")
pytest.importorskip("IPython", reason="the book's figures need the extra `docs`")

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _import(name: str) -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    try:
        yield __import__(name)
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture
def book_gpu() -> Iterator[ModuleType]:
    yield from _import("book_gpu")


@pytest.fixture
def book_fragments() -> Iterator[ModuleType]:
    yield from _import("book_fragments")


@pytest.fixture
def record_audit() -> Iterator[ModuleType]:
    yield from _import("record_audit")


def profile(date: str = "2026-01-02") -> dict[str, Any]:
    def kernel(name: str, nanoseconds: float, waits: dict[str, float]) -> dict[str, Any]:
        stalls = {
            f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio": cycles
            for reason, cycles in waits.items()
        }
        others = {
            "gpu__time_duration.sum": nanoseconds,
            "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": 41.25,
            "launch__registers_per_thread": 250,
        }
        return {"name": name, "shape": "D=128, full", "metrics": others | stalls}

    return {
        "hardware": "A card",
        "date": date,
        "versions": {"ncu": "1.2"},
        "kernels": [
            kernel("decode", 9e6, {"long_scoreboard": 8.0, "selected": 1.0}),
            kernel("attention", 2.5e6, {"wait": 1.5, "selected": 1.0, "math_pipe_throttle": 0.75}),
            kernel("attention", 1.5e6, {"barrier": 3.0, "selected": 1.0}),
        ],
    }


def test_no_results_are_said_to_be_none(book_gpu: ModuleType, tmp_path: Path) -> None:
    assert book_gpu.profile(tmp_path) is None
    assert book_gpu.audit(tmp_path) is None
    assert book_gpu.gpu_runs(tmp_path) == []
    assert "No profile is recorded yet" in book_gpu.NOTHING.format(what="profile", pattern="profile-*.json")


def test_the_newest_profile_is_read(book_gpu: ModuleType, tmp_path: Path) -> None:
    for name, date in (("z", "2025-01-01"), ("a", "2026-03-01")):
        (tmp_path / f"profile-{name}.json").write_text(json.dumps(profile(date)), encoding="utf-8")
    assert book_gpu.where(book_gpu.profile(tmp_path)) == "A card, 2026-03-01; ncu 1.2"


def test_a_profile_becomes_a_table(book_gpu: ModuleType) -> None:
    lines = book_gpu.profile_table(profile()).splitlines()
    assert {line.count("|") for line in lines} == {5}
    assert "| time, ms | 9.000 | 2.500 | 1.500 |" in lines
    assert "| registers a thread | 250 | 250 | 250 |" in lines
    assert not any("memory throughput" in line for line in lines), "what was not measured has no row"


def test_stalls_are_those_of_the_longest_prefill(book_gpu: ModuleType) -> None:
    kernel = book_gpu.main_kernel(profile())
    assert list(book_gpu.stalls(kernel["metrics"])) == ["wait", "selected", "math_pipe_throttle"]
    figure, alt = book_gpu.stall_figure(kernel)
    assert [patch.get_width() for patch in figure.axes[0].patches] == [1.5, 1.0, 0.75]
    assert "the longest is wait" in alt
    assert "1.50 of 3.25 cycles" in alt


def test_a_profile_without_stalls_is_refused(book_gpu: ModuleType) -> None:
    with pytest.raises(ValueError, match="no stall reasons"):
        book_gpu.stall_figure(
            {"name": "attention", "shape": "D=64", "metrics": {"gpu__time_duration.sum": 1}}
        )


def benchmark() -> dict[str, Any]:
    """Return a run as the benchmark of GPUs writes it, less what the book does not look at."""

    def row(changes: dict[str, Any], rates: dict[str, float | None]) -> dict[str, Any]:
        case = {"kind": "prefill", "dtype": "float16", "head_dim": 128, "causal": True, "q_len": 4096}
        timed = {name: {"rate": rate} for name, rate in rates.items() if rate is not None}
        return {
            "case": case | changes,
            "contenders": {name: {"ours": name.startswith("atom")} for name in rates},
            "summary": {"unit": "TFLOP/s", "contenders": timed},
        }

    rows = [
        row({}, {"atom 80": 250.0, "atom 75": 200.0, "flash": 300.0, "cuDNN": None}),
        row({"causal": False}, {"atom 80": 260.0, "flash": None, "cuDNN": 500.0}),
        row({"q_len": 1024}, {"atom 80": 1.0}),
        row({"kind": "decode"}, {"atom 80": 2.0}),
        row({"dtype": "bfloat16"}, {"atom 80": 3.0}),
        row({"head_dim": 64}, {"atom 80": None, "flash": 4.0}),
    ]
    return {"schema": "gpu-1", "date": "2026-01-02", "environment": {"gpu": "A card"}, "rows": rows}


def test_what_the_benchmark_writes_is_read(book_gpu: ModuleType, tmp_path: Path) -> None:
    contenders = {
        "atom 80": results.Contender(True, "ok", "07_ampere.cu", "m16n8k16", graph=[0.004, 0.005, 0.004]),
        "flash": results.Contender(False, "ok", "a backend", graph=[0.002]),
        "cuDNN": results.Contender(False, "unsupported", "no such case"),
    }
    case = GpuCase("prefill", "float16", 16, 16, 4096, 4096, 128, batch=4)
    row = results.Row(case, 10**12, 1, {"m16n8k16": [500.0] * 4}, contenders)
    run = results.Run("2026-01-02", {"gpu": "A card"}, {}, rows=[row])
    results.save(run, tmp_path / "bench-a-card.json")
    [read] = book_gpu.gpu_runs(tmp_path)
    assert book_gpu.hardware(read) == "A card"
    [(words, ours, rates)] = book_gpu.prefill_rows(read)
    assert (words, ours) == ("D=128, full, 4096 tokens", "atom 80")
    assert rates == pytest.approx({"atom 80": 250.0, "flash": 500.0})


def test_only_benchmarks_of_gpus_are_read(book_gpu: ModuleType, tmp_path: Path) -> None:
    for name, changes in (("a", {}), ("b", {"date": "2026-02-02"}), ("c", {"schema": 3})):
        (tmp_path / f"bench-{name}.json").write_text(json.dumps(benchmark() | changes), encoding="utf-8")
    assert [run["date"] for run in book_gpu.gpu_runs(tmp_path)] == ["2026-02-02", "2026-01-02"]


def test_prefill_of_a_benchmark_is_drawn(book_gpu: ModuleType) -> None:
    run = benchmark()
    assert book_gpu.prefill_rows(run) == [
        ("D=128, causal, 4096 tokens", "atom 80", {"atom 80": 250.0, "flash": 300.0}),
        ("D=128, full, 4096 tokens", "atom 80", {"atom 80": 260.0, "cuDNN": 500.0}),
    ]
    figure, alt = book_gpu.prefill_figure(run)
    assert [patch.get_width() for patch in figure.axes[0].patches] == [250.0, 260.0, 500.0, 300.0]
    assert alt.startswith("Measured prefill on A card, 2026-01-02")
    assert "D=128, full, 4096 tokens: 260" in alt


def test_a_roofline_is_the_cards_own(book_gpu: ModuleType) -> None:
    run = benchmark()
    run["limits"] = {
        "m16n8k16": [500.0, 510.0, 400.0],
        "m16n8k16 bfloat16": [900.0],
        "m8n8k4": [20.0],
        "float32 FMA": [600.0],
        "copy": [3000.0, 2000.0, 1000.0],
    }
    case = {"kind": "prefill", "dtype": "float16", "head_dim": 64, "causal": False, "q_len": 16384}
    timed = {"flash": {"rate": 9.0}, "atom 80": {"rate": 300.0}, "atom 70": {"rate": 8.0}}
    contenders = {name: {"ours": name.startswith("atom")} for name in timed}
    run["rows"].append({"case": case, "contenders": contenders, "summary": {"contenders": timed}})
    assert book_gpu.roofline(run) == (500e12, 2000e9, "m16n8k16", 16384, 64, 128, 300e12)
    run["rows"] = [row for row in run["rows"] if row["case"]["causal"]]
    assert book_gpu.roofline(run) is None


def test_the_roofline_of_the_book_has_a_measured_card(book_gpu: ModuleType) -> None:
    run = book_gpu.gpu_runs()[0]
    found = book_gpu.roofline(run)
    assert found.reached < found.peak
    assert found.bandwidth < found.peak


def test_other_lengths_are_drawn_where_there_is_no_such_row(book_gpu: ModuleType) -> None:
    run = benchmark()
    run["rows"] = [row for row in run["rows"] if row["case"]["q_len"] != 4096]
    assert [words for words, _, _ in book_gpu.prefill_rows(run)] == ["D=128, causal, 1024 tokens"]


def test_a_benchmark_without_rows_or_in_other_units_is_refused(book_gpu: ModuleType) -> None:
    run = benchmark()
    run["rows"][0]["summary"]["unit"] = "GB/s"
    with pytest.raises(ValueError, match="expected TFLOP/s"):
        book_gpu.prefill_rows(run)
    with pytest.raises(ValueError, match="no prefill rows"):
        book_gpu.prefill_figure(benchmark() | {"rows": []})


def test_a_lane_is_described_as_its_maps_say(book_fragments: ModuleType) -> None:
    _, alt = book_fragments.product_of_lane(18)
    assert alt.startswith(
        "Lane 18 holds row 6 of A, column 6 of B, and of C the rows 4 and 6 in columns 2, 3, 6"
    )
    assert "rows of A from lanes 16 and 18" in alt
    assert "columns of B from lanes 2, 3, 18 and 19" in alt


def test_the_audit_that_the_book_reads_is_complete(book_gpu: ModuleType, record_audit: ModuleType) -> None:
    record = book_gpu.audit()
    assert record["schema"] == record_audit.SCHEMA
    roles = {(study["role"], int(study["configuration"]["FA_HEAD_DIM"])) for study in record["studies"]}
    assert roles == {
        (role, dim) for role in ("step before", "launched", "other") for dim in record_audit.DIMS
    }
    assert all(study["execution"]["error"] < 4e-3 for study in record["studies"])


def test_the_audit_notices_changed_sources(record_audit: ModuleType, tmp_path: Path) -> None:
    for name in record_audit.STEPS:
        (tmp_path / name).write_text('#define X\n#include "shared.cuh"\n')
    (tmp_path / "shared.cuh").write_text("int x;")
    (tmp_path / "other.cuh").write_text("int x;")
    before = record_audit.sources(tmp_path)
    (tmp_path / "other.cuh").write_text("int y;")
    assert record_audit.sources(tmp_path) == before, "no step includes it"
    (tmp_path / "shared.cuh").write_text("int y;")
    assert record_audit.sources(tmp_path) != before
