"""PyTorch: ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import DTYPES, Case, window_mask
from .data import Data
from .peers import Peer, Variant, import_any


class PyTorch:
    """Tensors share the memory of the arrays. A window is passed as a boolean mask, for want of an option."""

    name = "PyTorch"

    def __init__(self) -> None:
        self.torch = import_any("torch")
        self.version = str(self.torch.__version__)

    def _tensor(self, array: NDArray[Any], dtype: str) -> Any:
        if dtype == "bfloat16":  # NumPy's bfloat16 is an extension that torch does not know; its bits it does
            return self.torch.from_numpy(array.view(np.uint16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def variants(self, case: Case, data: Data) -> Iterable[Callable[[], Variant]]:
        """Offer one way: the function itself chooses among its kernels."""

        def make() -> Variant:
            torch = self.torch
            torch.set_num_threads(case.threads)
            q, k, v = (self._tensor(array, case.dtype) for array in (data.q, data.k, data.v))
            options: dict[str, Any] = {}
            label = "scaled_dot_product_attention"
            if case.window:
                options["attn_mask"] = torch.from_numpy(window_mask(case))
                label += ", window as a boolean mask"
            elif data.mask is not None:
                mask = data.mask if data.mask.dtype == np.bool_ else data.mask.astype(DTYPES[case.dtype])
                options["attn_mask"] = torch.from_numpy(mask)
            else:
                options["is_causal"] = case.causal
            if case.q_heads != case.kv_heads:
                options["enable_gqa"] = True
            last: list[Any] = [None]

            def call() -> None:
                with torch.inference_mode():
                    last[0] = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

            def result() -> NDArray[Any]:
                array: NDArray[Any] = last[0].float().numpy()
                return array

            return Variant(label, call, result)

        return [make]


def create() -> Peer:
    """Return the peer; ImportError where PyTorch is missing."""
    return PyTorch()
