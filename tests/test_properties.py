"""What must hold for any problem, with hypothesis looking for the one where it does not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastattention

from .cases import Case, Sizes, solve
from .conftest import Engine, check
from .test_merge import after_merge, part
from .test_random import draw_options
from .tolerances import Problem, error_in_tolerances

# The engine fixture lives as long as the test, not as one example; nothing about it changes between examples.
SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)

SIZES = st.builds(
    lambda batch, kv_heads, group, q_len, k_len, d, v_dim: Sizes(
        batch, kv_heads * group, kv_heads, q_len, k_len, d, v_dim
    ),
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 70), st.integers(1, 140),
    st.integers(1, 40), st.integers(1, 40),
)  # fmt: skip
SEEDS = st.integers(0, 2**32 - 1)


def _problem(n: Sizes, seed: int, **opts: Any) -> Problem:
    rng = np.random.default_rng(seed)
    shapes = (
        (n.batch, n.q_heads, n.q_len, n.head_dim),
        (n.batch, n.kv_heads, n.k_len, n.head_dim),
        (n.batch, n.kv_heads, n.k_len, n.v_dim),
    )
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return Problem(q, k, v, opts)


def _float_mask(n: Sizes, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    mask = rng.standard_normal(n.scores).astype(np.float32)
    mask[rng.random(n.scores) < 0.2] = -np.inf
    return mask


@SETTINGS
@given(n=SIZES, seed=SEEDS)
def test_any_problem(engine: Engine, n: Sizes, seed: int) -> None:
    problem = _problem(n, seed, **draw_options(np.random.default_rng(seed), n))
    engine.check(problem, solve(problem, "float32", engine.accumulation))


@SETTINGS
@given(n=SIZES, seed=SEEDS)
def test_order_of_keys_does_not_matter(engine: Engine, n: Sizes, seed: int) -> None:
    """Permuting keys, values and mask columns together changes rounding only."""
    problem = _problem(n, seed, mask=_float_mask(n, seed), softcap=3.0)
    expected = solve(problem, "float32", engine.accumulation)
    order = np.random.default_rng(seed).permutation(n.k_len)
    shuffled = replace(
        problem,
        k=problem.k[:, :, order],
        v=problem.v[:, :, order],
        options=problem.options | {"mask": problem.options["mask"][..., order]},
    )
    check(*engine.attention(shuffled), expected)


@SETTINGS
@given(n=SIZES, seed=SEEDS, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_split_keys_merge_to_the_whole(engine: Engine, n: Sizes, seed: int, cuts: list[float]) -> None:
    problem = _problem(n, seed, causal=True, window=(60, None), mask=_float_mask(n, seed))
    expected = solve(problem, "float32", "float32")
    ends = [0, *sorted(int(cut * n.k_len) for cut in cuts), n.k_len]
    parts = [engine.attention(part(problem, a, b)) for a, b in pairwise(ends)]
    check(*fastattention.merge(parts), after_merge(expected, "float32"))


@SETTINGS
@given(n=SIZES, seed=SEEDS, shift=st.integers(-64, 64))
def test_a_constant_added_to_a_row_shifts_its_lse(engine: Engine, n: Sizes, seed: int, shift: int) -> None:
    mask = np.round(_float_mask(n, seed) * 64) / 64  # so that adding the shift is exact
    problem = _problem(n, seed, mask=mask)
    moved = replace(problem, options={"mask": mask + np.float32(shift)})
    expected = solve(moved, "float32", "float32")
    out, lse = engine.attention(problem)
    assert error_in_tolerances(out, expected.out, expected.out_tolerance).tolerances <= 1
    assert error_in_tolerances(lse + np.float64(shift), expected.lse, expected.lse_tolerance).tolerances <= 1


@SETTINGS
@given(n=SIZES, seed=SEEDS, power=st.integers(-8, 8))
def test_scaling(engine: Engine, n: Sizes, seed: int, power: int) -> None:
    """Powers of two move from q to `scale`, and through v to the output, exactly."""
    factor = np.float32(2.0**power)
    problem = _problem(n, seed, scale=0.25, causal=True)
    out, lse = engine.attention(problem, num_threads=1)
    opts = problem.options | {"scale": 0.25 / float(factor)}
    other = replace(problem, q=problem.q * factor, v=problem.v * factor, options=opts)
    scaled, same_lse = engine.attention(other, num_threads=1)
    np.testing.assert_array_equal(scaled, out * factor)
    np.testing.assert_array_equal(same_lse, lse)


@SETTINGS
@given(n=SIZES, seed=SEEDS)
def test_output_stays_among_the_values(engine: Engine, n: Sizes, seed: int) -> None:
    """An average lies between the smallest and the largest of what it averages."""
    problem = _problem(n, seed, softcap=2.0)
    out, _ = engine.attention(problem)
    group = n.q_heads // n.kv_heads
    low, high = (np.repeat(f(problem.v, axis=2, keepdims=True), group, axis=1) for f in (np.min, np.max))
    slack = 1e-5 * np.abs(problem.v).max()
    assert (out >= low - slack).all()
    assert (out <= high + slack).all()


@SETTINGS
@given(n=SIZES, seed=SEEDS)
def test_a_mask_says_what_causal_says(engine: Engine, n: Sizes, seed: int) -> None:
    """Visibility by position, by a bool mask and by a float mask are one thing."""
    distance = np.arange(n.k_len) - (n.k_len - n.q_len + np.arange(n.q_len))[:, None]
    seen = (distance <= 0) & (distance >= -30)
    by_position = _problem(n, seed, causal=True, window=(30, None))
    expected = solve(by_position, "float32", engine.accumulation)
    for mask in (seen, np.where(seen, 0, -np.inf).astype(np.float32)):
        check(*engine.attention(replace(by_position, options={"mask": mask})), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_batches_and_heads_do_not_mix(engine: Engine, dtype: str) -> None:
    """One sequence or one head computed alone gives what it gives in company, bit for bit."""
    problem = Case("alone", Sizes(3, 6, 2, 40, 90, 20, 24)).problem(dtype)
    whole, lse = engine.attention(problem, num_threads=1)
    for b in range(3):
        for h in range(2):
            alone = Problem(
                problem.q[b : b + 1, 3 * h : 3 * h + 3],
                problem.k[b : b + 1, h : h + 1],
                problem.v[b : b + 1, h : h + 1],
            )
            out, alone_lse = engine.attention(alone, num_threads=1)
            np.testing.assert_array_equal(out[0], whole[b, 3 * h : 3 * h + 3])
            np.testing.assert_array_equal(alone_lse[0], lse[b, 3 * h : 3 * h + 3])
