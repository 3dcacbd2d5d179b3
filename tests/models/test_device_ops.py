"""The decoder's operations for GPUs against those on NumPy: on a GPU, and compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastattention import gpu
from fastattention.models.device_ops import CudaOps, NumpyOps, Ops

from . import host_decoder

_NOT_HERE = host_decoder.why_not()
_NO_GPU = gpu.why_not()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(bool(_NO_GPU), reason=_NO_GPU or "there")]
PLACES = [
    pytest.param("host", marks=pytest.mark.skipif(bool(_NOT_HERE), reason=_NOT_HERE or "compiled")),
    pytest.param("gpu", marks=ON_GPU),
]
# Sums in another order: some units in the last place, of float32 2^-24 of numbers near 1, of float16 2^-11.
TOLERANCE = {np.float32: 1e-5, np.float16: 2e-3}


class Both:
    """The same call on NumPy and on the device."""

    def __init__(
        self, there: Callable[[np.ndarray], Any], back: Callable[[Any], np.ndarray], ops: Ops
    ) -> None:
        self.there, self.back, self.ops, self.plain = there, back, ops, NumpyOps()

    def check(
        self, name: str, *arguments: Any, changed: tuple[int, ...], atol: float, last: int | None = None
    ) -> None:
        """Call, and compare the arguments that are written.

        With `last`, matrices are longer: the call is given that many columns at the end of each.
        """
        given = [x.copy() if isinstance(x, np.ndarray) else x for x in arguments]
        moved = [self.there(x) if isinstance(x, np.ndarray) else x for x in arguments]
        if last is not None:
            given, moved = ([x[:, -last:] if np.ndim(x) == 2 else x for x in xs] for xs in (given, moved))
        getattr(self.ops, name)(*moved)
        getattr(self.plain, name)(*given)
        for index in changed:
            before = arguments[index] if last is None else arguments[index][:, -last:]
            assert np.any(given[index] != before), "nothing was written"
            got, want = (x.astype(np.float32) for x in (self.back(moved[index]), given[index]))
            np.testing.assert_allclose(got, want, rtol=atol, atol=atol)
        if last is not None:
            np.testing.assert_array_equal(self.back(moved[0].base)[:, :-last], arguments[0][:, :-last])


@pytest.fixture(params=[np.float32, np.float16])
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=PLACES)
def both(request: pytest.FixtureRequest, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> Both:
    if request.param == "host":
        host_decoder.pretend(monkeypatch)
        return Both(lambda x: host_decoder.on_host(x.copy()), np.asarray, CudaOps(np.dtype(dtype)))
    import cupy

    return Both(cupy.asarray, cupy.asnumpy, CudaOps(np.dtype(dtype)))


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_embed(both: Both, dtype: Any) -> None:
    tokens = np.array([3, 0, 10, 3], np.int32)
    x = np.zeros((4, 300), np.float32)
    both.check("embed", tokens, random(11, 300, dtype=dtype), x, changed=(2,), atol=0)


@pytest.mark.parametrize("hidden", [1, 31, 128, 576, 4096, 5000])
@pytest.mark.parametrize("with_delta", [True, False])
def test_normalise(both: Both, dtype: Any, hidden: int, with_delta: bool) -> None:
    delta = random(2, hidden, dtype=dtype, seed=2) if with_delta else None
    out = np.zeros((2, hidden), dtype)
    changed = (0, 3) if with_delta else (3,)
    both.check(
        "normalise", random(2, hidden), delta, None, out, 1e-5, changed=changed, atol=TOLERANCE[dtype]
    )  # fmt: skip


@pytest.mark.parametrize("with_delta", [True, False])
def test_normalise_the_last_rows_of_sequences(both: Both, dtype: Any, with_delta: bool) -> None:
    hidden, tokens = 300, 3
    x, out = random(2, tokens * hidden), np.zeros((2, hidden), dtype)
    delta = random(2, tokens * hidden, dtype=dtype, seed=2) if with_delta else None
    changed = (0, 3) if with_delta else (3,)
    both.check(
        "normalise", x, delta, random(hidden, seed=3), out, 1e-5, changed=changed, atol=TOLERANCE[dtype],
        last=hidden,
    )  # fmt: skip


def test_normalise_in_place_of_what_is_added(both: Both, dtype: Any) -> None:
    x, delta = random(3, 700), random(3, 700, dtype=dtype, seed=1)
    here_x, here = x.copy(), delta.copy()
    both.plain.normalise(here_x, here, None, here, 1e-5)
    there_x, there = both.there(x), both.there(delta)
    both.ops.normalise(there_x, there, None, there, 1e-5)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(both.back(there_x), here_x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(both.back(there), here, rtol=tolerance, atol=tolerance)


def test_epsilon_counts(both: Both, dtype: Any) -> None:
    x = random(2, 64) * np.float32(0.01)
    both.check("normalise", x, None, None, np.zeros((2, 64), dtype), 0.1, changed=(3,), atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 64, 96), (5, 33, 20), (17, 96, 64), (1, 1, 7)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_matmul(
    both: Both, dtype: Any, rows: int, inner: int, columns: int, transposed: bool, wide: bool
) -> None:
    a = random(rows, inner, dtype=dtype)
    b = random(*((columns, inner) if transposed else (inner, columns)), dtype=dtype, seed=1)
    out = np.zeros((rows, columns), np.float32 if wide else dtype)
    want = a.astype(np.float64) @ (b.T if transposed else b).astype(np.float64)
    there = both.there(b)
    result = both.there(out)
    both.ops.matmul(both.there(a), there.T if transposed else there, result)
    atol = 1e-5 * inner**0.5 if wide or dtype is np.float32 else 2e-3 * inner**0.5
    np.testing.assert_allclose(both.back(result), want, rtol=0, atol=atol)
    both.plain.matmul(a, b.T if transposed else b, out)
    np.testing.assert_allclose(out, want, rtol=0, atol=atol)


@pytest.mark.gpu
@pytest.mark.skipif(bool(_NO_GPU), reason=_NO_GPU or "there")
def test_float32_products_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 would keep 11 bits of each factor."""
    import cupy

    monkeypatch.setenv("CUPY_TF32", "1")
    a, b = random(256, 512), random(512, 256, seed=1)
    out = cupy.empty((256, 256), np.float32)
    CudaOps(np.dtype(np.float32)).matmul(cupy.asarray(a), cupy.asarray(b), out)
    error = np.abs(cupy.asnumpy(out) - a.astype(np.float64) @ b.astype(np.float64)).max()
    assert error < 2e-4  # with TF32 0.02


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "turned", "dim", "pairs"),
    [(1, 1, 8, 6, 16, 8), (3, 5, 4, 3, 64, 32), (2, 2, 40, 36, 128, 64), (2, 3, 3, 2, 20, 6)],
)
def test_rotate(
    both: Both, dtype: Any, batch: int, tokens: int, heads: int, turned: int, dim: int, pairs: int
) -> None:
    angles = np.random.default_rng(3).uniform(0, 7, (tokens, pairs))
    rotation = np.stack((np.cos(angles), np.sin(angles)), axis=2).astype(np.float32)
    qkv = random(batch, tokens, heads, dim, dtype=dtype)
    both.check("rotate", qkv, rotation, turned, changed=(0,), atol=TOLERANCE[dtype])
    turned_here = qkv.copy()
    both.plain.rotate(turned_here, rotation, turned)
    np.testing.assert_array_equal(turned_here[:, :, turned:], qkv[:, :, turned:])
    np.testing.assert_array_equal(turned_here[..., 2 * pairs :], qkv[..., 2 * pairs :])


@pytest.mark.parametrize(("rows", "width"), [(1, 96), (2, 1000), (17, 1536), (40, 77)])
def test_gate(both: Both, dtype: Any, rows: int, width: int) -> None:
    halves = random(rows, 2 * width, dtype=dtype) * dtype(4)
    both.check("gate", halves, np.zeros((rows, width), dtype), changed=(1,), atol=10 * TOLERANCE[dtype])
    g, u = 2 * halves[:, :width].astype(np.float64), halves[:, width:].astype(np.float64)
    out = np.zeros((rows, width), dtype)
    both.plain.gate(halves, out)
    wanted = g / (1 + np.exp(-g)) * u
    np.testing.assert_allclose(out, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_up_and_down(both: Both) -> None:
    array = np.arange(100, dtype=np.int32)
    there = both.there(np.zeros(100, np.int32))
    both.ops.upload(array, there)
    found = np.zeros(100, np.int32)
    both.ops.download(there, found)
    np.testing.assert_array_equal(found, array)
