"""Arrays of CuPy, PyTorch and JAX on a GPU: what comes back, where it lies, on which stream it was made."""

from __future__ import annotations

import numpy as np
import pytest

import fastattention

from ..conftest import Engine

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(4)
Q, K, V = (RNG.standard_normal((2, n, 70, 64)).astype(np.float32) for n in (4, 2, 2))


def close(got, name):
    want = fastattention.attention(Q, K, V, causal=True, backend="reference")
    np.testing.assert_allclose(got, want, rtol=0, atol={"float32": 2e-5, "float16": 4e-3}[name])


@pytest.mark.parametrize("name", ["float32", "float16"])
@pytest.mark.parametrize("backend", ["auto", "gpu"])
def test_cupy(name, backend, gpu_engine: Engine):
    import cupy

    q, k, v = (cupy.asarray(x.astype(name)) for x in (Q, K, V))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        out, lse = fastattention.attention(q, k, v, causal=True, return_lse=True, backend=backend)
        stream.synchronize()
    assert isinstance(out, cupy.ndarray)
    assert (out.dtype, lse.dtype) == (np.dtype(name), np.float32)
    close(out.get(), name)
    merged, _ = fastattention.merge([(out, lse), (out, cupy.full_like(lse, -np.inf))])
    assert isinstance(merged, cupy.ndarray)
    np.testing.assert_allclose(merged.get(), out.get(), rtol=1e-3, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["float32", "float16"])
def test_torch(name, gpu_engine: Engine):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    q, k, v = (torch.as_tensor(x.astype(name), device="cuda") for x in (Q, K, V))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what runs on another stream would read zeros
        late = q.clone()
        out, lse = fastattention.attention(late, k, v, causal=True, return_lse=True)
        same = torch.empty_like(q)
        assert fastattention.attention(late, k, v, causal=True, out=same) is same
    stream.synchronize()
    assert out.device == q.device
    assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
    close(out.float().cpu().numpy(), name)
    assert torch.equal(out, same)
    lengths = torch.tensor([70, 9], device="cuda")
    here = fastattention.attention(q, k, v, kv_lengths=lengths)
    assert torch.equal(here, fastattention.attention(q, k, v, kv_lengths=lengths.cpu()))
    with pytest.raises(TypeError, match=r"k: .*torch cuda:0.*got torch"):
        fastattention.attention(q, k.cpu(), v)
    with pytest.raises(TypeError, match="requires grad"):
        fastattention.attention(q.requires_grad_(), k, v)


@pytest.mark.peers
def test_torch_bfloat16(gpu_engine: Engine):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    q, k, v = (torch.as_tensor(x, device="cuda").bfloat16() for x in (Q, K, V))
    if gpu_engine.atom is not None and gpu_engine.atom < 80:
        with pytest.raises(TypeError, match="q: bfloat16 needs compute capability"):
            fastattention.attention(q, k, v)
        return
    out = fastattention.attention(q, k, v, causal=True)
    assert out.dtype == torch.bfloat16
    want = fastattention.attention(Q, K, V, causal=True, backend="reference")
    np.testing.assert_allclose(out.float().cpu().numpy(), want, rtol=0, atol=4e-2)


@pytest.mark.peers
def test_jax(gpu_engine: Engine):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    try:
        there = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("this JAX has no CUDA")
    q, k, v = (jax.device_put(x, there) for x in (Q, K, V))
    out = fastattention.attention(q, k, v, causal=True)
    assert type(out) is type(q)
    assert out.devices() == {there}
    close(np.asarray(out), "float32")
