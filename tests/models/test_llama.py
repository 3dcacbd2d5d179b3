"""The decoder against a plain one in float64, and against itself taken in other steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fastattention.models import ModelError
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama, Session

from . import plain_decoder, tiny_model

TOKENS = np.random.default_rng(5).integers(0, 256, 40).tolist()
SIZES: dict[str, Any] = {
    "layers": tiny_model.LAYERS,
    "heads": tiny_model.HEADS,
    "kv_heads": tiny_model.KV_HEADS,
    "base": 1000.0,
    "epsilon": 1e-5,
}
# Logits of the tiny model have a spread near 12. Sums of up to 96 products in float32 over three layers;
# measured errors stay below 2e-5.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tiny_file: ModelFile) -> Llama:
    return Llama.from_file(tiny_file)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return plain_decoder.logits(tiny_model.tensors(), TOKENS, **SIZES)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("chunk", [1, 7, 40, 1024])
def test_prefill_equals_the_plain_decoder(
    model: Llama, expected: np.ndarray, backend: str, chunk: int
) -> None:
    session = Session(model, context=len(TOKENS), backend=backend, chunk=chunk)
    assert expected.std() > 1, "logits near zero would agree with anything"
    np.testing.assert_allclose(session.forward(TOKENS), expected[-1], rtol=0, atol=TOLERANCE)
    assert session.position == len(TOKENS)


def test_decode_equals_the_plain_decoder_at_every_position(model: Llama, expected: np.ndarray) -> None:
    session = Session(model, context=len(TOKENS))
    for position, token in enumerate(TOKENS):
        np.testing.assert_allclose(session.forward([token]), expected[position], rtol=0, atol=TOLERANCE)


def test_prefill_in_parts_equals_prefill_at_once(model: Llama, expected: np.ndarray) -> None:
    session = Session(model, context=64, chunk=8)
    for start, stop in ((0, 1), (1, 3), (3, 24), (24, 40)):
        logits = session.forward(TOKENS[start:stop])
        np.testing.assert_allclose(logits, expected[stop - 1], rtol=0, atol=TOLERANCE)


def test_scores_are_the_log_probabilities_of_what_follows(model: Llama, expected: np.ndarray) -> None:
    peak = expected.max(axis=1, keepdims=True)
    log_p = expected - peak - np.log(np.exp(expected - peak).sum(axis=1, keepdims=True))
    wanted = log_p[np.arange(len(TOKENS) - 1), TOKENS[1:]]
    assert wanted.std() > 1
    for chunk in (7, 40, 1024):
        session = Session(model, context=len(TOKENS), chunk=chunk)
        scores = session.score(TOKENS)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=TOLERANCE)
    session = Session(model, context=len(TOKENS))
    session.forward(TOKENS[:10])
    np.testing.assert_allclose(session.score(TOKENS[10:]), wanted[10:], rtol=0, atol=TOLERANCE)
    assert Session(model, context=1).score(TOKENS[:1]).shape == (0,)
    with pytest.raises(ValueError, match="do not fit the context"):
        session.score(TOKENS)
    assert session.position == len(TOKENS)


# A stored key or value is off by up to one part in 2^12 or 2^9 of itself, or, of int8, in 254 of its row's
# largest, which for an ordinary element is six times what bfloat16 loses. Measured logit errors are a third.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.03), ("bfloat16", 0.25), ("int8", 1.4)])
def test_rounded_cache(model: Llama, expected: np.ndarray, dtype: str, tolerance: float) -> None:
    session = Session(model, context=len(TOKENS), cache_dtype=dtype)
    logits = session.forward(TOKENS)
    np.testing.assert_allclose(logits, expected[-1], rtol=0, atol=tolerance)
    assert np.abs(logits - expected[-1]).max() > TOLERANCE, "nothing was rounded"


def test_both_backends_choose_the_same_tokens(model: Llama) -> None:
    chosen: dict[str, list[int]] = {}
    for backend in ("cpu", "reference"):
        session = Session(model, context=96, backend=backend)
        logits = session.forward(TOKENS)
        chosen[backend] = []
        for _ in range(50):
            chosen[backend].append(int(logits.argmax()))
            logits = session.forward(chosen[backend][-1:])
    assert chosen["cpu"] == chosen["reference"]
    assert len(set(chosen["cpu"])) > 5, "a constant answer would agree by itself"


def test_quantised_weights_are_expanded(tmp_path: Path) -> None:
    path = tmp_path / "quantised.gguf"
    matrices = {name for name, array in tiny_model.tensors().items() if array.ndim == 2}
    tiny_model.write(path, quantised=matrices)
    weights = tiny_model.tensors()
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in matrices:
        weights[name] = gguf.quants.dequantize(gguf.quants.quantize(weights[name], kind), kind)
    expected = plain_decoder.logits(weights, TOKENS, **SIZES)
    session = Session(Llama.from_file(ModelFile(path)), context=64)
    np.testing.assert_allclose(session.forward(TOKENS), expected[-1], rtol=0, atol=TOLERANCE)


def test_output_matrix_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "untied.gguf"
    shape = (len(tiny_model.vocabulary()), tiny_model.HIDDEN)
    head = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    tiny_model.write(path, add={"output.weight": head})
    expected = plain_decoder.logits({**tiny_model.tensors(), "output.weight": head}, TOKENS, **SIZES)
    session = Session(Llama.from_file(ModelFile(path)), context=64)
    np.testing.assert_allclose(session.forward(TOKENS), expected[-1], rtol=0, atol=TOLERANCE)


def test_rope_divisors_slow_the_rotation(tmp_path: Path) -> None:
    # Every frequency divided by 2 is what half the positions would give: position 2p then acts as p did.
    path = tmp_path / "scaled.gguf"
    divisors = np.full(tiny_model.HEAD_DIM // 2, 2.0, np.float32)
    tiny_model.write(path, add={"rope_freqs.weight": divisors})
    session = Session(Llama.from_file(ModelFile(path)), context=64)
    plain = Session(Llama.from_file(ModelFile(path)), context=64)
    plain._frequencies = 2 * session._frequencies
    base = plain_decoder.logits(tiny_model.tensors(), TOKENS, **SIZES)[-1]
    np.testing.assert_allclose(plain.forward(TOKENS), base, rtol=0, atol=TOLERANCE)
    assert np.abs(session.forward(TOKENS) - base).max() > 0.1


@pytest.mark.parametrize("tokens", [[], [[1, 2]], [-1], [len(tiny_model.vocabulary())], [0] * 9])
def test_bad_tokens_leave_the_session_as_it_was(model: Llama, tokens: list[Any]) -> None:
    session, other = Session(model, context=12), Session(model, context=12)
    session.forward(TOKENS[:4])
    with pytest.raises(ValueError, match="token"):
        session.forward(tokens)
    other.forward(TOKENS[:4])
    assert session.position == 4
    np.testing.assert_array_equal(session.forward(TOKENS[4:8]), other.forward(TOKENS[4:8]))


def test_interruption_leaves_the_session_as_it_was(model: Llama, expected: np.ndarray) -> None:
    session = Session(model, context=len(TOKENS), chunk=8)
    session.forward(TOKENS[:10])

    def interrupt(done: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.forward(TOKENS[10:], interrupt)
    assert session.position == 10
    np.testing.assert_allclose(session.forward(TOKENS[10:]), expected[-1], rtol=0, atol=TOLERANCE)


def test_progress_counts_the_tokens(model: Llama) -> None:
    done: list[int] = []
    Session(model, context=64, chunk=16).forward(TOKENS, done.append)
    assert done == [16, 32, 40]


def test_attention_time_is_part_of_the_time(model: Llama) -> None:
    session = Session(model, context=64)
    session.forward(TOKENS)
    before = session.attention_seconds
    assert before > 0
    session.forward([1])
    assert session.attention_seconds > before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2' is not supported"),
        ({"change": {"llama.expert_count": 8}}, "mixtures of experts"),
        ({"change": {"llama.rope.scaling.type": "yarn"}}, "RoPE scaling of type 'yarn'"),
        ({"change": {"llama.attention.head_count_kv": 3}}, "do not fit together"),
        ({"change": {"llama.attention.head_count": 0}}, "0 heads"),
        ({"change": {"llama.block_count": 4}}, "tensor blk.3.attn_norm.weight is missing"),
        ({"change": {"llama.block_count": "three"}}, "llama.block_count is 'three', expected int"),
        ({"change": {"llama.rope.freq_base": float("nan")}}, "llama.rope.freq_base is nan"),
        ({"drop": ["llama.embedding_length"]}, "llama.embedding_length is missing"),
        ({"drop": ["blk.1.ffn_up.weight"]}, "tensor blk.1.ffn_up.weight is missing"),
        ({"add": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}}, "blk.0.attn_q.bias has no place"),
        (
            {"add": {"blk.0.ffn_up.weight": np.zeros((95, 64), np.float32)}},
            r"blk.0.ffn_up.weight has shape \(95, 64\), expected \(96, 64\)",
        ),
        (
            {"add": {"blk.0.ffn_up.weight": np.full((96, 64), np.nan, np.float32)}},
            "blk.0.ffn_up.weight holds infinities or NaN",
        ),
    ],
)
def test_models_that_cannot_run_say_why(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.gguf"
    tiny_model.write(path, **options)
    with pytest.raises(ModelError, match=message) as caught:
        Llama.from_file(ModelFile(path))
    assert "\n" not in str(caught.value)
