"""Odd but sound input gets the right answer: empty sizes, any layout, options of every form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastattention

from .inputs import DV, HKV, HQ, INF, SK, SQ, B, D, packed, tensors, zeros


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("batch", "q_heads", "kv_heads", "q_len", "k_len"),
    [(0, 4, 2, 3, 7), (2, 0, 0, 3, 7), (2, 0, 2, 3, 7), (2, 4, 2, 0, 7), (2, 4, 2, 3, 0), (0, 0, 0, 0, 0)],
)
def test_empty(backend, batch, q_heads, kv_heads, q_len, k_len):
    q, k, v = (
        zeros(batch, q_heads, q_len, D),
        zeros(batch, kv_heads, k_len, D),
        zeros(batch, kv_heads, k_len, DV),
    )
    out, lse = fastattention.attention(
        q, k, v, causal=True, return_lse=True, backend=backend, sinks=zeros(q_heads),
        alibi_slopes=zeros(batch, q_heads), kv_lengths=zeros(batch, dtype=int), q_offset=1,
        mask=np.ones((q_len, k_len), bool),
    )  # fmt: skip
    assert out.shape == (batch, q_heads, q_len, DV)
    assert lse.shape == (batch, q_heads, q_len)
    assert (out == 0).all()
    assert (lse == -INF).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_packed(backend):
    cu = np.zeros(1, int)
    out, lse = fastattention.attention_varlen(
        zeros(0, HQ, D), zeros(0, HKV, D), zeros(0, HKV, DV), cu, cu, return_lse=True, backend=backend
    )
    assert out.shape == (0, HQ, DV)
    assert lse.shape == (0, HQ)
    arguments = {**packed(), "cu_seqlens_q": np.array([0, 0, 6, 6]), "cu_seqlens_k": np.array([0, 9, 9, 9])}
    out, lse = fastattention.attention_varlen(**arguments, return_lse=True, backend=backend)
    assert (out == 0).all()
    assert (lse == -INF).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_any_memory_layout_gives_the_same_answer(backend, dtype):
    plain = tensors(dtype)
    expected = fastattention.attention(**plain, backend=backend)

    def layouts(x):
        itemsize = x.itemsize
        yield "reversed", x[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
        yield "(B, S, H, D)", x.swapaxes(1, 2).copy().swapaxes(1, 2)
        yield "last axis strided", np.repeat(x, 2, axis=3)[..., ::2]
        yield "last axis reversed", x[..., ::-1].copy()[..., ::-1]
        yield "Fortran", np.asfortranarray(x)
        moved = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
        moved[...] = x
        assert not moved.flags.aligned
        yield "misaligned", moved
        # Rows of an odd number of bytes: strides that are no multiple of the item size.
        record = np.dtype(
            {"names": ["row"], "formats": [(x.dtype, x.shape[-1])], "itemsize": x.shape[-1] * itemsize + 1}
        )
        odd = np.empty(x.shape[:-1], record)["row"]
        odd[...] = x
        assert odd.strides[-2] % itemsize
        yield "odd strides", odd

    for name in plain:
        for label, other in layouts(plain[name]):
            np.testing.assert_array_equal(other, plain[name])
            got = fastattention.attention(**{**plain, name: other}, backend=backend)
            np.testing.assert_array_equal(got, expected, err_msg=f"{name}: {label}")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stride_0_inputs(backend):
    arguments = tensors()
    shared = {name: np.broadcast_to(x[:1], x.shape) for name, x in arguments.items()}
    got = fastattention.attention(**shared, backend=backend)
    expected = fastattention.attention(**{name: x.copy() for name, x in shared.items()}, backend=backend)
    np.testing.assert_array_equal(got, expected)


def masks():
    rng = np.random.default_rng(3)
    full = rng.standard_normal((B, HQ, SQ, SK)).astype(np.float32)
    full[full > 1] = -INF
    yield "full", full
    yield "bool", full > -INF
    for shape in [
        (),
        (1,),
        (SK,),
        (SQ, 1),
        (SQ, SK),
        (HQ, 1, SK),
        (1, SQ, SK),
        (B, 1, 1, SK),
        (B, HQ, SQ, 1),
    ]:
        values = rng.standard_normal(shape).astype(np.float32)
        yield f"float{shape}", values
        yield f"bool{shape}", np.asarray(values > -0.5)
    yield "float16", full.astype(np.float16)
    yield "float64", full.astype(np.float64)
    yield "bfloat16", full.astype(ml_dtypes.bfloat16)
    yield "transposed", full.swapaxes(2, 3).copy().swapaxes(2, 3)
    yield "reversed", full[:, :, :, ::-1]
    # One byte of something else after each entry: strides that are no multiple of the item size.
    odd = np.empty((SQ, SK), np.dtype([("mask", np.float32), ("other", np.uint8)]))["mask"]
    odd[...] = full[0, 0]
    yield "odd strides", odd
    yield "below float32's range", np.where(np.arange(SK) == 2, -1e300, 0.0)


@pytest.mark.parametrize("mask", [pytest.param(mask, id=label) for label, mask in masks()])
def test_masks_broadcast(mask):
    arguments = tensors()
    got = fastattention.attention(**arguments, mask=mask)
    whole = np.broadcast_to(mask, (B, HQ, SQ, SK)).copy()
    expected = fastattention.attention(**arguments, mask=whole, backend="reference")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_float32_mask_is_not_copied():
    from fastattention.arguments import mask_array

    for dtype in (np.float32, np.bool_):
        mask = zeros(SQ, SK, dtype=dtype)
        view = mask_array(mask, (B, HQ, SQ, SK), "numpy", float64=False)
        assert np.shares_memory(view, mask)
        assert view.shape == (B, HQ, SQ, SK)
        assert view.strides[:2] == (0, 0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_options_of_other_forms(backend):
    arguments = {**tensors(), "backend": backend, "causal": True}

    def same(first, second):
        got = fastattention.attention(**{**arguments, **first})
        np.testing.assert_array_equal(got, fastattention.attention(**{**arguments, **second}))

    same({"kv_lengths": np.array([3, 7], np.uint8)}, {"kv_lengths": np.array([3, 7])})
    same({"kv_lengths": np.array([3, 9, 7, 9], np.int32)[::2]}, {"kv_lengths": np.array([3, 7])})
    same({"q_offset": np.int16(2)}, {"q_offset": np.array([2, 2])})
    same({"q_offset": SK - SQ}, {})
    same({"scale": np.float32(0.25)}, {"scale": 0.25})
    same({"scale": np.array(0.25)}, {"scale": 0.25})
    same({"scale": D**-0.5}, {})
    same({"window": (-1, None)}, {})
    same({"window": [2, 5]}, {"window": (2, 0)})
    same({"window": (2**70, np.int8(3))}, {})
    same({"causal": False, "window": (None, 0)}, {})
    same({"alibi_slopes": np.full(HQ, 0.5)}, {"alibi_slopes": np.full((B, HQ), 0.5, np.float16)})
    same({"sinks": np.full(HQ, -INF)}, {})
    same({"num_threads": np.int64(1)}, {"num_threads": 1})


def test_float64_on_the_reference():
    arguments = tensors(np.float64)
    out, lse = fastattention.attention(**arguments, return_lse=True, backend="reference")
    assert out.dtype == lse.dtype == np.float64
    expected, expected_lse = fastattention.reference.standard.attention(*arguments.values())
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)


def test_the_reference_rounds_once_to_the_input_dtype():
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        arguments = tensors(dtype)
        out, lse = fastattention.attention(**arguments, return_lse=True, backend="reference")
        assert (out.dtype, lse.dtype) == (dtype, np.float32)
        expected, _ = fastattention.reference.standard.attention(*arguments.values())
        np.testing.assert_array_equal(out, expected.astype(dtype))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": (1, 1)}, {"q_offset": np.array([0, 3])}]
)
def test_varlen_is_attention_of_each_sequence(backend, options):
    arguments = packed()
    cu_q, cu_k = arguments["cu_seqlens_q"], arguments["cu_seqlens_k"]
    extras = {**options, "softcap": 3.0, "sinks": np.linspace(-1, 1, HQ, dtype=np.float32)}
    slopes = np.linspace(0, 1, B * HQ, dtype=np.float32).reshape(B, HQ)
    out, lse = fastattention.attention_varlen(
        **arguments, **extras, alibi_slopes=slopes, return_lse=True, backend=backend
    )
    for b in range(B):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        if "q_offset" in options:
            extras["q_offset"] = int(options["q_offset"][b])
        one, one_lse = fastattention.attention(
            arguments["q"][rows].swapaxes(0, 1)[None], arguments["k"][keys].swapaxes(0, 1)[None],
            arguments["v"][keys].swapaxes(0, 1)[None], **extras, alibi_slopes=slopes[b], return_lse=True,
            backend="reference",
        )  # fmt: skip
        np.testing.assert_allclose(out[rows].swapaxes(0, 1), one[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lse[rows].swapaxes(0, 1), one_lse[0], rtol=1e-5, atol=1e-6)


def test_import_from_a_source_checkout_says_what_to_do(tmp_path):
    package = tmp_path / "fastattention"
    package.mkdir()
    source = Path(fastattention.__file__).read_bytes()
    (package / "__init__.py").write_bytes(source)
    run = subprocess.run(
        [sys.executable, "-S", "-c", "import fastattention"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "source checkout" in run.stderr.splitlines()[-1]
    assert "pip install ." in run.stderr


def test_import_is_light():
    heavy = ["torch", "jax", "matplotlib", "rich", "importlib.metadata"]
    code = f"import sys; import fastattention; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
