"""Adapters for functions that many people have: ours, PyTorch's, JAX's, flash-attn's, ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .adapters import Adapter
from .tolerances import DTYPES, Problem

__all__ = ["known", "onnx_file"]


def known(function: Any) -> Adapter | None:
    """Return the adapter of a function that is known by its name and module; None of another."""
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", "") or ""
    text = f"{module} {getattr(function, '__doc__', '') or ''}"
    if name == "attention" and module == "fastattention.attention":
        return ours(function)
    if name == "scaled_dot_product_attention" and "torch" in text:
        return pytorch(function)
    if name == "dot_product_attention" and module.startswith("jax"):
        return jax(function)
    if name == "flash_attn_func":
        return flash_attn(function)
    return None


def ours(function: Callable[..., Any]) -> Adapter:
    """Return the adapter of `fastattention.attention` on the CPU."""
    from ..config import get_isa

    def call(problem: Problem) -> Any:
        options = dict(problem.options)
        out, lse = function(
            problem.q, problem.k, problem.v, return_lse=True, num_threads=_Threads.count, **options
        )
        return out, lse

    pairs = get_isa() in ("avx512_bf16", "amx")
    return Adapter(
        "fastattention.attention", call,
        frozenset({
            "cross", "value_dim", "causal", "gqa", "scale", "bool_mask", "float_mask", "empty_rows", "window",
            "kv_lengths", "softcap", "alibi_slopes", "sinks", "q_offset", "strided", "out", "lse",
        }),
        ("float32", "float16", "bfloat16"),
        {"float32": "float32", "float16": "float32", "bfloat16": "pairs" if pairs else "float32"},
        flushes=True, threads=_Threads.set, note=f"instruction set {get_isa()}",
    )  # fmt: skip


class _Threads:
    """How many threads `ours` is called with."""

    count: int | None = None

    @classmethod
    @contextmanager
    def set(cls, count: int) -> Iterator[None]:
        before, cls.count = cls.count, count
        try:
            yield
        finally:
            cls.count = before


def _numpy(out: Any) -> np.ndarray:
    """Return a PyTorch tensor of the CPU as an array; NumPy's own types lack bfloat16."""
    import torch

    if out.dtype == torch.bfloat16:
        return np.asarray(out.view(torch.int16).numpy().view(DTYPES["bfloat16"]))
    return np.asarray(out.numpy())


def pytorch(function: Callable[..., Any], device: str = "cpu") -> Adapter:
    """Return the adapter of ``torch.nn.functional.scaled_dot_product_attention``."""
    import torch

    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

    def tensor(x: np.ndarray) -> Any:
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(device)
        return torch.from_numpy(x).to(device)

    def call(problem: Problem) -> np.ndarray:
        options = problem.options
        given: dict[str, Any] = {}
        if options.get("causal"):
            given["is_causal"] = True
        if "scale" in options:
            given["scale"] = options["scale"]
        if "mask" in options:
            mask = torch.from_numpy(np.ascontiguousarray(options["mask"])).to(device)
            given["attn_mask"] = mask if mask.dtype == torch.bool else mask.to(kinds[problem.q.dtype.name])
        if problem.q.shape[1] != problem.k.shape[1]:
            given["enable_gqa"] = True
        with torch.no_grad():
            out = function(tensor(problem.q), tensor(problem.k), tensor(problem.v), **given).cpu()
        return _numpy(out)

    @contextmanager
    def threads(count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return Adapter(
        f"torch.nn.functional.scaled_dot_product_attention, PyTorch {torch.__version__}", call,
        frozenset({
            "cross", "value_dim", "causal", "gqa", "scale", "bool_mask", "float_mask", "empty_rows",
            "strided",
        }),
        ("float32", "float16", "bfloat16"), top_left=True, rounds_mask=True,
        threads=threads if device == "cpu" else None,
        note="a floating mask is rounded to the type of the queries first, as PyTorch requires",
    )  # fmt: skip


def jax(function: Callable[..., Any]) -> Adapter:
    """Return the adapter of ``jax.nn.dot_product_attention``, whose arrays are (B, S, H, D)."""
    import jax as library
    import jax.numpy as jnp

    def call(problem: Problem) -> np.ndarray:
        options = problem.options
        given: dict[str, Any] = {}
        if options.get("causal"):
            given["is_causal"] = True
        if "scale" in options:
            given["scale"] = options["scale"]
        if "mask" in options:
            mask = options["mask"]
            batch, _heads, q_len, k_len = (*problem.q.shape[:3], problem.k.shape[2])
            whole = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (batch, 1, q_len, k_len)))
            given["mask" if mask.dtype == np.bool_ else "bias"] = jnp.asarray(whole)
        q, k, v = (jnp.asarray(x.swapaxes(1, 2)) for x in (problem.q, problem.k, problem.v))
        return np.asarray(function(q, k, v, **given)).swapaxes(1, 2)

    return Adapter(
        f"jax.nn.dot_product_attention, JAX {library.__version__}", call,
        frozenset({"cross", "causal", "gqa", "scale", "bool_mask", "float_mask", "empty_rows"}),
        ("float32", "float16", "bfloat16"), top_left=True,
    )  # fmt: skip


