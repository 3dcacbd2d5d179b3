"""Packed sequences of unequal lengths: each one's answer is its own alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastattention.reference import standard

import fastattention

from .conftest import Engine, check
from .tolerances import DTYPES, Expected, Problem, error_in_tolerances, tolerances

LENGTHS = {
    "one sequence": ([37], [90]),
    "one token": ([1], [1]),
    "alike": ([16, 16, 16], [33, 33, 33]),
    "mixed": ([5, 64, 1, 23, 130], [9, 64, 200, 23, 131]),
    "decode": ([1, 1, 1, 1], [1, 300, 64, 777]),
    "speculative": ([4, 4, 3, 1], [129, 700, 3, 512]),
    "no queries in some": ([0, 7, 0, 30, 0], [5, 7, 0, 30, 64]),
    "no keys in some": ([3, 20, 1, 2], [0, 20, 0, 65]),
    "nothing at all": ([0, 0], [0, 0]),
    "prefill and decode together": ([100, 1, 1, 50], [100, 256, 1, 300]),
    "more queries than keys": ([60, 17, 2], [7, 1, 1]),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (20, 3)},
    "causal window": {"causal": True, "window": (9, None)},
    "softcap, scale": {"softcap": 1.5, "scale": 0.7},
    "alibi": {"alibi_slopes": np.linspace(0.01, 0.5, 4, dtype=np.float32), "causal": True},
    "sinks": {"sinks": np.array([1.0, -np.inf, 20.0, -4.0], dtype=np.float32), "causal": True},
}


def _packed(lengths: tuple[list[int], list[int]], dtype: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    total_q, total_k = (sum(x) for x in lengths)
    shapes = [(total_q, 4, 20), (total_k, 2, 20), (total_k, 2, 24)]
    arrays = [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]
    return *arrays, *(np.concatenate([[0], np.cumsum(x)]).astype(np.int32) for x in lengths)


def _expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, *rest: Any) -> Expected:
    """The oracle on each sequence by itself, joined along the tokens."""
    cu_q, cu_k, opts, storage, accumulation = rest
    parts = []
    for b in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        one_q, one_k, one_v = (x.swapaxes(0, 1)[None] for x in (q[rows], k[keys], v[keys]))
        one = Problem(one_q, one_k, one_v, opts)
        out, lse = standard.attention(one.q, one.k, one.v, **opts)
        parts.append((out, lse, *tolerances(one, out, lse, storage, accumulation, int(np.diff(cu_q).max()))))
    out, lse, out_tolerance, lse_tolerance = (np.concatenate(x, axis=2)[0] for x in zip(*parts, strict=True))
    return Expected(out.swapaxes(0, 1), lse.T, out_tolerance.swapaxes(0, 1), lse_tolerance.T)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("opts", OPTIONS.values(), ids=OPTIONS.keys())
def test_each_sequence_alone(
    opts: dict[str, Any], lengths: tuple[list[int], list[int]], dtype: str, engine: Engine
) -> None:
    q, k, v, cu_q, cu_k = _packed(lengths, dtype)
    expected = _expected(q, k, v, cu_q, cu_k, opts, dtype, engine.accumulation)
    for threads in (1, 3):
        out, lse = engine.run(
            fastattention.attention_varlen, q, k, v, cu_q, cu_k, **opts, return_lse=True, num_threads=threads
        )
        assert (out.dtype, lse.dtype) == (q.dtype, np.float32)
        check(out, lse, expected)


def test_slopes_and_offsets_of_each_sequence(engine: Engine) -> None:
    """ALiBi slopes (B, Hq) and positions (B,): each sequence uses its own."""
    q, k, v, cu_q, cu_k = _packed(LENGTHS["mixed"], "float32")
    slopes = np.linspace(-0.2, 0.4, 20, dtype=np.float32).reshape(5, 4)
    offsets = np.array([0, 30, 100, -4, 1])
    parts = []
    for b in range(5):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        one = np.array([0, cu_q[b + 1] - cu_q[b]]), np.array([0, cu_k[b + 1] - cu_k[b]])
        opts = {"causal": True, "alibi_slopes": slopes[b], "q_offset": int(offsets[b])}
        parts.append(_expected(q[rows], k[keys], v[keys], *one, opts, "float32", engine.accumulation))
    out, lse = engine.run(
        fastattention.attention_varlen, q, k, v, cu_q, cu_k, causal=True, alibi_slopes=slopes,
        q_offset=offsets, return_lse=True,
    )  # fmt: skip
    fields = ("out", "lse", "out_tolerance", "lse_tolerance")
    check(out, lse, Expected(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields)))


def test_strided_tokens(engine: Engine) -> None:
    """q, k and v as slices of one packed (T, heads, D) projection, as a fused QKV layer leaves them."""
    lengths = [3, 40, 1, 19]
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    fused = np.random.default_rng(8).standard_normal((int(cu[-1]), 8, 20)).astype(np.float32)
    q, k, v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    expected = _expected(q, k, v, cu, cu, {"causal": True}, "float32", engine.accumulation)
    out = engine.run(fastattention.attention_varlen, q, k, v, cu, cu, causal=True)
    assert error_in_tolerances(out, expected.out, expected.out_tolerance).tolerances <= 1


def test_a_neighbours_poison_stays_there(engine: Engine) -> None:
    """NaN in one sequence reaches no other, although they lie side by side."""
    q, k, v, cu_q, cu_k = _packed(LENGTHS["mixed"], "float32")
    expected = _expected(q, k, v, cu_q, cu_k, {"causal": True}, "float32", engine.accumulation)
    for b in range(len(cu_q) - 1):
        sick_k, sick_v = k.copy(), v.copy()
        sick_k[cu_k[b] : cu_k[b + 1]] = np.nan
        sick_v[cu_k[b] : cu_k[b + 1]] = np.inf
        out = engine.run(fastattention.attention_varlen, q, sick_k, sick_v, cu_q, cu_k, causal=True)
        sound = np.ones(len(q), dtype=np.bool_)
        sound[cu_q[b] : cu_q[b + 1]] = False
        error = error_in_tolerances(out[sound], expected.out[sound], expected.out_tolerance[sound])
        assert error.tolerances <= 1, f"sequence {b} leaks: {error}"


def test_equals_the_padded_batch(engine: Engine) -> None:
    """The same ragged batch, packed and padded with poison, gives the same numbers."""
    lengths = [7, 33, 1, 90]
    longest, rng = max(lengths), np.random.default_rng(3)
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    k, v = rng.standard_normal((2, int(cu[-1]), 2, 16)).astype(np.float32)
    q = rng.standard_normal((4, 4, 16)).astype(np.float32)
    padded_k, padded_v = np.full((2, 4, 2, longest, 16), np.nan, dtype=np.float32)
    for b, length in enumerate(lengths):
        padded_k[b, :, :length] = k[cu[b] : cu[b + 1]].swapaxes(0, 1)
        padded_v[b, :, :length] = v[cu[b] : cu[b + 1]].swapaxes(0, 1)
    packed = engine.run(fastattention.attention_varlen, q, k, v, np.arange(5, dtype=np.int32), cu)
    padded = engine.run(
        fastattention.attention, q[:, :, None], padded_k, padded_v, kv_lengths=np.array(lengths)
    )
    np.testing.assert_allclose(packed, padded[:, :, 0], rtol=0, atol=2e-6)
