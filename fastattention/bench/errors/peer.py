"""PyTorch on the arrays of a case."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..peers import import_any
from .cases import Arrays

__all__ = ["PyTorch"]


class PyTorch:
    """``torch.nn.functional.scaled_dot_product_attention`` on one thread; ImportError where it is missing."""

    def __init__(self) -> None:
        self.torch = import_any("torch")
        self.version = str(self.torch.__version__)

    def attention(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the output, (1, Hq, Sq, D), widened to float32.

        It knows no int8 caches; it gets float32 keys and values, the product of integer and scale rounded.
        """
        torch = self.torch
        k: NDArray[Any] = arrays.k
        v: NDArray[Any] = arrays.v
        if arrays.k_scales is not None and arrays.v_scales is not None:
            k, v = k * arrays.k_scales[..., None], v * arrays.v_scales[..., None]
        torch.set_num_threads(1)
        with torch.inference_mode():
            out = torch.nn.functional.scaled_dot_product_attention(
                *(self._tensor(x) for x in (arrays.q, k, v)), enable_gqa=arrays.q.shape[1] != k.shape[1]
            )
        widened: NDArray[np.float32] = out.float().numpy()
        return widened

    def _tensor(self, array: NDArray[Any]) -> Any:
        if array.dtype == ml_dtypes.bfloat16:  # torch knows not this extension of NumPy's, but its bits
            return self.torch.from_numpy(array.view(np.uint16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)
