"""Whether outputs in half types are rounded to the nearest number, or cut off.

One output that was cut off is within the tolerance wherever weights are rounded too. But rounding errors are
as often away from 0 as towards it, and what is cut off never is away: the mean of many errors tells.
"""

from __future__ import annotations

import math

import numpy as np

from .adapters import Adapter
from .check import Finding, Verdict, as_asked, reference
from .tolerances import Problem

__all__ = ["PRECISION", "check_rounding"]

#: Bits of the significand, with the leading one.
PRECISION = {"float16": 11, "bfloat16": 8}

_MOST = 0.25  # of the mean error, in units in the last place: cutting off makes 0.5


def check_rounding(adapter: Adapter, problem: Problem) -> Verdict:
    """Judge the mean error of a kernel's outputs on a problem of random numbers.

    Parameters
    ----------
    adapter : Adapter
    problem : Problem
        In float16 or bfloat16, with thousands of outputs that are no denormal numbers.
    """
    result = adapter.call(problem)
    got = np.asarray(result[0] if isinstance(result, tuple) else result).astype(np.float64)
    out, _ = reference(as_asked(problem, adapter))
    # Where an output is small, what rounded weights did to it is many units: only the larger half counts.
    large = np.abs(out) > np.median(np.abs(out))
    got, out = got[large], out[large]
    unit = 2.0 ** (np.frexp(out)[1] - PRECISION[problem.q.dtype.name])
    mean = float(np.mean((got - out) * np.sign(out) / unit))
    error = abs(mean) / _MOST if math.isfinite(mean) else math.inf
    if error <= 1:
        return Verdict(error)
    side = "nearer to" if mean < 0 else "further from"
    message = f"on average outputs are {abs(mean):.2f} units in the last place {side} 0 than they should be"
    return Verdict(error, Finding("rounding", error, message=message))
