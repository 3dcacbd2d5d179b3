"""What the chapters on GPUs read and draw, on files made up here: real ones come from other machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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


CASE = {"kind": "prefill", "dtype": "float16", "head_dim": 128, "causal": True, "q_len": 4096}


@pytest.mark.parametrize(
    "row",
    [
        {"case": CASE, "tflops": 250.0, "peers": {"PyTorch": 300.0, "cuDNN": None}},
        {
            "case": CASE,
            "useful_flops": 10**12,
            "rounds": [[0.004, 0.004, 0.005], [0.004]],
            "peers": {"PyTorch": {"rounds": [[1 / 300]]}, "cuDNN": {"rounds": []}},
        },
    ],
    ids=["rates", "times"],
)
def test_prefill_of_a_benchmark_is_drawn(book_gpu: ModuleType, row: dict[str, Any]) -> None:
    other = {"case": CASE | {"kind": "decode"}, "tflops": 1.0}
    run = {"hardware": {"name": "A card"}, "date": "2026-01-02", "rows": [row, other]}
    [(words, rate, peers)] = book_gpu.prefill_rows(run)
    assert (words, rate) == ("D=128, causal, 4096 tokens", 250.0)
    assert peers == {"PyTorch": pytest.approx(300.0)}
    figure, alt = book_gpu.prefill_figure(run)
    assert [patch.get_width() for patch in figure.axes[0].patches] == pytest.approx([250.0, 300.0])
    assert alt.startswith("Measured prefill on A card, 2026-01-02")


def test_a_benchmark_without_figures_or_hardware_is_refused(book_gpu: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected tflops, or useful_flops and rounds"):
        book_gpu.prefill_rows({"rows": [{"case": CASE}]})
    with pytest.raises(ValueError, match="must say its hardware"):
        book_gpu.hardware({"rows": []})


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
    (tmp_path / "a.cu").write_text("int x;")
    before = record_audit.sources(tmp_path)
    (tmp_path / "a.cu").write_text("int y;")
    assert record_audit.sources(tmp_path) != before
