"""The real model: known tokens of known text, and known answers.

The golden tokens were compared with llama.cpp running the same weights expanded to float32, which chooses the
same ones for all 16 prompts of `fastattention.bench.llama_cpp`; there, logits differ by less than 1e-4.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from fastattention.bench.perplexity import perplexity
from fastattention.models import generate
from fastattention.models.chat import render
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama, Session
from fastattention.models.tokenizer import Tokenizer

# Along these answers the two likeliest tokens are never closer than 0.06 logits, far more than the rounding
# of any BLAS or instruction set, so the same tokens are due everywhere.
GOLDEN = {
    "def fibonacci(n):\n": (
        198, 1604, 3987, 46477, 24, 94, 727, 472, 585, 304, 10204, 216, 33, 42, 448, 1003, 304, 472, 1745, 42,
        448, 1003, 3987, 46477, 24, 94, 731, 216, 33, 25, 1232, 3987,
    ),
    "Dear Sir or Madam,\n\nI am writing to": (
        346, 1834, 28, 198, 198, 57, 744, 2385, 288, 346, 1834, 28, 198, 198, 57, 744, 2385, 288, 346, 1834,
        28, 198, 198, 57, 744, 2385, 288, 346, 1834, 28, 198, 198,
    ),
    "The quick brown fox jumps over the lazy dog. The": (
        2767, 314, 253, 23790, 2767, 30, 198, 198, 504, 2988, 314, 42, 216, 33, 30, 198, 198, 504, 2988, 314,
        42, 216, 34, 30, 2, 198, 1, 520, 9531, 198, 504, 2988,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def file(smollm2_path: Path) -> ModelFile:
    return ModelFile(smollm2_path)


@pytest.fixture(scope="module")
def tokenizer(file: ModelFile) -> Tokenizer:
    return Tokenizer(file)


@pytest.fixture(scope="module")
def model(file: ModelFile) -> Llama:
    return Llama.from_file(file)


def greedy(session: Session, tokens: list[int], count: int) -> tuple[int, ...]:
    logits, chosen = session.forward(tokens), []
    for _ in range(count):
        chosen.append(int(logits.argmax()))
        logits = session.forward(chosen[-1:])
    return tuple(chosen)


@pytest.mark.parametrize("prompt", GOLDEN)
def test_golden_answers(model: Llama, tokenizer: Tokenizer, prompt: str) -> None:
    assert greedy(Session(model, context=64), tokenizer.encode(prompt), 32) == GOLDEN[prompt]


@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", "float32"), ("cpu", "float16"), ("cpu", "int8")]
)
def test_other_attention_gives_the_same_answer(
    model: Llama, tokenizer: Tokenizer, backend: str, dtype: str
) -> None:
    prompt = "def fibonacci(n):\n"
    session = Session(model, context=64, backend=backend, cache_dtype=dtype)
    assert greedy(session, tokenizer.encode(prompt), 16) == GOLDEN[prompt][:16]


def test_int8_costs_less_than_one_percent_of_perplexity(model: Llama, tokenizer: Tokenizer) -> None:
    """A short text; ``fastattention bench --perplexity`` takes a long one."""
    tokens = tokenizer.encode(topics["execmodel"])[:400]
    exact, rounded = (perplexity(model, tokens, dtype, chunk=128) for dtype in ("float32", "int8"))
    assert 2 < exact < 40, "this is no text, or no model"
    assert exact != rounded
    assert abs(rounded / exact - 1) < 0.01


# Tokens that llama.cpp gives.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_known_tokens(tokenizer: Tokenizer, text: str, tokens: list[int]) -> None:
    assert tokenizer.encode(text) == tokens


def test_missing_bytes_are_known(tokenizer: Tokenizer) -> None:
    assert tokenizer.missing("a\x04é🙂\U0010ffff한") == "\x04"
    assert tokenizer.missing("\U00040000") == "\U00040000"


def test_chat_template_has_the_default_system_prompt(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template is not None
    assert render(tokenizer.chat_template, [{"role": "user", "content": "Hi {{ 1 }}"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi {{ 1 }}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_command_answers_and_stops(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    assert generate.main(parser.parse_args(["What is 2+2?"])) == 0
    out, err = capsys.readouterr()
    assert "4" in out
    assert "<|" not in out
    assert "stopped: end" in err
