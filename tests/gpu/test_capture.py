"""Calls in CUDA graphs: CuPy's and PyTorch's, replayed with other numbers in the same arrays."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastattention.gpu import capture
from fastattention.reference import standard

import fastattention

from ..conftest import Engine

Q_LEN, KEYS = 1, 900  # decode, in parts


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = ((2, 8, Q_LEN, 64), (2, 2, KEYS, 64), (2, 2, KEYS, 64))
    q, k, v = (rng.standard_normal(shape).astype(np.float16) for shape in shapes)
    return q, k, v


def expected(seed: int) -> np.ndarray:
    return standard.attention(*arrays(seed))[0]


class Stream:
    """A stream that notes whether somebody waited."""

    def __init__(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """As much of CuPy as counters need."""
    stream, cleared = Stream(), []

    def alloc(nbytes: int) -> Any:
        return types.SimpleNamespace(ptr=4096, memset_async=lambda value, n: cleared.append((value, n)))

    cuda = types.SimpleNamespace(get_current_stream=lambda: stream, alloc=alloc)
    monkeypatch.setattr(capture, "load_cupy", lambda: types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(capture, "_reserves", {})
    return types.SimpleNamespace(stream=stream, cleared=cleared)


def test_captured_calls_share_no_counters(cuda: types.SimpleNamespace) -> None:
    assert capture.reserve(0, 5, captured=True) == 0  # nothing is cleared yet, and cannot be now
    assert cuda.cleared == []
    assert capture.reserve(0, 5, captured=False) == 0
    assert (cuda.cleared, cuda.stream.waited) == ([(0, 4 * capture.RESERVE)], 1)
    assert capture.reserve(0, 5, captured=True) == 4096
    assert capture.reserve(0, 7, captured=True) == 4096 + 20
    assert capture.reserve(0, capture.RESERVE - 12, captured=True) == 4096 + 48
    assert capture.reserve(0, 1, captured=True) == 0  # all are given away
    assert cuda.stream.waited == 1


@pytest.mark.gpu
def test_a_graph_of_cupy(gpu_engine: Engine) -> None:
    import cupy

    x = [cupy.asarray(a) for a in arrays(0)]
    outs = [cupy.empty_like(x[0]) for _ in range(3)]
    fastattention.attention(*x)  # compiles, and clears what graphs count in
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        for out in outs:
            fastattention.attention(*x, out=out)
        graph = stream.end_capture()
    for seed in (1, 2):
        for a, b in zip(x, arrays(seed), strict=True):
            a.set(b)
        rubbish = [cupy.full(300_000, np.nan, np.float32) for _ in range(20)]  # where memory was free
        for out in outs:
            out.fill(np.nan)
        cupy.cuda.get_current_stream().synchronize()
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
        assert all(bool(cupy.isnan(r).all()) for r in rubbish)
        for out in outs:
            np.testing.assert_allclose(out.get().astype(float), expected(seed), rtol=0, atol=4e-3)


@pytest.mark.gpu
@pytest.mark.peers
def test_a_graph_of_pytorch(gpu_engine: Engine) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    x = [torch.as_tensor(a, device="cuda") for a in arrays(0)]
    fastattention.attention(*x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [fastattention.attention(*x) for _ in range(3)]
    for seed in (1, 2):
        for a, b in zip(x, arrays(seed), strict=True):
            a.copy_(torch.as_tensor(b))
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        for out in outs:
            np.testing.assert_allclose(out.cpu().numpy().astype(float), expected(seed), rtol=0, atol=4e-3)


@pytest.mark.gpu
def test_what_a_graph_cannot_repeat(gpu_engine: Engine) -> None:
    import cupy

    x = [cupy.asarray(a) for a in arrays(0)]
    call: Callable[..., Any] = lambda: fastattention.attention(*x, kv_lengths=np.array([5, 900]))  # noqa: E731
    call()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(
                RuntimeError, match=r"kv_lengths: copied from CPU memory .* CUDA graph cannot repeat"
            ):
                call()
        finally:
            stream.end_capture()
    np.testing.assert_array_equal(call().get(), call().get())
