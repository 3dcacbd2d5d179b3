"""Functions as people have them are adapted, or refused with what is missing."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattention
from fastattention.verify import Adapter, Problem, adapt, verify
from fastattention.verify.adapters import load

from ..verify_peers import write_onnx
from .kernels import TILE, Kernel, forgets_scale, own_names


def test_ours_is_right() -> None:
    report = fastattention.verify(fastattention.attention, quick=True)
    assert report.passed, report
    assert report.not_declared == []
    assert all(report.repeats.values())
    assert all(report.threads.values())


def test_a_function_by_the_names_of_its_parameters() -> None:
    adapter = adapt(own_names, "mine")
    assert adapter.name == "mine"
    assert adapter.features == {"scale"}
    assert verify(adapter, quick=True).passed


def test_a_parameter_that_is_forgotten() -> None:
    report = verify(forgets_scale, quick=True)
    assert report.first is not None
    assert report.first.group == "scale"


def test_names_of_other_customs() -> None:
    def theirs(query: Any, key: Any, value: Any, *, is_causal: bool = False, kv_lengths: Any = None) -> Any:
        options: dict[str, Any] = {"causal": True} if is_causal else {}
        options |= {} if kv_lengths is None else {"kv_lengths": kv_lengths}
        return Kernel().compute(query, key, value, options)[0]

    adapter = adapt(theirs)
    assert adapter.features == {"causal", "kv_lengths", "cross"}
    assert verify(adapter, quick=True).passed


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, y, z: x, "expected the parameters q, k, v first, got \\(x, y, z\\)"),
        (lambda: 0, "got \\(none\\)"),
        (lambda q, k, v, block_table: q, "nothing is known of the parameter block_table"),
        (np.frompyfunc(lambda a, b, c: a, 3, 1), "its signature cannot be read|expected the parameters"),
    ],
)
def test_what_says_too_little(function: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        adapt(function)


def test_what_is_no_function() -> None:
    with pytest.raises(TypeError, match="expected a function, an Adapter or a path, got int"):
        adapt(3)


def test_an_adapter_checks_its_fields() -> None:
    with pytest.raises(ValueError, match=r"features: expected some of .*, got speed"):
        Adapter("x", Kernel(), frozenset({"speed"}))
    with pytest.raises(ValueError, match="dtypes: expected float32, float16 or bfloat16, got 'int8'"):
        Adapter("x", Kernel(), dtypes=("int8",))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("os.path", "expected module:function or a file.onnx, got 'os.path'"),
        ("no_such_module:f", "no_such_module cannot be imported"),
        ("os:no.such", "os has no no.such"),
        ("none.onnx", "there is no file none.onnx"),
    ],
)
def test_names_that_lead_nowhere(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(name)


def test_a_name_with_dots() -> None:
    assert load("fastattention:reference.standard.attention") is fastattention.reference.standard.attention


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"features": "causal"}, TypeError, "features: expected a collection of names, got the text"),
        ({"features": ["speed"]}, ValueError, "features: expected some of"),
        ({"features": ["sinks"]}, ValueError, "sinks is not declared"),
        ({"dtypes": ["float16"]}, ValueError, "float16 is not declared"),
        ({"dtypes": []}, ValueError, "dtypes: expected at least one"),
        ({"only": "nothing like this"}, ValueError, "no case of 'nothing like this' is left"),
    ],
)
def test_wishes_that_cannot_be_met(options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        verify(Adapter("x", Kernel(), frozenset({"causal"})), **options)


@pytest.mark.peers
def test_pytorch_is_right_but_for_denormals() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    report = verify(torch.nn.functional.scaled_dot_product_attention, quick=True)
    assert {result.group for result in report.failures} <= {"denormals"}, report
    assert "bool_mask" in report.features
    assert "window" in report.not_declared


@pytest.mark.peers
def test_a_wrong_pytorch_function() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    real = torch.nn.functional.scaled_dot_product_attention

    def scaled_dot_product_attention(q: Any, k: Any, v: Any, is_causal: bool = False, **options: Any) -> Any:
        """As torch's, whose causal mask is at the other corner."""
        if not is_causal:
            return real(q, k, v, **options)
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        return real(q, k, v, attn_mask=mask, **options)

    report = verify(
        scaled_dot_product_attention, dtypes=["float32"], features=["cross", "causal"], quick=True
    )
    assert report.first is not None
    assert report.first.group == "causal alignment"


