"""The peer: what it is asked, what it answers, and what is said where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fastattention.bench.offload import hugging_face
from fastattention.bench.offload.cases import OffloadCase

SHAPE = SimpleNamespace(
    layers=99, hidden=64, feed_forward=96, heads=4, kv_heads=2, head_dim=16, vocab_size=128
)  # fmt: skip
CASE = OffloadCase("tiny", 2, 50, 2)
ORDER = {
    "layers": 2, "context": 50, "batch": 2, "hidden": 64, "feed_forward": 96, "heads": 4, "kv_heads": 2,
    "vocab_size": 128, "seed": 3,
}  # fmt: skip


def answer(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> list[list[str]]:
    """Make every child answer so; return the commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(**({"returncode": 0, "stdout": "", "stderr": ""} | fields))

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_order_has_the_case_s_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = answer(monkeypatch, stdout='a warning\n{"tokens": [1.0]}\n')
    assert hugging_face.ask(CASE, SHAPE, seed=3) == {"tokens": [1.0]}
    command = commands[0]
    assert command[:3] == [sys.executable, "-m", "fastattention.bench.offload.hugging_face"]
    order = json.loads(command[3])
    assert {name: order[name] for name in ORDER} == ORDER


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"returncode": 1, "stderr": "Traceback\nOutOfMemoryError: CUDA out of memory\n"},
         "OutOfMemoryError: CUDA out of memory"),
        ({"returncode": -9}, "exit code -9"),
    ],
)  # fmt: skip
def test_a_child_that_fails_is_a_finding(
    fields: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, **fields)
    assert hugging_face.ask(CASE, SHAPE) == {"missing": reason}


def test_a_child_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("python", options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    assert hugging_face.ask(CASE, SHAPE) == {"missing": "no answer within 120 seconds"}


def test_a_real_child_without_a_gpu_or_a_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = hugging_face.ask(CASE, SHAPE)
    assert list(found) == ["missing"]
    assert "not installed" in found["missing"] or "finds no CUDA device" in found["missing"]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # of the libraries' own making
def test_decoding_on_a_cache_of_random_rows() -> None:
    pytest.importorskip("torch", reason="needs PyTorch")
    pytest.importorskip("transformers", reason="needs transformers")
    found = hugging_face.measure(ORDER, device="cpu")
    assert len(found["tokens"]) == 4
    assert all(seconds > 0 for seconds in found["tokens"])
    assert found["cache"] == "DynamicCache"
    assert set(found["versions"]) == {"PyTorch", "transformers"}
