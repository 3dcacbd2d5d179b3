"""The oracle against a second reading of the mathematics, the one that the tolerances are computed with."""

from __future__ import annotations

import numpy as np
import pytest
from fastattention.reference import standard

from .cases import FEATURES, Case
from .mask_cases import MASKS
from .size_cases import HEADS
from .tolerances import independent_attention


@pytest.mark.parametrize("case", FEATURES + MASKS + HEADS, ids=lambda case: case.name)
def test_two_readings_agree(case: Case) -> None:
    problem = case.problem("float32")
    out, lse = standard.attention(problem.q, problem.k, problem.v, **problem.options)
    again, total = independent_attention(problem, lse)
    size = np.abs(out).max(initial=1.0)
    largest_lse = np.abs(lse[np.isfinite(lse)]).max(initial=1.0)
    np.testing.assert_allclose(again, out, rtol=0, atol=1e-14 * size * max(largest_lse, 100))
    np.testing.assert_allclose(total, np.isfinite(lse), rtol=0, atol=1e-14 * max(largest_lse, 100))
