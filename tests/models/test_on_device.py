"""``fastattention generate`` with a device and a plan."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fastattention import gpu
from fastattention.models import generate, on_device
from fastattention.models.gguf import ModelFile
from fastattention.models.sizes import Config
from fastattention.offload import OffloadPlan, hardware, plan_offload

from . import tiny_model

Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[OffloadPlan]:
    """Plans that sessions were made of."""
    plans: list[OffloadPlan] = []
    session = on_device.OnDevice.session

    def noting(self: on_device.OnDevice, llama: Any) -> Any:
        result = session(self, llama)
        plans.append(self.plan)
        return result

    monkeypatch.setattr(on_device.OnDevice, "session", noting)
    return plans


def run(*arguments: Any) -> int:
    parser = argparse.ArgumentParser(prog="fastattention generate")
    generate.add_arguments(parser)
    return generate.main(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def said_on_the_cpu(tiny_path: Path, capsys: Printed) -> str:
    assert run("hello", "--model", tiny_path, "--max-tokens", 20) == 0
    said = capsys.readouterr().out
    assert len(set(said)) > 5
    return said


@pytest.mark.parametrize(
    ("on_gpu", "way"), [(None, None), (0, "cooperative"), (2, "split"), (1, "classical"), (None, "gpu")]
)
def test_same_answer_with_any_placement(
    tiny_path: Path, said_on_the_cpu: str, on_gpu: Any, way: Any, made: list[OffloadPlan], capsys: Printed
) -> None:
    line = ["hello", "--model", tiny_path, "--max-tokens", 20, "--device", "numpy"]
    line += [] if on_gpu is None else ["--gpu-layers", on_gpu]
    line += [] if way is None else ["--way", way]
    assert run(*line) == 0
    out, err = capsys.readouterr()
    assert out == said_on_the_cpu
    assert "CPU attention" in err
    (plan,) = made
    assert (plan.kv_dtype, plan.weight_dtype, plan.context) == ("float16", "float32", tiny_model.CONTEXT)
    assert plan.gpu_layers == (3 if on_gpu is None else on_gpu)
    assert plan.way == (way or "gpu")


def test_options_reach_the_planner(tiny_path: Path, made: list[OffloadPlan], capsys: Printed) -> None:
    options = ("--cache-dtype", "int8", "--weight-dtype", "float16", "--context", 40, "--threads", 2)
    line = ("hello", "--model", tiny_path, "--device", "numpy", "--max-tokens", 2)
    assert run(*line, *options, "--gpu-layers", 1, "--way", "split", "--stats", "json") == 0
    (plan,) = made
    assert (plan.kv_dtype, plan.weight_dtype, plan.context, plan.threads) == ("int8", "float16", 40, 2)
    assert sorted(plan.placement) == ["gpu", "split", "split"]
    assert plan.model.tied
    assert json.loads(capsys.readouterr().err)["attention"] == "CPU attention"


def test_output_matrix_of_its_own_is_planned_for(tmp_path: Path, made: list[OffloadPlan]) -> None:
    path = tmp_path / "untied.gguf"
    tiny_model.write(path, add={"output.weight": tiny_model.tensors()["token_embd.weight"]})
    assert run("hello", "--model", path, "--device", "numpy", "--max-tokens", 1) == 0
    assert not made[0].model.tied


def plan_file(path: Path, folder: Path, tied: bool = True, **changes: Any) -> Path:
    """A plan for the model, changed; what begins with "model_" changes the model's sizes."""
    shape = on_device._shape(Config.from_file(ModelFile(path)), "tiny", tied=tied)
    sizes = {name[6:]: value for name, value in changes.items() if name.startswith("model_")}
    plan = plan_offload(
        dataclasses.replace(shape, **sizes), hardware("v100-16gb"), context=tiny_model.CONTEXT,
        weight_dtype="float32", way="cooperative", gpu_layers=1,
    )  # fmt: skip
    others = {name: value for name, value in changes.items() if not name.startswith("model_")}
    written = folder / "plan.json"
    written.write_text(dataclasses.replace(plan, **others).to_json())
    return written


