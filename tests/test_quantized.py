"""int8 K and V with one scale a row, against the oracle in float64 on what the integers stand for."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from .cases import FEATURES, Case, Sizes, options, solve
from .conftest import Engine, check
from .stored import Stored, attend, dequantized, paged, quantized
from .tolerances import Expected, Problem

DTYPES = ("float32", "float16", "bfloat16")
PLACES = [pytest.param(i, case, id=case.name) for i, case in enumerate(FEATURES)]


@lru_cache(maxsize=32)
def _solved(case: Case, dtype: str, isa: str | None) -> tuple[Problem, Stored, Expected]:
    """The problem, its rows as integers, and the answer for exactly these integers and scales."""
    problem = case.problem(dtype)
    with np.errstate(invalid="ignore"):
        stored = quantized(problem.k, problem.v)
        k, v = dequantized(stored)
    rows = problem.q.shape[1] // max(k.shape[1], 1) * problem.q.shape[2]
    accumulation = Engine("cpu", isa).accumulation_of_int8(rows)
    expected = solve(Problem(problem.q, k, v, problem.options), dtype, accumulation)
    # Integers of 0 let all that is left of an output come from weights below 2^-126, which are flushed to 0.
    flushed = 2.0**-126 * v.shape[2] * np.nanmax(np.abs(v), initial=0.0)
    return problem, stored, replace(expected, out_tolerance=expected.out_tolerance + flushed)


def _check(
    case: Case, dtype: str, isa: str, *, page_size: int | None = None, threads: tuple[int, ...] = (1,)
) -> None:
    problem, stored, expected = _solved(case, dtype, isa)
    given = problem.options.get("kv_lengths")
    chosen = dict(problem.options)
    if page_size is not None:
        lengths = np.full(len(problem.q), problem.k.shape[2]) if given is None else np.asarray(given)
        stored = paged(stored, lengths, page_size, np.random.default_rng(page_size))
        chosen["kv_lengths"] = lengths
    results = []
    for count in threads:
        out, lse = attend(problem.q, stored, chosen, isa=isa, num_threads=count)
        check(out, lse, expected)
        results.append(out.tobytes() + lse.tobytes())
    assert len(set(results)) == 1, "the number of threads changed bits"


@pytest.mark.parametrize("page_size", [None, 16, 3])
@pytest.mark.parametrize(("i", "case"), PLACES)
def test_features(i: int, case: Case, page_size: int | None, cpu_engine: Engine) -> None:
    _check(case, DTYPES[i % 3], str(cpu_engine.isa), page_size=page_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (8, 2), (8, 1), (3, 1)])
@pytest.mark.parametrize("q_len", [1, 2, 5, 60])
def test_long(q_len: int, heads: int, kv_heads: int, dtype: str, cpu_engine: Engine) -> None:
    sizes = Sizes(2, heads, kv_heads, q_len, 1500, 64, 48)
    case = Case(f"{q_len}, {heads} on {kv_heads}", sizes, options(kv_lengths=[1500, 997], causal=True))
    for page_size in (None, 64):
        _check(case, dtype, str(cpu_engine.isa), page_size=page_size, threads=(1, 2, 5))


@pytest.mark.parametrize("head_dim", [1, 2, 7, 15, 17, 31, 33, 63, 65, 100, 127, 129, 191, 255, 256])
@pytest.mark.parametrize("q_len", [1, 3, 13])
def test_head_dims(head_dim: int, q_len: int, cpu_engine: Engine) -> None:
    v_dim = (head_dim * 7 + 5) % 256 + 1
    sizes = Sizes(2, 2, 1, q_len, 131, head_dim, v_dim)
    case = Case(f"D {head_dim}, Dv {v_dim}, {q_len} queries", sizes, options(kv_lengths=[131, 50]))
    _check(case, DTYPES[head_dim % 3], str(cpu_engine.isa))


@pytest.mark.parametrize("rows", range(1, 18))
def test_every_number_of_rows(rows: int, cpu_engine: Engine) -> None:
    """Rows of one KV head are multiplied in groups, whose ends differ with their number."""
    sizes = Sizes(1, rows, 1, 1, 333, 72, 40)
    _check(Case(f"{rows} rows", sizes), DTYPES[rows % 3], str(cpu_engine.isa), threads=(1, 3))


def _answer(q: np.ndarray, stored: Stored, engine: Engine) -> tuple[np.ndarray, Expected]:
    problem = Problem(q, *dequantized(stored))
    rows = q.shape[1] // stored.k.shape[1]
    out, lse = attend(q, stored, {}, isa=str(engine.isa))
    expected = solve(problem, "float32", engine.accumulation_of_int8(rows))
    check(out, lse, expected)
    return out, expected


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_one_element_far_above_the_others(heads: int, cpu_engine: Engine) -> None:
    """A query's integers count from its largest element, so what is small beside it is what may get lost.

    Keys are 0 there, so that the others decide.
    """
    rng = np.random.default_rng(heads)
    q, k, v = (rng.standard_normal((1, h, s, 128)) for h, s in ((heads, 1), (1, 500), (1, 500)))
    q[..., 5], k[..., 5] = 1000.0, 0.0
    out, expected = _answer(q.astype(np.float32), quantized(k, v), cpu_engine)
    # 128 errors of 1000 / 2^24 at most move a score by some 1e-5; with sixteen bits it would be some 1e-2.
    assert np.abs(out - expected.out).max() < 3e-5


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_many_small_weights_beside_a_large_one(heads: int, cpu_engine: Engine) -> None:
    """8,191 weights of e^-6 of the largest: together they count for more than it does."""
    rng = np.random.default_rng(heads)
    v = rng.standard_normal((1, 1, 8192, 64)) + 1.0
    k = np.zeros((1, 1, 8192, 64))
    k[:, :, 4000, 0] = 6.0 * 8.0
    q = np.zeros((1, heads, 1, 64), np.float32)
    q[..., 0] = 1.0
    out, expected = _answer(q, quantized(k, v), cpu_engine)
    assert np.abs(out - expected.out).max() < 2e-6


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_logits_that_grow_from_tile_to_tile(heads: int, cpu_engine: Engine) -> None:
    """Each tile of keys has a new maximum, to which what was summed up before must move."""
    rng = np.random.default_rng(heads)
    q, k, v = (rng.standard_normal((1, h, s, 128)) for h, s in ((heads, 1), (1, 1500), (1, 1500)))
    q[..., 0], k[..., 0] = 8.0, np.arange(1500) / 20.0  # in 64 keys by 2
    _answer(q.astype(np.float32), quantized(k, v), cpu_engine)
    q[..., 0], k[..., 0] = 8.0, np.arange(1500) // 256 * 14.0  # in 256 keys by 10, beyond what may wait
    _answer(q.astype(np.float32), quantized(k, v), cpu_engine)


def test_a_query_that_is_not_finite_spoils_its_own_row_only(cpu_engine: Engine) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, h, s, 64)).astype(np.float32) for h, s in ((4, 1), (1, 99), (1, 99)))
    stored = quantized(k, v)
    clean, _ = attend(q, stored, {}, isa=str(cpu_engine.isa))
    q[0, 1, 0, 7], q[0, 2, 0, 9] = np.nan, np.inf
    out, lse = attend(q, stored, {}, isa=str(cpu_engine.isa))
    assert np.isnan(out[0, 1:3]).any(axis=-1).all()
    assert not np.isfinite(lse[0, 1:3]).any()
    assert out[0, ::3].tobytes() == clean[0, ::3].tobytes()


@pytest.mark.parametrize("q_len", [1, 6, 50])
def test_extremes(q_len: int, cpu_engine: Engine) -> None:
    """All -127, all 127, rows of scale 0, scales from 1e-30 to 1e3: no sum of integers may wrap."""
    rng = np.random.default_rng(q_len)
    q = rng.standard_normal((1, 2, q_len, 256)).astype(np.float32)
    q[:, 1] = np.abs(q[:, 1])
    k = rng.choice(np.array([-127, 127], np.int8), (1, 1, 200, 256))
    v = rng.choice(np.array([-127, 0, 127], np.int8), (1, 1, 200, 256))
    k[:, :, 20:60], k[:, :, 60:90], v[:, :, 40:80] = 127, -127, 127
    k_scales, v_scales = 10.0 ** rng.uniform(-4, -2, (2, 1, 1, 200)).astype(np.float32)
    k_scales[..., ::7], v_scales[..., ::5] = 0.0, 0.0
    k_scales[..., 3], v_scales[..., 3], v_scales[..., 4] = 1e-30, 1e-30, 1e3
    stored = Stored(k, v, k_scales, v_scales)
    problem = Problem(q, *dequantized(stored))
    check(
        *attend(q, stored, {}, isa=str(cpu_engine.isa)),
        solve(problem, "float32", cpu_engine.accumulation_of_int8(q.shape[2] * 2)),
    )


@pytest.mark.parametrize("q_len", [1, 20])
def test_strided_scales(q_len: int, cpu_engine: Engine) -> None:
    """Scales need not be neighbours: here they lie with the heads side by side, a NaN between each two."""
    case = Case(f"strided scales, {q_len}", Sizes(2, 4, 2, q_len, 200, 32, 48))
    problem, stored, expected = _solved(case, "float32", cpu_engine.isa)
    assert stored.k_scales is not None
    assert stored.v_scales is not None
    k_scales, v_scales = np.full((2, 2, 200, 2, 2), np.nan, dtype=np.float32)
    k_scales[..., 0], v_scales[..., 1] = stored.k_scales.swapaxes(1, 2), stored.v_scales.swapaxes(1, 2)
    apart = Stored(stored.k, stored.v, k_scales[..., 0].swapaxes(1, 2), v_scales[..., 1].swapaxes(1, 2))
    check(*attend(problem.q, apart, problem.options, isa=str(cpu_engine.isa)), expected)


def test_error_of_quantizing_is_what_eight_bits_leave(cpu_engine: Engine) -> None:
    """Against the rows before quantizing: far off a float's error, but within half a step of each value."""
    case = Case("to eight bits", Sizes(1, 2, 2, 1, 400, 64, 64))
    problem, stored, _ = _solved(case, "float32", cpu_engine.isa)
    exact = solve(problem, "float32", "float32")
    out, _ = attend(problem.q, stored, problem.options, isa=str(cpu_engine.isa))
    error = np.abs(out - exact.out).max()
    assert 1e-6 < error < 0.02
