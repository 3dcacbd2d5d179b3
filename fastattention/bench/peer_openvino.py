"""OpenVINO: the operator ScaledDotProductAttention (opset 13) on the CPU plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import DTYPES, Case, window_mask
from .data import Data
from .peers import Peer, Variant, import_any

#: OpenVINO's names of the data types.
_PRECISION = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class OpenVINO:
    """A model of one operator. Inputs and output are tensors over the arrays' own memory.

    The plugin would compute float32 models in bfloat16 on some processors; its precision is set to the case's
    own type. A window is passed as a boolean mask; keys and values of grouped heads are broadcast inside the
    model, the form that the plugin recognises.
    """

    name = "OpenVINO"

    def __init__(self) -> None:
        self.ov = import_any("openvino")
        self.opset = import_any("openvino.opset13")
        self.core = self.ov.Core()
        self.version = str(self.ov.__version__).split("-")[0]

    def variants(self, case: Case, data: Data) -> Iterable[Callable[[], Variant]]:
        """Offer one way, the operator."""
        return [lambda: self._operator(case, data)]

    def _grouped(self, node: Any, case: Case, dim: int) -> Any:
        # (B, Hkv, S, D) -> (B, Hkv, G, S, D) -> (B, Hq, S, D), as exported language models have it.
        group = case.q_heads // case.kv_heads
        if group == 1:
            return node
        opset = self.opset
        wide = [case.batch, case.kv_heads, group, case.k_len, dim]
        flat = [case.batch, case.q_heads, case.k_len, dim]
        node = opset.unsqueeze(node, opset.constant(np.int64(2)))
        node = opset.broadcast(node, opset.constant(np.array(wide)), broadcast_spec="BIDIRECTIONAL")
        return opset.reshape(node, opset.constant(np.array(flat)), special_zero=False)

    def _operator(self, case: Case, data: Data) -> Variant:
        ov, opset = self.ov, self.opset
        element = getattr(ov.Type, _PRECISION[case.dtype])
        arrays: list[NDArray[Any]] = [data.q, data.k, data.v]
        inputs = [opset.parameter(list(array.shape), element) for array in arrays]
        operands = [
            inputs[0],
            self._grouped(inputs[1], case, case.head_dim),
            self._grouped(inputs[2], case, case.value_dim),
        ]
        label = "ScaledDotProductAttention"
        mask = data.mask
        if case.window:
            mask = window_mask(case)[None, None]
            label += ", window as a boolean mask"
        if mask is not None:
            boolean = mask.dtype == np.bool_
            inputs.append(opset.parameter(list(mask.shape), ov.Type.boolean if boolean else element))
            operands.append(inputs[-1])
            arrays.append(mask if boolean else mask.astype(DTYPES[case.dtype]))
        causal = case.causal and not case.window and case.q_len > 1
        node = opset.scaled_dot_product_attention(*operands, causal=causal)
        model = ov.Model([node], inputs, "attention")
        compiled = self.core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _PRECISION[case.dtype],
                "INFERENCE_NUM_THREADS": str(case.threads),
                "NUM_STREAMS": "1",
                "ENABLE_CPU_PINNING": "NO",  # the benchmark has chosen the cores
            },
        )
        request = compiled.create_infer_request()
        out = np.empty((*data.q.shape[:3], case.value_dim), dtype=data.q.dtype)
        for index, (node, array) in enumerate(zip(inputs, arrays, strict=True)):
            request.set_input_tensor(index, self._tensor(array, node.get_element_type()))
        request.set_output_tensor(0, self._tensor(out, element))

        # A tensor over shared memory does not hold the array.
        def call(keep_alive: object = (*arrays, out)) -> None:
            request.infer()

        return Variant(label, call, lambda: out)

    def _tensor(self, array: NDArray[Any], element: Any) -> Any:
        if element == self.ov.Type.bf16:
            return self.ov.Tensor(array.view(np.uint16), list(array.shape), element)
        return self.ov.Tensor(array, shared_memory=True)


def create() -> Peer:
    """Return the peer; ImportError where OpenVINO is missing."""
    return OpenVINO()