def test_plan_from_a_file(
    tiny_path: Path, said_on_the_cpu: str, tmp_path: Path, made: list[OffloadPlan], capsys: Printed
) -> None:
    path = plan_file(tiny_path, tmp_path, threads=2)
    line = ("hello", "--model", tiny_path, "--device", "numpy", "--max-tokens", 20)
    assert run(*line, "--plan", path) == 0
    assert capsys.readouterr().out == said_on_the_cpu
    (plan,) = made
    assert (plan.placement.count("host"), plan.threads) == (2, 2)


def test_embedding_in_host_memory(tmp_path: Path, capsys: Printed) -> None:
    model = tmp_path / "untied.gguf"
    tiny_model.write(model, add={"output.weight": tiny_model.tensors(1)["token_embd.weight"]})
    line = ("hello", "--model", model, "--max-tokens", 20)
    assert run(*line) == 0
    said = capsys.readouterr().out
    path = plan_file(model, tmp_path, tied=False, embedding="host")
    assert run(*line, "--device", "numpy", "--plan", path) == 0
    assert capsys.readouterr().out == said


def refused(options: tuple[Any, ...], model: Path, message: str, capsys: Printed) -> None:
    assert run("hello", "--model", model, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "deep", "model_layers": 30}, "is for deep (layers 30), not for tiny.gguf (layers 3)"),
        (
            {"model_name": "wide", "model_hidden": 96},
            "is for wide (hidden 96), not for tiny.gguf (hidden 64)",
        ),
        ({"batch": 4}, "it is for a batch of 4"),
        ({"context": 3}, "the prompt is 20 tokens long; --plan allows 3"),
        ({"weight_dtype": "int8"}, "expected float32 or float16, got int8"),
        ({"embedding": "host"}, "it is the output matrix, too"),
    ],
)
def test_plans_that_cannot_be_used(
    tiny_path: Path, tmp_path: Path, changes: dict[str, Any], message: str, made: list[Any], capsys: Printed
) -> None:
    path = plan_file(tiny_path, tmp_path, **changes)
    refused(("--device", "numpy", "--plan", path), tiny_path, message, capsys)
    assert not made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "tpu"), "--device tpu: "),
        (("--device", "numpy", "--gpu-layers", 9), "gpu_layers: "),
        (("--device", "numpy", "--way", "teleport"), "'teleport'"),
        (("--device", "numpy", "--context", 10**12), "the largest context that fits is"),
        (("--device", "numpy", "--backend", "reference"), "--backend reference runs without --device"),
        (("--device", "numpy", "--plan", "/nonexistent"), "--plan /nonexistent: No such file"),
        (("--plan", "x", "--context", 5), "--context: --plan says it already"),
        (("--plan", "x", "--gpu-layers", 0), "--gpu-layers: --plan says it already"),
        (("--plan", "x", "--cache-dtype", "int8"), "--cache-dtype: --plan says it already"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny_path: Path, options: tuple[Any, ...], message: str, made: list[Any], capsys: Printed
) -> None:
    refused(options, tiny_path, message, capsys)
    assert not made


@pytest.mark.skipif(gpu.available(), reason="there is a GPU")
@pytest.mark.parametrize("options", [("--device", "cuda"), ("--gpu-layers", 1)])
def test_without_a_gpu_it_says_so(tiny_path: Path, options: tuple[Any, ...], capsys: Printed) -> None:
    refused(options, tiny_path, "--device cuda: ", capsys)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"model": 3}'])
def test_files_that_are_no_plan(tiny_path: Path, tmp_path: Path, text: str, capsys: Printed) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    refused(("--device", "numpy", "--plan", path), tiny_path, f"--plan {path}: not a plan: ", capsys)


def test_weights_beyond_float16(tmp_path: Path, capsys: Printed) -> None:
    path = tmp_path / "large.gguf"
    embedding = tiny_model.tensors()["token_embd.weight"] * 1e6
    tiny_model.write(path, add={"token_embd.weight": embedding})
    refused(("--device", "numpy", "--weight-dtype", "float16"), path, "the embedding has a weight of", capsys)


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_counts_are_checked(value: str, capsys: Printed) -> None:
    with pytest.raises(SystemExit) as caught:
        run("hello", "--gpu-layers", value)
    assert caught.value.code == 2
    assert "expected a whole number, 0 or more" in capsys.readouterr().err