def flash_attn(function: Callable[..., Any]) -> Adapter:
    """Return the adapter of ``flash_attn_func``: (B, S, H, D), causal bottom right, on the current GPU."""
    import torch

    def tensor(x: np.ndarray) -> Any:
        whole = np.ascontiguousarray(x.swapaxes(1, 2))
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16).cuda()
        return torch.from_numpy(whole).cuda()

    def call(problem: Problem) -> np.ndarray:
        options = problem.options
        given: dict[str, Any] = {"causal": bool(options.get("causal"))}
        if "scale" in options:
            given["softmax_scale"] = options["scale"]
        if "softcap" in options:
            given["softcap"] = options["softcap"]
        if "window" in options:
            given["window_size"] = options["window"]
        if "alibi_slopes" in options:
            given["alibi_slopes"] = torch.from_numpy(options["alibi_slopes"]).cuda()
        with torch.no_grad():
            out = function(tensor(problem.q), tensor(problem.k), tensor(problem.v), **given).cpu()
        return _numpy(out).swapaxes(1, 2)

    return Adapter(
        f"flash_attn_func, {function.__module__}", call,
        frozenset({"cross", "causal", "gqa", "scale", "empty_rows", "window", "softcap", "alibi_slopes"}),
        ("float16", "bfloat16"), head_dims=lambda dim: dim <= 256 and dim % 8 == 0,
    )  # fmt: skip


def onnx_file(path: Path) -> Adapter:
    """Return the adapter of an ONNX model with one attention node, run by ONNX Runtime on the CPU.

    Its first three inputs are q, k and v (B, H, S, D), of any sizes or of the sizes that it names; a fourth,
    where there is one, is a mask (B, H, Sq, Sk). Whether it is causal stands in the node: then every call is.

    Raises
    ------
    ValueError
        It is no such model.
    ImportError
        onnx or onnxruntime is not installed.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    if len(nodes) != 1 or len(model.graph.input) < 3:
        raise ValueError(
            f"kernel: {path}: expected a model with one Attention node and the inputs q, k, v; it has "
            f"{len(nodes)} and {len(model.graph.input)} inputs"
        )
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in nodes[0].attribute}
    inputs = list(model.graph.input)
    kind = onnx.TensorProto.DataType.Name(inputs[0].type.tensor_type.elem_type).lower()
    kind = {"float": "float32"}.get(kind, kind)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    causal = bool(attributes.get("is_causal", 0))
    features = {"cross", "value_dim", "gqa"} | ({"causal"} if causal else set())
    if len(inputs) > 3:
        mask_kind = inputs[3].type.tensor_type.elem_type
        if len(inputs[3].type.tensor_type.shape.dim) != 4:
            raise ValueError(f"kernel: {path}: expected a mask of four axes, (B, H, Sq, Sk)")
        features |= {"bool_mask" if mask_kind == onnx.TensorProto.BOOL else "float_mask", "empty_rows"}

    def call(problem: Problem) -> np.ndarray:
        arrays = [np.ascontiguousarray(x) for x in (problem.q, problem.k, problem.v)]
        given = {item.name: x for item, x in zip(inputs, arrays, strict=False)}
        if len(inputs) > 3:
            shape = (problem.q.shape[0], 1, problem.q.shape[2], problem.k.shape[2])
            none = np.ones(shape, np.bool_) if "bool_mask" in features else np.zeros(shape, np.float32)
            mask = problem.options.get("mask", none)
            whole = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, shape))
            given[inputs[3].name] = whole if mask.dtype == np.bool_ else whole.astype(problem.q.dtype)
        return np.asarray(session.run(None, given)[0])

    return Adapter(
        f"{path.name}, ONNX Runtime {onnxruntime.__version__}", call, frozenset(features), (kind,),
        always={"causal": True} if causal else {}, top_left=True, rounds_mask=True,
    )  # fmt: skip
