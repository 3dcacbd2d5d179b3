"""``fastattention plan``: the table, JSON, and one line where nothing fits."""

from __future__ import annotations

import argparse
import re

import pytest

from fastattention.cli import main
from fastattention.offload import OffloadPlan, hardware, model_shape, plan_offload
from fastattention.offload.command import number, tokens

CALL = ("plan", "--model", "llama-3-8b", "--gpu", "v100-16gb", "--context")


def test_the_table(capsys):
    assert main([*CALL, "256k"]) == 0
    plan = plan_offload(model_shape("llama-3-8b"), hardware("v100-16gb"), context=262144)
    assert capsys.readouterr().out == f"{plan}\n"


def test_json_here_and_to_a_file(capsys, tmp_path):
    assert main([*CALL, "32768", "--json", "--batch", "2", "--kv-dtype", "int8"]) == 0
    plan = OffloadPlan.from_json(capsys.readouterr().out)
    assert (plan.context, plan.batch, plan.kv_dtype) == (32768, 2, "int8")
    path = tmp_path / "plan.json"
    assert main([*CALL, "32768", "--batch", "2", "--kv-dtype", "int8", "--json", str(path)]) == 0
    assert OffloadPlan.from_json(path.read_text()) == plan
    assert capsys.readouterr().out == f"{plan}\n"


def test_overrides(capsys):
    options = (
        "--json --way split --gpu-layers 1 --chunk 64 --slots 2 --slot-tokens 300 --share 0.5 --threads 4"
    )
    numbers = "--gpu-memory 40Gi --cpu 30G --bus 16e9 --latency 1e-4 --margin 0.1 --gpu-attention-flops 21T"
    assert main([*CALL, "64k", *options.split(), *numbers.split()]) == 0
    plan = OffloadPlan.from_json(capsys.readouterr().out)
    found = (plan.gpu_layers, plan.chunk, plan.slots, plan.slot_tokens, plan.share, plan.threads)
    assert found == (1, 64, 2, 300, 0.5, 4)
    card = plan.hardware
    assert (card.gpu_memory, card.cpu, card.bus, card.latency) == (40 * 2**30, 30e9, 16e9, 1e-4)
    assert card.gpu_attention_flops == 21e12
    assert "; given: gpu_memory, gpu_attention_flops, bus, cpu, latency" in card.source


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("1m", "--way", "gpu"), "with all caches on the GPU .*; the largest context that fits is"),
        (("64k", "--gpu-memory", "1G"), "the largest context that fits is 0 tokens"),
        (("64k", "--model", "nobody"), "model: expected"),
        (("64k", "--gpu", "abacus"), "hardware: expected"),
        (("64k", "--share", "2"), "share: expected 0 to 1"),
        (("64k", "--bus", "0"), "bus: expected a number above 0"),
        (("64k", "--json", "/no/such/folder/plan.json"), "No such file"),
    ],
)
def test_one_line_of_refusal(capsys, options, message):
    assert main([*CALL, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastattention plan: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_numbers_as_people_write_them():
    assert [tokens(text) for text in ("7", "256k", "1m", "2K")] == [7, 262144, 1048576, 2048]
    assert [number(text) for text in ("16e9", "16G", "16Gi", "1.5T", "3")] == [16e9, 16e9, 2**34, 1.5e12, 3]
    for read in (tokens, number):
        with pytest.raises(argparse.ArgumentTypeError, match="'many': expected"):
            read("many")
