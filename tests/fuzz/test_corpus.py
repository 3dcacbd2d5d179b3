"""What the fuzzers begin with, and inputs drawn at random, without a fuzzer: all is well, or a FoundError."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattention import cpu_kernels, validate

from . import attention_input, other_input
from .source import Source

CORPORA = Path(__file__).with_name("corpus")


def inputs(seed: int, count: int) -> list[bytes]:
    numbers = random.Random(seed)
    return [numbers.randbytes(numbers.choice([10, 40, 90])) for _ in range(count)]


def test_the_corpus_of_attention() -> None:
    seen = Counter(other_input.any_call(path.read_bytes()) for path in (CORPORA / "attention").iterdir())
    assert {"right", "TypeError", "ValueError"} <= set(seen)


def test_random_calls() -> None:
    seen = Counter(attention_input.attend(data) for data in inputs(0, 1500))
    assert min(seen[kind] for kind in ("right", "TypeError", "ValueError")) > 100, seen


def test_random_calls_of_other_functions() -> None:
    seen = Counter(other_input.call(Source(data)) for data in inputs(2, 1500))
    assert min(seen[kind] for kind in ("right", "TypeError", "ValueError")) > 50, seen


def _wrong(q: Any, k: Any, v: Any, out: np.ndarray, lse: Any = None, **_: Any) -> None:
    out[...] = 0.125


def _unnamed(value: Any, name: str) -> bool:
    return bool(value + 0)


def _writes_first(x: Any, *_: Any) -> np.ndarray:
    x[...] = 0
    raise ValueError("out: this one is refused, after it was written")


@pytest.mark.parametrize(
    ("module", "name", "fault", "said"),
    [
        (cpu_kernels, "attention", _wrong, "AssertionError: "),
        (validate, "flag", _unnamed, "names no argument"),
        (validate, "output_array", _writes_first, "has written"),
    ],
)
def test_faults_are_noticed(
    module: Any, name: str, fault: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, fault)
    found = []
    for data in inputs(1, 600):
        try:
            attention_input.attend(data)
        except attention_input.FoundError as error:
            found.append(str(error))
    assert any(said in text for text in found), found[:3]


@pytest.mark.models
def test_the_corpus_of_gguf(tmp_path: Path) -> None:
    gguf_input = pytest.importorskip("tests.fuzz.gguf_input", reason="the extra `models` is not installed")
    for path in (CORPORA / "gguf").iterdir():
        gguf_input.load(path.read_bytes(), tmp_path / "model.gguf", measured=True)
    for name, data in gguf_input.seeds().items():
        assert (CORPORA / "gguf" / name).read_bytes() == data
