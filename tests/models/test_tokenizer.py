"""Tokens to text and back, on text that breaks careless tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastattention.models import ModelError
from fastattention.models.gguf import ModelFile
from fastattention.models.tokenizer import TextStream, Tokenizer

from . import tiny_model

NASTY = [
    "",
    " ",
    "   \n\n\t x  ",
    "hello world",
    "naïve café cafe\u0301",
    "日本語 안녕하세요 Привет مرحبا हिन्दी",
    "🙂 👩‍👩‍👧‍👦 \U0001d538 \U0010ffff",
    "a\x00b\x7f\x85\u2028\ufeff",
    "½²Ⅷ٣ 1234567890",
    "don't DON'T we'll",
    "Ġ Ċ ĠĠ",  # the characters that stand for bytes are text too
    "<|im_star|t>",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_file: ModelFile) -> Tokenizer:
    return Tokenizer(tiny_file)


def stream(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    text = TextStream(tokenizer)
    return [*(text.push(token) for token in tokens), text.finish()]


@pytest.mark.parametrize("text", NASTY)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert "".join(stream(tokenizer, tokens)) == text


@given(st.text(max_size=60))
def test_round_trip_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_apply_in_order(tokenizer: Tokenizer) -> None:
    vocabulary = tiny_model.vocabulary()
    assert [vocabulary[token] for token in tokenizer.encode("hello world hell")] == [
        "hello",
        "Ġworld",
        "Ġ",
        "hell",
    ]


def test_numbers_are_cut_into_digits(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("  12")) == 3  # the merge of two spaces, then 1, then 2


def test_control_tokens_in_text_are_found(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>hello<|im_end|>") == [1, tokenizer.encode("hello")[0], 2]
    assert tokenizer.decode([1, 2]) == "", "control tokens are not text"


def test_stream_never_shows_half_a_character(tokenizer: Tokenizer) -> None:
    text = "a🙂é한"  # no merges for these: a token a byte
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert [piece for piece in pieces if piece] == list(text)
    assert len(pieces) == len(text.encode()) + 1


def test_stream_ends_half_a_character_with_a_sign(tokenizer: Tokenizer) -> None:
    assert "".join(stream(tokenizer, tokenizer.encode("a🙂")[:-1])) == "a\ufffd"


def test_bytes_that_are_not_utf8_become_a_sign(tokenizer: Tokenizer) -> None:
    first = tiny_model.vocabulary().index(tiny_model.byte_characters()[0xFF])
    assert tokenizer.decode([first]) == "\ufffd"


def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match=r"not valid Unicode text \(character 1\)"):
        tokenizer.encode("a\udc80")


def test_stop_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.stop_tokens == {0, 2}


def test_beginning_of_sequence(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "bos.gguf", change={"tokenizer.ggml.add_bos_token": True})
    tokenizer = Tokenizer(ModelFile(tmp_path / "bos.gguf"))
    assert tokenizer.encode("hello")[0] == 1
    assert tokenizer.encode("hello", start=False) == tokenizer.encode("hello")[1:]


def test_llama_3_rule(tmp_path: Path) -> None:
    # Numbers in groups of three, a sign taken along with the letters behind it, and a first token by default.
    tokens = [*tiny_model.vocabulary(), "123", "-he"]
    change: dict[str, Any] = {
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
    }
    tiny_model.write(tmp_path / "llama3.gguf", change=change)
    tokenizer = Tokenizer(ModelFile(tmp_path / "llama3.gguf"))
    # No merge makes "123" or "-he": they are found as whole pieces.
    assert [tokens[token] for token in tokenizer.encode("1231-he")] == ["<|im_start|>", "123", "1", "-he"]


def test_missing_bytes_are_named(tmp_path: Path) -> None:
    tokens = tiny_model.vocabulary()
    tokens[len(tiny_model.CONTROL) + 0x04] = "some other text"
    tiny_model.write(tmp_path / "gap.gguf", change={"tokenizer.ggml.tokens": tokens})
    tokenizer = Tokenizer(ModelFile(tmp_path / "gap.gguf"))
    assert tokenizer.missing("a\x04b\x04") == "\x04"
    assert tokenizer.decode(tokenizer.encode("a\x04b")) == "ab"


def test_plain_gpt2_keeps_numbers_together(tmp_path: Path) -> None:
    change: dict[str, Any] = {
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": [*tiny_model.MERGES, "1 2"],
        "tokenizer.ggml.tokens": [*tiny_model.vocabulary(), "12"],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tiny_model.vocabulary()) - 2),
    }
    tiny_model.write(tmp_path / "gpt2.gguf", change=change)
    assert len(Tokenizer(ModelFile(tmp_path / "gpt2.gguf")).encode("12")) == 1
    change["tokenizer.ggml.pre"] = "smollm"
    tiny_model.write(tmp_path / "smollm.gguf", change=change)
    assert len(Tokenizer(ModelFile(tmp_path / "smollm.gguf")).encode("12")) == 2


@pytest.mark.parametrize(
    ("change", "drop", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, [], "tokenizer model 'llama' is not supported"),
        ({"tokenizer.ggml.pre": "qwen2"}, [], "pre-tokenizer 'qwen2' is not supported"),
        ({"tokenizer.ggml.merges": ["h e l l o"]}, [], "a merge is not a pair"),
        ({"tokenizer.ggml.merges": ["q z"]}, [], "broken vocabulary"),
        ({"tokenizer.ggml.eos_token_id": 5000}, [], "eos_token_id is 5000, outside"),
        ({"tokenizer.ggml.token_type": [1, 2]}, [], "token_type does not fit"),
        (
            {"tokenizer.ggml.tokens": ["a", "a", "b"]},
            ["tokenizer.ggml.token_type"],
            "two tokens have the same",
        ),
        ({"tokenizer.ggml.tokens": 3}, [], "tokenizer.ggml.tokens is missing or not a list"),
        ({}, ["tokenizer.ggml.merges"], "tokenizer.ggml.merges is missing"),
    ],
)
def test_broken_vocabularies_say_why(
    tmp_path: Path, change: dict[str, Any], drop: list[str], message: str
) -> None:
    tiny_model.write(tmp_path / "bad.gguf", change=change, drop=drop)
    with pytest.raises(ModelError, match=message) as caught:
        Tokenizer(ModelFile(tmp_path / "bad.gguf"))
    assert "\n" not in str(caught.value)
