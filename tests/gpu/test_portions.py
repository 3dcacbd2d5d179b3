"""Calls too large for one launch: cut into parts that together are the call, whatever its options.

Without a GPU the parts are computed by the CPU's kernels, which take the same arguments; then on a GPU, with
the limit lowered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastattention.gpu import launch
from fastattention.gpu.choose import Configuration, grid
from fastattention.gpu.portions import portions, sizes

import fastattention
from fastattention import cpu_kernels

from .. import stored
from ..cases import FEATURES, Case, Sizes, options, solve
from ..conftest import Engine
from .test_stored import verify

PREFILL = Configuration("", "attention", (), 128, 16, 64, 0)
DECODE = Configuration("", "decode", (), 128, 4, 64, 0)
DECODE_OF_FEW_ROWS = Configuration("", "decode", (), 128, 16, 64, 0)  # packed sequences get no other
RNG = np.random.default_rng(6)
ABSENT = launch._ABSENT


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def padded(**given: Any) -> dict[str, Any]:
    """Five sequences, six query heads on two KV heads, with everything that has an axis to cut."""
    call = {
        **ABSENT, "q": normal(5, 6, 7, 16), "k": normal(5, 2, 40, 16), "v": normal(5, 2, 40, 8),
        "out": np.full((5, 6, 7, 8), np.nan, np.float32), "lse": np.full((5, 6, 7), np.nan, np.float32),
        "scale": 0.3, "softcap": 0.0, "window_left": 20, "window_right": 1,
        "kv_lengths": np.array([40, 3, 0, 39, 22]), "page_size": 0,
    }  # fmt: skip
    return {**call, **given}


MASK = RNG.random((5, 6, 7, 40)) < 0.8
CALLS = {
    "plain": padded(),
    "no lengths": padded(kv_lengths=None),
    "offsets": padded(q_offsets=np.array([3, -2, 0, 30, 5])),
    "mask": padded(mask=MASK),
    "broadcast mask": padded(mask=np.broadcast_to(MASK[:1, :, :1], MASK.shape)),
    "float mask": padded(mask=np.where(MASK, normal(5, 6, 7, 40), -np.inf).astype(np.float32)),
    "slopes": padded(alibi_slopes=normal(6), sinks=normal(6)),
    "slopes of each sequence": padded(alibi_slopes=normal(5, 6)),
    "no lse": padded(lse=None),
    "one KV head": padded(k=normal(5, 1, 40, 16), v=normal(5, 1, 40, 8)),
}


def in_pages(dtype: str) -> dict[str, Any]:
    call = padded(kv_lengths=np.array([40, 3, 1, 39, 22]))
    kept = stored.Stored(call["k"], call["v"])
    if dtype == "int8":
        kept = stored.quantized(kept.k, kept.v)
    kept = stored.paged(kept, call["kv_lengths"], 8, np.random.default_rng(1))
    return {
        **call, "k": kept.k, "v": kept.v, "k_scales": kept.k_scales, "v_scales": kept.v_scales,
        "block_table": kept.table, "page_size": 8, "max_seqlen_k": 40,
    }  # fmt: skip


def packed(**given: Any) -> dict[str, Any]:
    return {
        **ABSENT, "q": normal(12, 6, 16), "k": normal(50, 2, 16), "v": normal(50, 2, 8),
        "out": np.full((12, 6, 8), np.nan, np.float32), "lse": np.full((12, 6), np.nan, np.float32),
        "scale": 0.3, "softcap": 0.0, "window_left": -1, "window_right": 0, "page_size": 0,
        "cu_seqlens_q": np.array([0, 1, 4, 4, 9, 12]), "cu_seqlens_k": np.array([0, 7, 10, 30, 41, 50]),
        "max_seqlen_q": 5, "max_seqlen_k": 20, **given,
    }  # fmt: skip


CALLS |= {
    "pages": in_pages("float32"),
    "int8 pages": in_pages("int8"),
    "packed": packed(),
    "packed, offsets and slopes": packed(q_offsets=np.array([3, 1, 0, 2, 9]), alibi_slopes=normal(5, 6)),
}


def compute(call: dict[str, Any]) -> None:
    tensors = [call[name] for name in ("q", "k", "v", "out", "lse")]
    rest = {name: value for name, value in call.items() if name not in ("q", "k", "v", "out", "lse")}
    cpu_kernels.attention(*tensors, **rest)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("entry", [PREFILL, DECODE], ids=lambda c: c.entry)
@pytest.mark.parametrize("name", CALLS)
def test_parts_together_are_the_call(name: str, entry: Configuration, most: int) -> None:
    call = CALLS[name]
    if call["cu_seqlens_q"] is not None and entry is DECODE:
        entry = DECODE_OF_FEW_ROWS
    whole, cut = ({**call, "out": call["out"].copy()} for _ in range(2))
    if call["lse"] is not None:
        whole["lse"], cut["lse"] = call["lse"].copy(), call["lse"].copy()
    compute(whole)
    parts = list(portions(entry, cut, most))
    assert (len(parts) > 1) == (max(grid(entry, **sizes(cut))[1:]) > most)
    for part in parts:
        _, y, z = grid(entry, **sizes(part))
        assert max(y, z) <= most
        # Kernels take the small arrays without gaps.
        assert part["alibi_slopes"] is None or part["alibi_slopes"].flags.c_contiguous
        compute(part)
    np.testing.assert_allclose(cut["out"], whole["out"], rtol=1e-5, atol=1e-6)
    if call["lse"] is not None:
        np.testing.assert_allclose(cut["lse"], whole["lse"], rtol=1e-5, atol=1e-6)


def test_a_call_that_fits_is_left_alone() -> None:
    call = padded()
    assert [part is call for part in portions(PREFILL, call)] == [True]


def test_rows_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="q: one head of packed sequences takes 2 CTAs, a launch takes 1"):
        list(portions(DECODE, packed(), 1))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MAX_GRID", 3)


@pytest.mark.gpu
@pytest.mark.parametrize(("i", "case"), [pytest.param(i, c, id=c.name) for i, c in enumerate(FEATURES)])
def test_features_in_parts(i: int, case: Case, few: None, gpu_engine: Engine) -> None:
    dtype = ("float32", "float16", "bfloat16")[i % 3]
    if dtype == "bfloat16" and gpu_engine.atom is not None and gpu_engine.atom < 80:
        dtype = "float16"
    problem = case.problem(dtype)
    gpu_engine.check(problem, solve(problem, dtype, gpu_engine.accumulation))


@pytest.mark.gpu
@pytest.mark.parametrize("integers", [False, True], ids=["floats", "int8"])
@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("q_len", [1, 5, 60])
def test_caches_in_parts(
    q_len: int, page_size: int | None, integers: bool, few: None, gpu_engine: Engine
) -> None:
    sizes = Sizes(7, 8, 4, q_len, 300, 64, 48)
    lengths = [300, 0, 17, 299, 1, 64, 128]
    case = Case("parts", sizes, options(kv_lengths=lengths, causal=True))
    for dtype in ("float32", "float16"):
        verify(case, dtype, page_size, integers, gpu_engine)


@pytest.mark.gpu
def test_more_sequences_than_a_grid_has(gpu_engine: Engine) -> None:
    """Seventy thousand tiny sequences, padded and packed, and more heads than 65535."""
    import cupy

    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((70_000, 1, 1, 8)), rng.standard_normal((70_000, 1, 2, 8))
    q, k = q.astype(np.float32), k.astype(np.float32)
    want = fastattention.attention(q, k, k)
    got = fastattention.attention(*map(cupy.asarray, (q, k, k)))
    np.testing.assert_allclose(got.get(), want, rtol=1e-5, atol=1e-5)
    starts = [np.arange(70_001) * n for n in (1, 2)]
    flat = [x.swapaxes(1, 2).reshape(-1, 1, 8) for x in (q, k, k)]
    got = fastattention.attention_varlen(*map(cupy.asarray, flat), *starts)
    np.testing.assert_allclose(got.get(), want[:, :, 0], rtol=1e-5, atol=1e-5)
    heads = [cupy.asarray(np.ascontiguousarray(x.swapaxes(0, 1))) for x in (q, k, k)]
    got = fastattention.attention(*heads)
    np.testing.assert_allclose(got.get()[0], want[:, 0], rtol=1e-5, atol=1e-5)
