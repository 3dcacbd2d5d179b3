"""The file, the report, the figures and the targets of a run."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmark's report needs the extra bench")
pytest.importorskip("matplotlib", reason="the benchmark's figures need the extra bench")

from rich.console import Console

from fastattention.bench.offload import plots, results
from fastattention.bench.offload.report import WIDTH, print_report
from fastattention.bench.offload.results import Outcome
from fastattention.bench.offload.targets import judge
from fastattention.bench.plot_file import draw

from .fakes import a_long_run, a_row, a_run, cache_bytes


def printed(run: results.Run) -> str:
    text = io.StringIO()
    print_report(run, Console(file=text, width=WIDTH))
    return text.getvalue()


def goals(run: results.Run) -> dict[str, bool]:
    return {f"{goal.row} {goal.text}": goal.met for goal in run.goals}


def test_json_round_trip(tmp_path: Path) -> None:
    run = a_run()
    path = tmp_path / "run.json"
    results.save(run, path)
    again = results.load(path)
    assert again == run
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == "offload-1"
    row = content["rows"][0]["summary"]
    assert row["name"] == "llama-3-8b/L8/S131072/B1"
    assert row["ways"]["cooperative"]["times_classical_layer"] == pytest.approx(105 / 54)
    assert row["ways"]["classical"]["bus_up_gbps"] == pytest.approx(54)
    assert row["ways"]["cooperative"]["times_hugging_face"] == pytest.approx(
        1.2 / run.rows[0].ways["cooperative"].token
    )
    assert len(content["long"]["samples"]["seconds"]) == 900


def test_other_schemas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'gpu-1'.*'offload-1'"):
        results.from_json({"schema": "gpu-1"})


def test_a_layer_is_a_step_over_its_layers() -> None:
    row = a_row()
    assert row.layer("classical") == pytest.approx(cache_bytes(row.case) / 54e9 / 8)


def test_targets_met() -> None:
    found = goals(a_run())
    name = "llama-3-8b/L8/S131072/B1"
    assert found == {
        f"{name} cooperative 1.8x a layer": True,
        f"{name} cooperative 1.8x a token": True,
        f"{name} split 2x a layer": True,
        f"{name} split 2x a token": True,
        f"{name} classical 90 %": True,
        f"{name} cooperative 20x transformers": True,
        f"{name} split 20x transformers": True,
        f"{name} classical ± 15 %": True,
        f"{name} cooperative ± 15 %": True,
        f"{name} split ± 15 %": True,
        "llama-3-8b/S262144 memory 32 GiB": True,
        "llama-3-8b/S262144 prefill ± 15 %": True,
        "llama-3-8b/S262144 a token ± 15 %": True,
    }


@pytest.mark.parametrize(
    ("speeds", "missed"),
    [
        ({"cooperative": 54 * 1.79}, {"cooperative 1.8x a layer", "cooperative 1.8x a token"}),
        ({"split": 54 * 1.99}, {"split 2x a layer", "split 2x a token"}),
        ({"classical": 55 * 0.89}, {"classical 90 %"}),
        # Twenty times the peer's 1.25 s a token would be 62.5 ms; 8 layers of this are 67.
        ({"cooperative": 64.0, "classical": 30.0, "split": 118.0},
         {"classical 90 %", "cooperative 20x transformers"}),
    ],
)  # fmt: skip
def test_targets_missed(speeds: dict[str, float], missed: set[str]) -> None:
    run = a_run()
    run.rows, run.long = [a_row(**speeds)], None
    found = {f"{goal.row.split()[-1]} {goal.text}" for goal in judge(run) if not goal.met}
    assert found == missed


def test_tokens_and_layers_are_judged_apart() -> None:
    row = a_row()
    row.ways["cooperative"].tokens = [1.0]
    run = a_run()
    run.rows, run.long = [row], None
    found = {goal.text: goal.met for goal in judge(run) if "cooperative" in goal.row and goal.kind == "speed"}
    assert found == {"1.8x a layer": True, "1.8x a token": False}


def test_predictions_are_judged_both_ways() -> None:
    for factor, met in ((1.14, True), (1.16, False), (0.86, True), (0.84, False)):
        row = a_row()
        row.ways["split"].predicted = factor * row.ways["split"].token
        run = a_run()
        run.rows, run.long = [row], None
        assert {goal.met for goal in judge(run) if goal.kind == "prediction" and "split" in goal.row} == {met}


def test_what_was_not_timed_is_not_judged() -> None:
    row = a_row()
    row.ways["classical"] = Outcome("left out", "no room")
    row.ways["split"].predicted = None
    row.peer = {"missing": "not installed (No module named 'transformers')"}
    run = a_run()
    run.rows, run.long = [row], None
    run.goals = judge(run)
    assert list(goals(run)) == ["llama-3-8b/L8/S131072/B1 cooperative ± 15 %"]
    text = printed(run)
    assert "transformers: not installed" in text
    assert "Left out: llama-3-8b/L8/S131072/B1: classical: no room" in text


def test_a_pool_above_its_limit_is_missed() -> None:
    run = a_run()
    run.rows, run.long = [], a_long_run()
    run.long.peaks["pool_total"] = 33 * 2**30
    assert [goal.row for goal in judge(run) if not goal.met] == ["llama-3-8b/S262144 memory"]


def test_report() -> None:
    text = printed(a_run())
    for words in (
        "NVIDIA Test 200, 141 GiB; A Processor, 16 cores, 110 GiB for caches",
        "llama-3-8b, 8 layers, 131072 tokens, batch 1: 4.0 GiB of keys and values",
        "split, 66 % CPU", "1.94x", "105 GB/s", "54 GB/s", "transformers 5.17.0", "1200", "+10 %", "4 met",
        "Left out: x/L2/S1/B1: no room", "Targets: 13 of 13 met.",
        "without cooperation: refused: 262176 tokens do not fit; 118784 do",
        "layers: 12 gpu, 20 host; prefill 80.0 s (foretold: 84.0 s, +5 %), then 4 tokens, 200.0 ms each",
        "30.0 GiB in arrays on the GPU, 31.0 held by the pool, 33.0 in use on the GPU in all",
        "GB/s, float16, 15 threads", "44.0",
    ):  # fmt: skip
        assert words in text, words
    assert all(len(line) <= WIDTH for line in text.splitlines() if "met" in line)


def test_missed_targets_are_named() -> None:
    run = a_run()
    run.rows = [a_row(split=60.0)]
    run.goals = judge(run)
    text = printed(run)
    assert "1 met, 3 missed" in text
    assert (
        "Missed: llama-3-8b/L8/S131072/B1 split: split: 1.11 times of classical's speed, a host layer" in text
    )


def test_figures(tmp_path: Path) -> None:
    run = a_run()
    run.rows.append(a_row(dataclasses.replace(run.rows[0].case, batch=4, peer=False)))
    path = tmp_path / "offload.json"
    results.save(run, path)
    written = draw(path)
    assert [item.name for item in written] == [
        "offload-tokens.png", "offload-tokens.svg", "offload-memory.png", "offload-memory.svg",
    ]  # fmt: skip
    assert all(item.stat().st_size > 5000 for item in written)


def test_figures_of_nothing(tmp_path: Path) -> None:
    run = a_run()
    run.rows, run.long = [], None
    assert plots.draw(run, tmp_path / "x.json") == []
