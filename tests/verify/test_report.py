"""What a report says: as JSON, in the terminal, as a page; and the command's exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fastattention import cli
from fastattention.verify import Report, Result, Sizes, verify
from fastattention.verify.shrink import shrink

from .kernels import Kernel

FAULT = "causal begins at the first key"

MODULE = """
from tests.verify.kernels import Kernel

right = Kernel().adapter()
wrong = Kernel("causal begins at the first key").adapter()
raising = Kernel("it raises for odd lengths").adapter()
number = 3


def unknown(a, b):
    return a
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the caller, as one has it who writes a kernel."""
    name = f"kernels_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def run(*args: str) -> int:
    """Call the command and return its exit code."""
    return cli.main(["verify", *args])


def test_all_right(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{module}:right", "--quick") == 0
    out = capsys.readouterr().out
    assert "cases are right" in out
    assert "Key tiles end at 48" in out
    assert "For any number of threads: float32 yes." in out
    assert "wrong" not in out.replace("above 1 is wrong", "")


def test_something_wrong(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{module}:wrong", "--quick", "--json", "report.json", "--html", "report.html") == 1
    out = capsys.readouterr().out
    assert "What breaks first: causal alignment" in out
    assert "At its smallest:" in out
    data = json.loads(Path("report.json").read_text())
    assert data["schema"] == "verify-1"
    assert data["passed"] is False
    assert data["seed"] == 0
    first = next(result for result in data["results"] if result["finding"])
    assert first["case"] == "causal, 1 query at the end of 40 keys"
    assert data["smallest"]["result"]["sizes"]["k_len"] < 40
    page = Path("report.html").read_text()
    assert "causal alignment" in page
    assert "<html" in page.lower()
    assert "http" not in page  # nothing is loaded from elsewhere


def test_the_line_that_replays(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{module}:wrong", "--quick", "--seed", "5")
    again = capsys.readouterr().out.split("Again:")[1].replace("\n", " ")
    assert "--seed 5" in again
    assert run(f"{module}:wrong", "--only", "causal, 1 query at the end of 40 keys", "--seed", "5") == 1
    assert "1 of 1 cases are wrong" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["memory", "rounding"])
def test_replays_of_what_is_no_case_of_sizes(module: str, group: str) -> None:
    dtypes = ["float16"] if group == "rounding" else None
    report = verify(Kernel().adapter(dtypes=("float32", "float16")), only=group, dtypes=dtypes)
    assert {result.group for result in report.results} == {group}
    assert verify(
        Kernel().adapter(dtypes=("float32", "float16")), only=report.results[0].case, dtypes=dtypes
    ).results


def test_a_kernel_that_raises_is_wrong_not_an_end(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{module}:raising", "--quick") == 1
    assert "RuntimeError: unsupported length" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["{m}:number"], "expected a function, an Adapter or a path, got int"),
        (["{m}:unknown"], "expected the parameters q, k, v first, got (a, b)"),
        (["{m}:nothing"], "has no nothing"),
        (["nowhere:f"], "nowhere cannot be imported"),
        (["{m}:right", "--features", "speed"], "features: expected some of"),
        (["{m}:right", "--dtypes", "int4"], "dtypes: expected some of"),
        (["{m}:right", "--only", "xyz"], "no case of 'xyz' is left"),
        (["{m}:right", "--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_what_cannot_be_tried(
    module: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(arg.replace("{m}", module) for arg in args)) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_json_has_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    report = verify(Kernel("a row without a key gives NaN").adapter(), only="rows without a key")
    assert math.isinf(report.failures[0].error)
    report.save(tmp_path / "x.json")

    def refuse(name: str) -> Any:
        raise ValueError(name)

    data = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert "inf" in {result["error"] for result in data["results"]}


def test_a_report_in_one_line() -> None:
    result = Result("c", "g", "float32", {"batch": 1}, 0.5)
    report = Report("k", "d", 0, "", {}, [], ["float32"], [], [], [result])
    assert str(report) == "k: 1 of 1 cases right"
    assert report.summary() == str(report)


def test_progress_goes_through_all_cases() -> None:
    seen: list[tuple[int, int]] = []
    verify(Kernel().adapter(), only="length", progress=lambda done, total, what: seen.append((done, total)))
    assert seen == [(i, len(seen)) for i in range(len(seen))]
    assert len(seen) > 10


def test_shrinking_finds_the_least() -> None:
    calls: list[Sizes] = []

    def fails(sizes: Sizes) -> bool:
        calls.append(sizes)
        return sizes.k_len >= 37 and sizes.head_dim % 2 == 0 and sizes.batch * sizes.q_heads >= 2

    found = shrink(Sizes(3, 8, 4, 64, 300, 64, 64), fails)
    assert fails(found)
    assert (found.k_len, found.q_len, found.head_dim) == (37, 1, 2)
    assert found.batch * found.q_heads == 2
    assert found.q_heads % found.kv_heads == 0
    assert len(calls) < 160


def test_shrinking_keeps_squares_square() -> None:
    found = shrink(Sizes(1, 2, 2, 90, 90), lambda s: s.k_len > 10 and s.q_len == s.k_len)
    assert (found.q_len, found.k_len) == (11, 11)
