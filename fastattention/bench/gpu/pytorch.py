"""PyTorch on the same arrays and the same stream: ``scaled_dot_product_attention``, one backend at a time.

Prefill has figures of its memory-efficient backend, the one that GPUs before Ampere have, and of its flash
backend. Decode takes whichever backend is fastest.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ml_dtypes
import numpy as np

from ... import gpu
from ..measure import Expected
from ..peers import UnsupportedError
from .cases import GpuCase
from .check import deviation
from .clock import Graph
from .data import Data

__all__ = ["GROUPED_ROWS", "PyTorch", "SdpaCalls", "load"]

#: The peer that takes the query heads of a KV head as rows of one head, as a careful caller would.
GROUPED_ROWS = "PyTorch, heads as rows"

_PREFILL = {"memory-efficient": "EFFICIENT_ATTENTION", "flash": "FLASH_ATTENTION"}
_DECODE = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")


def load(stream: Any, number: int) -> tuple[PyTorch | None, str]:
    """Import PyTorch for a CuPy stream of a device; return it, or None and why it takes no part."""
    try:
        return PyTorch(stream, number), ""
    except ImportError as problem:
        return None, f"not installed ({problem})"
    except (RuntimeError, AttributeError) as problem:
        return None, f"cannot use the GPU: {(str(problem).splitlines() or [''])[0]}"


class PyTorch:
    """The library, on a stream of CuPy's."""

    def __init__(self, stream: Any, number: int) -> None:
        self.torch = importlib.import_module("torch")
        self.attention = importlib.import_module("torch.nn.attention")
        if not self.torch.cuda.is_available():
            raise RuntimeError(f"torch {self.torch.__version__} finds no CUDA device")
        self.version = str(self.torch.__version__)
        self.stream = self.torch.cuda.ExternalStream(stream.ptr, device=number)

    def ways(self, case: GpuCase, data: Data, expected: dict[int, Expected]) -> dict[str, list[SdpaCalls]]:
        """Return, for each peer, its ways to do a case; the fastest right one is timed.

        int8 and pages are not among what the function takes.
        """
        if case.dtype == "int8" or case.page_size is not None:
            return {}
        if case.kind == "prefill":
            return {
                name: [SdpaCalls(self, case, data, expected, name, backend)]
                for name, backend in _PREFILL.items()
            }
        names = ["PyTorch"] + [GROUPED_ROWS] * (case.q_heads > case.kv_heads)
        return {
            name: [SdpaCalls(self, case, data, expected, name, backend) for backend in _DECODE]
            + [SdpaCalls(self, case, data, expected, name, "MATH")]
            for name in names
        }

    def tensor(self, array: Any) -> Any:
        """Return a tensor of a CuPy array's memory."""
        if array.dtype.name == "bfloat16":
            return self.torch.from_dlpack(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_dlpack(array)

    def array(self, tensor: Any) -> Any:
        """Return a CuPy array of a tensor's memory."""
        cupy = gpu.load_cupy()
        if tensor.dtype == self.torch.bfloat16:
            return cupy.from_dlpack(tensor.view(self.torch.int16)).view(np.dtype(ml_dtypes.bfloat16))
        return cupy.from_dlpack(tensor)

    @contextmanager
    def around(self, backend: str) -> Iterator[None]:
        """Make the stream PyTorch's, and `backend` the only one."""
        chosen = getattr(self.attention.SDPBackend, backend)
        with (
            self.torch.no_grad(),
            self.torch.cuda.stream(self.stream),
            self.attention.sdpa_kernel([chosen]),
        ):
            yield

    def release(self) -> None:
        """Give back the memory that PyTorch keeps for later."""
        self.torch.cuda.empty_cache()


class _Replay:
    """A graph of PyTorch's, and the output of its last call."""

    def __init__(self, graph: Any, output: Any) -> None:
        self.graph, self.output = graph, output

    def launch(self) -> None:
        """Queue the graph on PyTorch's current stream."""
        self.graph.replay()


class SdpaCalls:
    """Calls of one backend."""

    def __init__(
        self, library: PyTorch, case: GpuCase, data: Data, expected: dict[int, Expected], name: str,
        backend: str,
    ) -> None:  # fmt: skip
        self.library, self.case, self.data, self.expected, self.name = library, case, data, expected, name
        self.backend = backend
        self.caches = len(data.caches)
        self.detail = f"{backend.lower().removesuffix('_attention')} backend"
        self.last_resort = backend == "MATH"
        self._options: dict[str, Any] = {"is_causal": case.causal}
        self._rows = name == GROUPED_ROWS
        if case.q_heads > case.kv_heads and not self._rows:
            self._options["enable_gqa"] = True
        self._tensors: list[tuple[Any, Any, Any]] = []
        self._last: Any = None

    @contextmanager
    def around(self) -> Iterator[None]:
        """Make tensors of the arrays, the first time; put stream and backend in force."""
        with self.library.around(self.backend):
            if not self._tensors:
                q = self.library.tensor(self.data.q)
                if self._rows:
                    q = q.reshape(self.case.batch, self.case.kv_heads, -1, self.case.head_dim)
                self._tensors = [
                    (q, self.library.tensor(cache.k), self.library.tensor(cache.v))
                    for cache in self.data.caches
                ]
            yield

    def call(self, number: int) -> None:
        """Queue one call."""
        sdpa = self.library.torch.nn.functional.scaled_dot_product_attention
        self._last = sdpa(*self._tensors[number], **self._options)

    def capture(self, count: int) -> Graph:
        """Capture calls on the stream, which is PyTorch's current one within `around`."""
        torch = self.library.torch
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            for number in range(count):
                self.call(number % self.caches)
        except BaseException:
            with suppress(RuntimeError):  # what was raised inside is the error
                graph.capture_end()
            raise
        graph.capture_end()
        return _Replay(graph, self._last)

    def check(self, number: int, graph: Graph | None) -> float:
        """Return the error of a call or a replay.

        Raises
        ------
        UnsupportedError
            The backend has no kernel for the case.
        """
        torch = self.library.torch
        if isinstance(graph, _Replay):
            graph.output.fill_(float("nan"))
            graph.launch()
            return self._deviation(number, graph.output)
        self._last = None
        # The next tensor of this size lies here.
        torch.full(
            self._tensors[number][0].shape,
            float("nan"),
            dtype=self._tensors[number][0].dtype,
            device=self._tensors[number][0].device,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of why a backend cannot: the error says it
            try:
                self.call(number)
            except RuntimeError as problem:
                if "No available kernel" in str(problem) or "No viable backend" in str(problem):
                    raise UnsupportedError(f"no kernel of the {self.detail} for this case") from problem
                raise
        return self._deviation(number, self._last)

    def _deviation(self, number: int, output: Any) -> float:
        shape = self.case.batch, self.case.q_heads, self.case.q_len, self.case.value_dim
        found = self.library.array(output.reshape(shape))
        return deviation(self.case, self.expected[number], found)
