"""ONNX Runtime on its CPU provider: Attention (opset 23) and the runtime's own fused operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, window_mask
from .data import Data
from .peers import Peer, UnsupportedError, Variant, import_any

_OPSETS = {"": 23, "com.microsoft": 1}


class OnnxRuntime:
    """A session of one node, bound to the arrays' own memory, so that nothing is copied.

    Attention (opset 23) takes every case in float32 and float16. MultiHeadAttention is the fused kernel, for
    as many KV heads as query heads. GroupQueryAttention is the operator of exported language models: for
    decode the keys and values lie in its cache, of which the newest key is passed apart, as a model would.
    """

    name = "ONNX Runtime"

    def __init__(self) -> None:
        self.onnx = import_any("onnx")
        self.ort = import_any("onnxruntime")
        self.version = str(self.ort.__version__)

    def variants(self, case: Case, data: Data) -> Iterable[Callable[[], Variant]]:
        """Offer the three operators."""
        return [
            lambda: self._attention(case, data),
            lambda: self._multi_head(case, data),
            lambda: self._grouped_query(case, data),
        ]

    def _element(self, dtype: np.dtype) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(dtype))

    def _bind(
        self,
        case: Case,
        label: str,
        node: Any,
        inputs: dict[str, NDArray[Any]],
        outputs: dict[str, NDArray[Any]],
        result: Callable[[], NDArray[Any]],
    ) -> Variant:
        """Build a session of `node` on case.threads threads, bound to `inputs` and `outputs`."""
        if case.dtype == "bfloat16":
            raise UnsupportedError("the CPU provider has no attention in bfloat16")
        helper, ort = self.onnx.helper, self.ort

        def described(arrays: dict[str, NDArray[Any]]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, self._element(array.dtype), list(array.shape))
                for name, array in arrays.items()
            ]

        graph = helper.make_graph([node], "attention", described(inputs), described(outputs))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()],
            ir_version=10,
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised, and reported from there
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, self._element(array.dtype), array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, self._element(array.dtype), array.shape, array.ctypes.data)
        keep_alive = (*inputs.values(), *outputs.values())

        def call(session: Any = session, binding: Any = binding, keep_alive: object = keep_alive) -> None:
            session.run_with_iobinding(binding)

        return Variant(label, call, result)

    def _visible(self, case: Case, data: Data) -> NDArray[Any] | None:
        """Return the mask an operator without a window must be given; None for none."""
        return window_mask(case)[None, None] if case.window else data.mask

    def _attention(self, case: Case, data: Data) -> Variant:
        """ONNX's own operator: (B, H, S, D) in and out."""
        out = np.empty((*data.q.shape[:3], case.value_dim), dtype=data.q.dtype)
        inputs = {"q": data.q, "k": data.k, "v": data.v}
        mask = self._visible(case, data)
        label = "Attention-23"
        if mask is not None:
            inputs["mask"] = mask if mask.dtype == np.bool_ else mask.astype(data.q.dtype)
            label += ", window as a boolean mask" if case.window else ""
        causal = int(case.causal and not case.window and case.q_len > 1)
        node = self.onnx.helper.make_node("Attention", list(inputs), ["out"], is_causal=causal)
        return self._bind(case, label, node, inputs, {"out": out}, lambda: out)

    def _multi_head(self, case: Case, data: Data) -> Variant:
        """The fused kernel: queries and output (B, S, H * D), keys and values (B, H, S, D)."""
        if case.q_heads != case.kv_heads:
            raise UnsupportedError("MultiHeadAttention has no grouped heads")
        if case.dtype != "float32":
            raise UnsupportedError(f"MultiHeadAttention has no {case.dtype} on the CPU")
        inputs = {"q": _pack(data.q), "k": data.k, "v": data.v}
        names = ["q", "k", "v"]
        label = "MultiHeadAttention"
        mask = self._visible(case, data)
        if mask is not None:
            if mask.dtype == np.bool_:
                mask = np.where(mask, np.float32(0), np.finfo(np.float32).min)
                label += ", mask made additive"
            inputs["bias"] = mask
            names += ["", "", "bias"]
        causal = int(case.causal and not case.window and case.q_len > 1)
        node = self.onnx.helper.make_node(
            "MultiHeadAttention",
            names,
            ["out"],
            domain="com.microsoft",
            num_heads=case.q_heads,
            unidirectional=causal,
        )
        out = np.empty((case.batch, case.q_len, case.q_heads * case.value_dim), dtype=np.float32)
        return self._bind(case, label, node, inputs, {"out": out}, lambda: _unpack(out, case))

    def _grouped_query(self, case: Case, data: Data) -> Variant:
        """The operator with a cache: causal by definition, the last keys and values passed apart from it."""
        if data.mask is not None or not (case.causal or case.q_len == 1):
            raise UnsupportedError("GroupQueryAttention is causal and has no mask")
        if case.value_dim != case.head_dim:
            raise UnsupportedError("GroupQueryAttention has one head dimension")
        new = case.q_len
        # Prefill starts from an empty cache and fills it; decode adds one key to it. Past and present are one
        # buffer, and what is written there is what stood there before.
        cache_k, cache_v = data.k, data.v
        inputs = {
            "q": _pack(data.q),
            "k": _pack(data.k[:, :, case.k_len - new :]),
            "v": _pack(data.v[:, :, case.k_len - new :]),
            "past_k": cache_k,
            "past_v": cache_v,
            "last": np.full(case.batch, case.k_len - 1, dtype=np.int32),
            "total": np.array([case.k_len], dtype=np.int32),
        }
        options = {"local_window_size": case.window[0] + 1} if case.window else {}
        node = self.onnx.helper.make_node(
            "GroupQueryAttention",
            list(inputs),
            ["out", "present_k", "present_v"],
            domain="com.microsoft",
            num_heads=case.q_heads,
            kv_num_heads=case.kv_heads,
            **options,
        )
        out = np.empty((case.batch, case.q_len, case.q_heads * case.head_dim), dtype=data.q.dtype)
        outputs = {"out": out, "present_k": cache_k, "present_v": cache_v}
        return self._bind(case, "GroupQueryAttention", node, inputs, outputs, lambda: _unpack(out, case))


def _pack(array: NDArray[Any]) -> NDArray[Any]:
    """(B, H, S, D) -> (B, S, H * D), contiguous: the layout in which a projection leaves it."""
    batch, heads, length, dim = array.shape
    return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(batch, length, heads * dim)


def _unpack(out: NDArray[Any], case: Case) -> NDArray[Any]:
    return out.reshape(case.batch, case.q_len, case.q_heads, case.value_dim).transpose(0, 2, 1, 3)


def create() -> Peer:
    """Return the peer; ImportError where ONNX Runtime, or onnx to describe the model, is missing."""
    return OnnxRuntime()
