"""Every case through every engine: features in each dtype, sweeps of sizes with the dtype taking turns."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import FEATURES, Case, Sizes, options, solved
from .conftest import Engine
from .mask_cases import MASKS
from .size_cases import CROWDS, DIMS, HEADS, LENGTHS

DTYPES = ("float32", "float16", "bfloat16")
SWEEPS = LENGTHS + DIMS + HEADS + CROWDS


def _by_name(cases: tuple[Case, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.mark.parametrize("dtype", DTYPES)
@_by_name(FEATURES)
def test_features(case: Case, dtype: str, engine: Engine) -> None:
    engine.check(*solved(case, dtype, engine.accumulation), num_threads=1)


@pytest.mark.parametrize("dtype", DTYPES)
@_by_name(MASKS)
def test_masks(case: Case, dtype: str, engine: Engine) -> None:
    engine.check(*solved(case, dtype, engine.accumulation), num_threads=1)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(case, DTYPES[i % 3], id=f"{case.name}, {DTYPES[i % 3]}") for i, case in enumerate(SWEEPS)],
)
def test_sizes(case: Case, dtype: str, engine: Engine) -> None:
    engine.check(*solved(case, dtype, engine.accumulation), num_threads=1)


@pytest.mark.parametrize("q_len", [3, 53])
def test_rows_of_the_lowest_float32(q_len: int, engine: Engine) -> None:
    """An additive mask of finfo.min hides nothing by itself: where it is everywhere, all keys weigh alike."""
    lowest = np.full((q_len, 150), np.finfo(np.float32).min)
    problem, _ = solved(
        Case("lowest", Sizes(q_len=q_len), options(mask=lowest)), "float32", engine.accumulation
    )
    out, lse = engine.attention(problem)
    mean = np.repeat(problem.v.mean(axis=2, keepdims=True), 2, axis=1)
    np.testing.assert_allclose(out, np.broadcast_to(mean, out.shape), rtol=0, atol=1e-6)
    assert np.isfinite(lse).all()


def test_float64_on_the_reference() -> None:
    engine = Engine("reference")
    for case in FEATURES[:60:4] + MASKS[::9] + HEADS[::5]:
        engine.check(*solved(case, "float64", "float64"))
