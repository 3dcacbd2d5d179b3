"""Models by name and by file, machines by name, and what is neither."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from fastattention import gpu
from fastattention.offload import detect, hardware, model_shape
from fastattention.offload.detect import cpu_attention_rate

CONFIG = {
    "_name_or_path": "some/model", "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 8,
    "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 4096,
    "rope_theta": 5e5, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-7b", 6.738), ("llama-3-8b", 8.030), ("llama-3-70b", 70.554), ("smollm2", 0.1345)],
)
def test_published_numbers_of_weights(name, billions):
    assert model_shape(name).parameters / 1e9 == pytest.approx(billions, rel=1e-3)


def test_what_is_assumed_is_said():
    pangu = model_shape("pangu-38b")
    assert "assumed" in pangu.note
    assert pangu.parameters / 1e9 == pytest.approx(38, rel=0.05)


@pytest.mark.parametrize("folder", [True, False])
def test_a_config_file(tmp_path, folder):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    shape = model_shape(tmp_path if folder else str(path))
    found = (
        shape.name,
        shape.layers,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.tied,
        shape.rope_base,
    )
    assert found == ("some/model", 3, 8, 2, 8, True, 5e5)
    assert shape.norm_epsilon == 1e-6
    assert shape.gated
    path.write_text(json.dumps(CONFIG | {"head_dim": 32, "num_key_value_heads": None, "model_type": "opt"}))
    other = model_shape(path)
    assert (other.head_dim, other.kv_heads, other.gated) == (32, 8, False)
    path.write_text(json.dumps({"text_config": CONFIG}))
    assert model_shape(path).layers == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"), ("[]", "expected an object"), ("{}", "has no 'hidden_size'"),
        (json.dumps(CONFIG | {"vocab_size": None}), "has no 'vocab_size'"),
        (json.dumps(CONFIG | {"num_hidden_layers": "3"}), "num_hidden_layers: expected a whole number"),
        (json.dumps(CONFIG | {"num_hidden_layers": 0}), "layers: expected a whole number of at least 1"),
        (json.dumps(CONFIG | {"num_key_value_heads": 3}), "heads: expected a multiple"),
        (json.dumps(CONFIG | {"num_local_experts": 8}), "mixtures of experts are not supported"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        model_shape(path)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"model: expected one of llama-7b, .*; got 'gpt'"):
        model_shape("gpt")
    with pytest.raises(ValueError, match=r"hardware: expected one of v100-16gb, .*, got 'abacus'"):
        hardware("abacus")


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ({"bus": 0}, ValueError, "bus: expected a number above 0"),
        ({"latency": -1}, ValueError, "latency: expected a number of at least 0"),
        ({"cpu": float("nan")}, ValueError, "cpu: expected"),
        ({"gpu_memory": "16"}, ValueError, "gpu_memory: expected a number"),
    ],
)
def test_numbers_that_are_none(numbers, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(hardware("t4"), **numbers)


GPU = {
    "gpu_memory": 16 * 10**9, "gpu_bandwidth": 8e11, "gpu_flops": 9e13, "gpu_attention_flops": 2e13,
    "bus": 12e9,
}  # fmt: skip


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "why_not", lambda: "there is none")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("lacking", GPU)
def test_a_gpu_comes_from_nowhere(lacking, monkeypatch):
    own = {name: value for name, value in GPU.items() if name != lacking}
    with pytest.raises(
        RuntimeError, match=rf"no GPU that can be measured \(there is none\).* give {lacking}$"
    ):
        detect(**own, cpu=1e9)


@pytest.mark.usefixtures("no_gpu")
def test_the_host_is_measured(monkeypatch):
    module = sys.modules["fastattention.offload.detect"]
    monkeypatch.setattr(module, "cpu_attention_rate", lambda size: cpu_attention_rate(1 << 22, seconds=0.01))
    found = detect(**GPU)
    assert {name: getattr(found, name) for name in GPU} == GPU
    assert 1e8 < found.cpu < 1e13
    assert found.host_bandwidth == max(found.cpu, 12e9)
    assert found.host_memory > 1e8
    assert "measured here" in found.source
    assert detect(**GPU, cpu=1e9, host_bandwidth=2e9, host_memory=3 * 10**9).host_bandwidth == 2e9
    with pytest.raises(TypeError, match="weight"):
        detect(**GPU, cpu=1e9, weight=3)
