"""``fastattention generate`` with a device and a plan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from fastattention.models import generate

from . import plain_modules, tiny_model


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_modules.install(monkeypatch)


def run(*arguments: Any) -> int:
    parser = argparse.ArgumentParser(prog="fastattention generate")
    generate.add_arguments(parser)
    return generate.main(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def said_on_the_cpu(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run("hello", "--model", tiny_path, "--max-tokens", 20) == 0
    said = capsys.readouterr().out
    assert len(set(said)) > 5
    return said


@pytest.mark.parametrize("options", [(), ("--gpu-layers", 0), ("--gpu-layers", 2), ("--way", "upload")])
def test_same_answer_with_any_placement(
    tiny_path: Path, said_on_the_cpu: str, options: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("hello", "--model", tiny_path, "--max-tokens", 20, "--device", "numpy", *options) == 0
    out, err = capsys.readouterr()
    assert out == said_on_the_cpu
    assert "CPU attention" in err
    (plan,) = plain_modules.made
    assert (plan.kv_dtype, plan.weight_dtype, plan.context) == ("float16", "float32", tiny_model.CONTEXT)
    if "--gpu-layers" in options:
        assert plan.placement.count("gpu") == options[1]


def test_options_reach_the_planner(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--cache-dtype", "int8", "--weight-dtype", "float16", "--context", 40, "--threads", 2)
    line = ("hello", "--model", tiny_path, "--device", "numpy", "--max-tokens", 2)
    assert run(*line, *options, "--gpu-layers", 1, "--way", "split", "--stats", "json") == 0
    (plan,) = plain_modules.made
    assert (plan.kv_dtype, plan.weight_dtype, plan.context, plan.threads) == ("int8", "float16", 40, 2)
    assert list(plan.placement) == ["gpu", "split", "split"]
    assert plan.model.tied
    assert json.loads(capsys.readouterr().err)["attention"] == "CPU attention"


def test_output_matrix_of_its_own_is_planned_for(tmp_path: Path) -> None:
    path = tmp_path / "untied.gguf"
    tiny_model.write(path, add={"output.weight": tiny_model.tensors()["token_embd.weight"]})
    assert run("hello", "--model", path, "--device", "numpy", "--max-tokens", 1) == 0
    assert not plain_modules.made[0].model.tied


def plan_file(tiny_path: Path, folder: Path, **changes: Any) -> Path:
    """The plan of a run, changed; "model.layers" and the like change the model's."""
    assert run("hello", "--model", tiny_path, "--device", "numpy", "--gpu-layers", 1, "--max-tokens", 1) == 0
    plan = plain_modules.made.pop()
    for name, value in changes.items():
        owner, _, attribute = name.rpartition(".")
        setattr(getattr(plan, owner) if owner else plan, attribute, value)
    path = folder / "plan.json"
    path.write_text(plan.to_json())
    return path


def test_plan_from_a_file(
    tiny_path: Path, said_on_the_cpu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = plan_file(tiny_path, tmp_path, threads=2)
    capsys.readouterr()
    line = ("hello", "--model", tiny_path, "--device", "numpy", "--max-tokens", 20)
    assert run(*line, "--plan", path) == 0
    assert capsys.readouterr().out == said_on_the_cpu
    (plan,) = plain_modules.made
    assert (plan.placement, plan.threads) == (["gpu", "host", "host"], 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.name": "large", "model.layers": 30},
            "it is for large (layers 30), not for tiny.gguf (layers 3)",
        ),
        (
            {"model.name": "wide", "model.hidden": 96},
            "it is for wide (hidden 96), not for tiny.gguf (hidden 64)",
        ),
        ({"batch": 4}, "it is for a batch of 4"),
        ({"context": 3}, "the prompt is 20 tokens long; --plan allows 3"),
        ({"weight_dtype": "bfloat16"}, "expected float32 or float16, got bfloat16"),
    ],
)
def test_plans_that_cannot_be_used(
    tiny_path: Path, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = plan_file(tiny_path, tmp_path, **changes)
    capsys.readouterr()
    refused(("--device", "numpy", "--plan", path), tiny_path, message, capsys)


def refused(options: tuple[Any, ...], model: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello", "--model", model, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not plain_modules.made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda"), "--device cuda: no CUDA device that works"),
        (("--gpu-layers", 1), "--device cuda: no CUDA device that works"),
        (("--device", "numpy", "--gpu-layers", 9), "gpu_layers: expected 0 to 3"),
        (("--device", "numpy", "--way", "teleport"), "'teleport'"),
        (("--device", "numpy", "--context", 200_000), "nothing fits; the largest context is 100000"),
        (("--device", "numpy", "--backend", "reference"), "--backend reference runs without --device"),
        (("--device", "numpy", "--plan", "/nonexistent"), "--plan /nonexistent: No such file"),
        (("--plan", "x", "--context", 5), "--context: --plan says it already"),
        (("--plan", "x", "--gpu-layers", 0), "--gpu-layers: --plan says it already"),
        (("--plan", "x", "--cache-dtype", "int8"), "--cache-dtype: --plan says it already"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny_path: Path, options: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(options, tiny_path, message, capsys)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"model": 3}'])
def test_files_that_are_no_plan(
    tiny_path: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    refused(("--device", "numpy", "--plan", path), tiny_path, f"--plan {path}: not a plan: ", capsys)


def test_weights_beyond_float16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.gguf"
    embedding = tiny_model.tensors()["token_embd.weight"] * 1e6
    tiny_model.write(path, add={"token_embd.weight": embedding})
    refused(("--device", "numpy", "--weight-dtype", "float16"), path, "the embedding has a weight of", capsys)


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_counts_are_checked(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("hello", "--gpu-layers", value)
    assert caught.value.code == 2
    assert "expected a whole number, 0 or more" in capsys.readouterr().err
