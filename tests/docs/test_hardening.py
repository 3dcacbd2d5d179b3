"""The page on what has been tried to break the library tells what the results say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "docs" / "book_hardening.py"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("book_hardening", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(folder: Path, kind: str, date: str, **content: Any) -> None:
    (folder / f"{kind}-{date}.json").write_text(json.dumps({"date": f"{date}T00:00:00+00:00"} | content))


def test_without_results_the_page_says_so(page: ModuleType, tmp_path: Path) -> None:
    assert "Not run yet" in page.soaked(tmp_path)
    assert "Not measured yet" in page.covered(tmp_path)
    assert "Not measured yet" in page.mutated(tmp_path)[0]
    assert page.fuzzed(tmp_path).endswith("\n\n0 executions in all.")


def test_the_newest_result_is_told(page: ModuleType, tmp_path: Path) -> None:
    for date, failures in (("2030-01-02", []), ("2030-01-01", ["one"])):
        part = {"lines_percent": 95.04, "branches_percent": 90.0, "left_out": []}
        record(tmp_path, "coverage", date, python=part, cpp=part, passed=not failures)
    assert page.covered(tmp_path).startswith("2030-01-02:")


def test_every_run_of_the_fuzzers_is_told(page: ModuleType, tmp_path: Path) -> None:
    for date, calls in (("2030-01-02", 2000), ("2030-01-01", 1000)):
        record(tmp_path, "fuzz-native", date, calls=calls, edges=5, environment={"isa": "avx2"})
    assert "| 2030-01-01 | `avx2` | 1,000 | 5 | nothing |" in page.fuzzed(tmp_path)
    assert "| 2030-01-02 | `avx2` | 2,000 | 5 | nothing |" in page.fuzzed(tmp_path)
    assert page.fuzzed(tmp_path).endswith("\n\n3,000 executions in all.")


def test_survivors_are_listed_with_what_was_changed(page: ModuleType, tmp_path: Path) -> None:
    survivor = {"file": "reference/x.py", "line": 7, "change": ["-    a = b | c", "+    a = b & c"]}
    record(
        tmp_path, "mutation", "2030-01-01",
        outcomes={"killed": 3, "survived": 1}, possible=4000, killed_percent=75.0, survivors=[survivor],
    )  # fmt: skip
    text, table = page.mutated(tmp_path)
    assert "of 4,000 possible faults 4 were tried" in text
    assert "75.0 %" in text
    assert table.splitlines()[-1] == r"| reference/x.py | 7 | `a = b \| c` | `a = b & c` |"


def test_failures_of_the_soak_are_not_hidden(page: ModuleType, tmp_path: Path) -> None:
    counts = {
        "attention calls": 10, "attention results checked": 5, "caches made": 2, "cache: append": 7,
        "cache: attend, checked": 6,
    }  # fmt: skip
    held = {"held_early": {"resident_bytes": 67_000_000}, "held_late": {"resident_bytes": 68_600_000}}
    record(tmp_path, "soak", "2030-01-01", counts=counts, failures=["one"], threads=8, seconds=300.2, **held)
    assert "5 and 6 results checked; failures: 1." in page.soaked(tmp_path)
    assert page.soaked(tmp_path).endswith("held 67 MB after the first seconds, 69 MB at the end.")


def test_what_coverage_left_out_is_named(page: ModuleType, tmp_path: Path) -> None:
    part = {"lines_percent": 95.04, "branches_percent": 90.0, "left_out": ["isa/amx.cpp"]}
    record(tmp_path, "coverage", "2030-01-01", python=part, cpp=part | {"left_out": []}, passed=True)
    lines = page.covered(tmp_path).splitlines()
    assert lines[-2:] == ["| Python | 95.0 | 90.0 | `isa/amx.cpp` |", "| C++ | 95.0 | 90.0 | nothing |"]
    assert page.covered(tmp_path).startswith("2030-01-01:")
    record(tmp_path, "coverage", "2030-01-02", python=part, cpp=part, passed=False)
    assert page.covered(tmp_path).startswith("2030-01-02, in a run in which a test failed:")


def test_a_finding_of_the_fuzzer_is_told(page: ModuleType, tmp_path: Path) -> None:
    found = {"executions": 10, "edges": 5, "finding": ["one"]}
    targets = {"gguf": found, "attention": found | {"finding": None}}
    record(tmp_path, "fuzz-python", "2030-01-01", targets=targets, environment={"isa": "avx2"})
    lines = page.fuzzed(tmp_path).splitlines()[2:4]
    assert [line.endswith("| a fault, mended since |") for line in lines] == [True, False]
