"""Strides: inputs taken as they lie, outputs written where they belong and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastattention

from .cases import Case, Sizes, options, solve, solved
from .conftest import Engine, check
from .layouts import LAYOUTS, SCATTERED, Guarded, relaid
from .tolerances import Problem

# Odd sizes, so that every vector loop has a remainder; many and few queries, because they go different ways.
SIZES = (Sizes(2, 4, 2, 29, 75, 19, 21), Sizes(2, 4, 2, 3, 75, 19, 21), Sizes(2, 2, 2, 1, 9, 64, 64))
CASES = [Case(f"layouts {i}", sizes, options(causal=True)) for i, sizes in enumerate(SIZES)]
DTYPES = ("float32", "float16", "bfloat16")
WRITABLE = [name for name in LAYOUTS if name not in SCATTERED]


def _skip_what_is_refused(layout: str, engine: Engine) -> None:
    if engine.backend == "gpu" and layout == "one byte off":
        pytest.skip("on a GPU, elements off the multiples of their size cannot even be copied: an error")


@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs(layout: str, which: int, engine: Engine) -> None:
    _skip_what_is_refused(layout, engine)
    dtype = DTYPES[which]
    for case in CASES:
        problem, expected = solved(case, dtype, engine.accumulation)
        q, k, v = (
            relaid(x, layout) if i == which else x for i, x in enumerate((problem.q, problem.k, problem.v))
        )
        engine.check(Problem(q, k, v, problem.options), expected, num_threads=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_inputs_at_once(layout: str, engine: Engine) -> None:
    _skip_what_is_refused(layout, engine)
    for case, dtype in zip(CASES, DTYPES, strict=True):
        problem, expected = solved(case, dtype, engine.accumulation)
        q, k, v = (relaid(x, layout) for x in (problem.q, problem.k, problem.v))
        engine.check(Problem(q, k, v, problem.options), expected, num_threads=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stride_0(dtype: str, engine: Engine) -> None:
    """One cache for the whole batch, one head for all, one row for all."""
    for case in CASES:
        problem = case.problem(dtype)
        for axis in range(3):
            k, v = (
                np.broadcast_to(
                    x[tuple(slice(0, 1) if i == axis else slice(None) for i in range(4))], x.shape
                )
                for x in (problem.k, problem.v)
            )
            shared = Problem(problem.q, k, v, problem.options)
            engine.check(shared, solve(shared, dtype, engine.accumulation), num_threads=1)
        q = np.broadcast_to(problem.q[:1, :1], problem.q.shape)
        shared = replace(problem, q=q)
        engine.check(shared, solve(shared, dtype, engine.accumulation), num_threads=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", WRITABLE)
def test_out(layout: str, dtype: str, engine: Engine) -> None:
    """Every element of `out` is written, nothing around it is, and `out` itself comes back."""
    for case in CASES:
        problem, expected = solved(case, dtype, engine.accumulation)
        guarded = Guarded.make(expected.out.shape, problem.q.dtype, layout)
        out, lse = engine.attention(problem, out=guarded.view, num_threads=2)
        assert out is guarded.view
        check(guarded.view, lse, expected)
        assert guarded.untouched_outside()


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_of_every_size_stays_inside(dtype: str, cpu_engine: Engine) -> None:
    """Vector stores at the end of each row must not reach into the next one, whatever the row's length."""
    for v_dim in (*range(1, 35), 63, 64, 65, 127, 130):
        for q_len in (1, 9, 25):
            case = Case(f"guard {v_dim} {q_len}", Sizes(1, 2, 1, q_len, 11, 5, v_dim))
            problem, expected = solved(case, dtype, cpu_engine.accumulation)
            guarded = Guarded.make(expected.out.shape, problem.q.dtype, "inside longer axes")
            _, lse = cpu_engine.attention(problem, out=guarded.view, num_threads=1)
            check(guarded.view, lse, expected)
            assert guarded.untouched_outside()


def test_hidden_rows_of_out_are_written(engine: Engine) -> None:
    """Zero is a result too: NaN in `out` must not survive where no key is visible or none exists."""
    for n in (Sizes(k_len=0), Sizes(k_len=7, q_len=20), Sizes(k_len=7, q_len=2)):
        case = Case(f"nothing visible {n}", n, options(kv_lengths=[0, 0]))
        problem, expected = solved(case, "float32", engine.accumulation)
        guarded = Guarded.make(expected.out.shape, problem.q.dtype, "B S H D")
        _, lse = engine.attention(problem, out=guarded.view)
        assert not guarded.view.any()
        assert (lse == -np.inf).all()
        assert guarded.untouched_outside()


def test_inputs_stay_as_they_are(engine: Engine) -> None:
    case = Case(
        "inputs",
        options=lambda rng, n: {
            "mask": rng.standard_normal(n.scores).astype(np.float32),
            "alibi_slopes": rng.standard_normal(4).astype(np.float32),
            "sinks": rng.standard_normal(4).astype(np.float32),
            "kv_lengths": np.array([100, 150]),
            "q_offset": np.array([10, 20]),
        },
    )
    problem = case.problem("bfloat16")
    arrays = [problem.q, problem.k, problem.v, *problem.options.values()]
    before = [array.tobytes() for array in arrays]
    engine.attention(problem)
    assert [array.tobytes() for array in arrays] == before


def test_read_only_inputs(engine: Engine) -> None:
    problem, expected = solved(CASES[0], "float16", engine.accumulation)
    q, k, v = (x.copy() for x in (problem.q, problem.k, problem.v))
    for x in (q, k, v):
        x.flags.writeable = False
    engine.check(Problem(q, k, v, problem.options), expected)


def test_without_lse(engine: Engine) -> None:
    """`return_lse=False` changes what is returned, not what is computed."""
    for case in CASES:
        problem, _ = solved(case, "float32", engine.accumulation)
        out, _ = engine.attention(problem, num_threads=1)
        alone = engine.run(
            fastattention.attention, problem.q, problem.k, problem.v, **problem.options, num_threads=1
        )
        np.testing.assert_array_equal(alone, out)
