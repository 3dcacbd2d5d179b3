"""Attention over parts of the keys, merged, is attention over all of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import fastattention

from .cases import Case, Sizes, gain, options, solve, solved
from .conftest import Engine, check
from .tolerances import Expected, Problem

SIZES = Sizes(2, 4, 2, 19, 201, 24, 20)
DTYPES = ("float32", "float16", "bfloat16")


def part(problem: Problem, begin: int, end: int) -> Problem:
    """The problem over keys begin..end-1 alone: positions and masks move along."""
    opts: dict[str, Any] = dict(problem.options)
    q_len, k_len = problem.q.shape[2], problem.k.shape[2]
    lengths = opts.get("kv_lengths", np.full(len(problem.q), k_len))
    offset = opts.get("q_offset")
    opts["q_offset"] = np.broadcast_to(lengths - q_len if offset is None else offset, lengths.shape) - begin
    opts["kv_lengths"] = np.clip(lengths - begin, 0, end - begin)
    if (mask := opts.get("mask")) is not None and mask.ndim and mask.shape[-1] > 1:
        opts["mask"] = mask[..., begin:end]
    if begin:
        opts.pop("sinks", None)  # they belong to the row once
    return Problem(problem.q, problem.k[:, :, begin:end], problem.v[:, :, begin:end], opts)


def after_merge(expected: Expected, dtype: str) -> Expected:
    """Room for what parts lose: outputs are rounded to `dtype`, and the lse that weighs them to float32."""
    unit = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    finite_lse = np.where(np.isfinite(expected.lse), np.abs(expected.lse), 0.0)
    blur = (unit + 4 * 2**-24 * (1 + finite_lse))[..., None] * np.abs(expected.out).max(initial=1.0)
    return Expected(
        expected.out, expected.lse, 2 * expected.out_tolerance + 2 * blur, 3 * expected.lse_tolerance
    )


CASES = [
    Case("merge plain", SIZES),
    Case("merge causal", SIZES, options(causal=True)),
    Case("merge from the top left", SIZES, options(causal=True, q_offset=0)),
    Case("merge window", SIZES, options(window=(60, 20))),
    Case("merge ragged", SIZES, options(kv_lengths=(3, 180), causal=True)),
    Case("merge large logits", SIZES, options(causal=True), gain(q=60.0)),
    Case("merge mask", SIZES, lambda rng, n: {"mask": rng.random(n.scores) < 0.3}),
    Case("merge ALiBi", SIZES, options(alibi_slopes=np.array([0.5, 0.1, 0.02, -0.01], dtype=np.float32))),
]
SPLITS = (
    [0, 100, 201],
    [0, 1, 201],
    [0, 200, 201],
    [0, 0, 201],
    [0, 64, 128, 192, 201],
    list(range(0, 202, 3)),
)


@pytest.mark.parametrize("splits", SPLITS, ids=lambda splits: f"{len(splits) - 1} parts from {splits[1]}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parts_equal_the_whole(case: Case, splits: list[int], engine: Engine) -> None:
    for dtype in DTYPES:
        problem, expected = solved(case, dtype, "float32")  # merge computes in float32
        parts = [engine.attention(part(problem, a, b), num_threads=1) for a, b in pairwise(splits)]
        out, lse = fastattention.merge(parts)
        assert (out.dtype, lse.dtype) == (problem.q.dtype, np.float32)
        check(out, lse, after_merge(expected, dtype))


def test_sinks_are_counted_once(engine: Engine) -> None:
    case = Case("merge sinks", SIZES, options(sinks=np.array([3.0, -1.0, -np.inf, 8.0], dtype=np.float32)))
    problem, expected = solved(case, "float32", "float32")
    parts = [engine.attention(part(problem, a, b)) for a, b in [(0, 90), (90, 201)]]
    check(*fastattention.merge(parts), after_merge(expected, "float32"))


def test_order_does_not_matter(engine: Engine) -> None:
    problem, expected = solved(CASES[1], "float32", "float32")
    parts = [engine.attention(part(problem, a, b)) for a, b in [(0, 30), (30, 170), (170, 201)]]
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        check(*fastattention.merge(parts[i] for i in order), after_merge(expected, "float32"))


def test_merging_is_associative() -> None:
    problem, _ = solved(CASES[0], "float32", "float32")
    a, b, c = (Engine("cpu").attention(part(problem, *x)) for x in [(0, 30), (30, 170), (170, 201)])
    left = fastattention.merge([fastattention.merge([a, b]), c])
    right = fastattention.merge([a, fastattention.merge([b, c])])
    np.testing.assert_allclose(left[0], right[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(left[1], right[1], rtol=1e-6, atol=1e-6)


def test_an_empty_part_has_no_say() -> None:
    """A part that saw no key (lse -inf) weighs nothing, even if its rows hold NaN."""
    problem, _ = solved(CASES[0], "float32", "float32")
    out, lse = Engine("cpu").attention(problem)
    nothing = (np.full_like(out, np.nan), np.full_like(lse, -np.inf))
    for parts in ([(out, lse), nothing], [nothing, (out, lse)], [nothing, (out, lse), nothing]):
        merged, merged_lse = fastattention.merge(parts)
        np.testing.assert_array_equal(merged, out)
        np.testing.assert_array_equal(merged_lse, lse)


def test_nothing_but_empty_parts() -> None:
    out, lse = np.zeros((1, 2, 3, 4), dtype=np.float32), np.full((1, 2, 3), -np.inf, dtype=np.float32)
    merged, merged_lse = fastattention.merge([(out, lse), (out, lse)])
    assert not merged.any()
    assert (merged_lse == -np.inf).all()


def test_far_apart_parts_do_not_overflow() -> None:
    """exp(1e4) overflows every float; the merge shifts by the largest first."""
    out = np.stack([np.full((1, 1, 2, 3), value, dtype=np.float32) for value in (1.0, 2.0)])
    lse = np.array([1e4, 1e4], dtype=np.float32)[:, None, None, None] * np.ones(
        (2, 1, 1, 2), dtype=np.float32
    )
    merged, merged_lse = fastattention.merge([(out[0], lse[0]), (out[1], lse[1])])
    np.testing.assert_allclose(merged, 1.5, rtol=1e-6)
    np.testing.assert_allclose(merged_lse, 1e4 + np.log(2), rtol=1e-6)
    merged, _ = fastattention.merge([(out[0], lse[0]), (out[1], -lse[1])])
    np.testing.assert_array_equal(merged, out[0])


def test_whole_is_the_oracles() -> None:
    """The helper that cuts problems is right: the oracle's own parts merge to the oracle's whole."""
    reference = Engine("reference")
    for case in CASES:
        problem = case.problem("float64")
        expected = solve(problem, "float64", "float64")
        parts = [reference.attention(part(problem, a, b)) for a, b in [(0, 64), (64, 201)]]
        out, lse = fastattention.merge(parts)
        np.testing.assert_allclose(out, expected.out, rtol=0, atol=1e-12)
        np.testing.assert_allclose(lse, expected.lse, rtol=1e-12, atol=1e-12)
