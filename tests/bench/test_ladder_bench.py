"""``fastattention bench --ladder``: what it measures, what it refuses, what it writes."""

from __future__ import annotations

import importlib.util
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from fastattention import cli, get_isa

if not all(importlib.util.find_spec(name) for name in ("rich", "matplotlib")):
    pytest.skip("needs the extra bench", allow_module_level=True)

from fastattention.cpu_kernels.ladder import STEPS

from fastattention.bench import ladder, ladder_report, results

QUICK = ["bench", "--ladder", "--quick", "--threads", "1"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON file of a quick run."""
    path = tmp_path_factory.mktemp("ladder") / "climb.json"
    assert cli.main([*QUICK, "--filter", "D64", "--json", str(path)]) == 0
    return path


def test_every_step_is_timed_full_and_causal(written: Path) -> None:
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["schema"] == ladder.SCHEMA
    assert content["date"]
    assert content["environment"]["cpu"]
    assert content["environment"]["versions"]["numpy"]
    seen = {(row["step"]["name"], row["case"]["causal"]) for row in content["rows"]}
    assert seen == {
        (name, causal) for name in [*(s.name for s in STEPS), "library"] for causal in (False, True)
    }
    for row in content["rows"]:
        assert row["error"] < 1e-4
        assert len(row["limits"]) == len(row["rounds"]) + 1
        pairs = row["case"]["q_heads"] * row["case"]["q_len"] * row["case"]["k_len"]
        if not row["case"]["causal"]:
            assert row["useful_flops"] == 4 * 64 * pairs
        middle = statistics.median(time for times in row["rounds"] for time in times)
        assert row["summary"]["rate"] == pytest.approx(1e-9 * row["useful_flops"] / middle)


def test_file_is_read_back_as_it_was_written(written: Path) -> None:
    climb = ladder.load(written)
    assert ladder.to_json(climb) == json.loads(written.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="schema"):
        results.load(written)


def test_figure_is_drawn(written: Path) -> None:
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    axes = ladder_report.figure(ladder.load(written)).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [*(s.name for s in STEPS), "library"]
    assert len(axes[0].patches) == 2 * (len(STEPS) + 1)


def test_table_has_a_line_for_each_step(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    ladder_report.print_table(ladder.load(written), Console(width=130))
    text = capsys.readouterr().out
    for step in STEPS:
        assert f"{step.name} " in text
        assert step.idea in text


def test_gain_compares_neighbours_and_counts_threads() -> None:
    def row(seconds: float, limit: float, threads: int) -> results.Row:
        rung = next(rung for rung in ladder.rungs(2) if rung.case.threads == threads)
        return results.Row(rung.case, 10**9, 0.0, [[seconds]], "FMA", [limit, limit], None, {})

    nine, ten, library = (ladder.LIBRARY._replace(number=number) for number in (9, 10, 11))
    record = results.Run("2000-01-01", {}, {}, [row(0.1, 100.0, 1), row(0.05, 200.0, 2), row(0.05, 200.0, 2)])
    climb = ladder.Climb([nine, ten, library], record)
    assert climb.gain(nine, 64, False) is None
    assert climb.gain(ten, 64, False) == pytest.approx(2.0)
    assert climb.gain(library, 64, False) == pytest.approx(1.0)
    apart = replace(climb, steps=[nine, library, library._replace(number=13)])
    assert apart.gain(library, 64, False) is None


def test_rungs_by_name() -> None:
    names = [rung.name for rung in ladder.rungs(2, "default", "08 causal D128")]
    assert names == ["08_register_tiles/causal/D128/S3072/1t"]
    assert {rung.case.threads for rung in ladder.rungs(3)} == {1, 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "nonsense"], "no step matches 'nonsense'"),
        (["--isa", "avx1024"], "avx1024"),
        (["--threads", "100000"], "this process may use"),
    ],
)
def test_bad_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--ladder", "--quick", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_list_and_forced_isa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = get_isa()
    assert cli.main(["bench", "--ladder", "--list"]) == 0
    assert "00_naive/full/D64/S1024/1t" in capsys.readouterr().out
    path = tmp_path / "x.json"
    request = [*QUICK, "--isa", "baseline", "--filter", "03 D64", "--no-plots", "--json", str(path)]
    assert cli.main(request) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["environment"]["isa"] == "baseline"
    assert get_isa() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_step_is_reported_and_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ladder.ladder.attention

    def wrong(step: int, *arrays: object, **options: object) -> None:
        right(step, *arrays, **options)
        if step == 3:
            arrays[3][...] *= 1.01

    monkeypatch.setattr(ladder.ladder, "attention", wrong)
    path = tmp_path / "x.json"
    assert cli.main([*QUICK, "--filter", "full D64", "--json", str(path)]) == 1
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(content["failures"]) == 1
    assert len(content["rows"]) == len(STEPS)
    assert "WRONG, not timed: 03_vectors" in capsys.readouterr().out