@pytest.mark.peers
def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    report = verify(jax.nn.dot_product_attention, dtypes=["float32"], only="causal", quick=True)
    assert {result.group for result in report.failures} <= {"rows without a key"}, report
    assert len(report.results) > 5


@pytest.mark.peers
def test_flash_attn_has_its_own_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def flash_attn_func(
        q: Any, k: Any, v: Any, softmax_scale: Any = None, causal: bool = False,
        window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    ) -> Any:  # fmt: skip
        # (B, S, H, D), on the CPU, by our own kernel: the adapter's axes and names are what is tested.
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        given = {"scale": softmax_scale, "causal": causal, "window": window_size}
        given |= {"softcap": softcap or None, "alibi_slopes": alibi_slopes}
        return fastattention.attention(q, k, v, **given).transpose(1, 2)

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    report = verify(flash_attn_func, quick=True)
    assert {result.group for result in report.failures} <= {"denormals"}, report
    assert report.dtypes == ["float16", "bfloat16"]
    assert {"window", "softcap", "alibi_slopes"} <= {result.group for result in report.results}


def _onnx(folder: Path, causal: bool = False) -> Path:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    write_onnx(folder / "attention.onnx", causal=causal)
    return folder / "attention.onnx"


@pytest.mark.peers
def test_an_onnx_file(tmp_path: Path) -> None:
    report = verify(load(str(_onnx(tmp_path))), quick=True)
    assert "ONNX Runtime" in report.kernel
    assert "causal" in report.not_declared
    assert {result.group for result in report.failures} <= {"denormals"}, report


@pytest.mark.peers
def test_a_causal_onnx_file_is_causal_in_every_case(tmp_path: Path) -> None:
    report = verify(str(_onnx(tmp_path, causal=True)), quick=True)
    assert {"plain", "causal", "causal alignment"} <= {result.group for result in report.results}
    assert {result.group for result in report.failures} <= {"denormals"}, report
    assert report.repeats == {"float32": True}


def test_a_kernel_that_is_always_causal() -> None:
    def mine(q: Any, k: Any, v: Any) -> Any:
        return Kernel().compute(q, k, v, {"causal": True})[0]

    assert not verify(mine, quick=True).passed
    report = verify(mine, quick=True, causal=True)
    assert report.passed, report
    adapter = Adapter("mine", lambda p: mine(p.q, p.k, p.v), frozenset({"cross"}), always={"causal": True})
    report = verify(adapter, quick=True)
    assert report.passed, report
    assert report.left_out["97 queries, 31 keys"] == "not declared: empty_rows"
    assert TILE in report.tiles


@pytest.mark.peers
def test_a_file_that_is_no_attention(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [value], [other])
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=10), path)
    with pytest.raises(ValueError, match="expected a model with one Attention node"):
        adapt(path)


def test_a_module_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_module")
    module.kernel = own_names  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_module", module)
    assert load("own_module:kernel") is own_names


def test_problems_are_the_same_for_the_same_seed() -> None:
    seen: list[Problem] = []
    for seed in (0, 0, 1):
        verify(Adapter("x", lambda p: seen.append(p) or Kernel()(p)[0]), only="16 tokens", seed=seed)
    arrays = [p.q for p in seen if p.q.shape[2] == 16]
    third = len(arrays) // 3
    assert np.array_equal(arrays[0], arrays[third])
    assert not np.array_equal(arrays[0], arrays[2 * third])
