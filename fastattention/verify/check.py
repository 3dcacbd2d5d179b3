"""One case through a kernel: called, compared with the reference, and judged by the table of tolerances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..reference import standard
from .adapters import Adapter
from .tolerances import Problem, error_in_tolerances, tolerances

__all__ = ["Finding", "Verdict", "as_asked", "check", "layouts", "reference", "supported"]

#: The largest finite numbers.
_LARGEST = {"float32": (2 - 2.0**-23) * 2.0**127, "float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127}


@dataclass(frozen=True)
class Finding:
    """What is wrong with a result.

    Attributes
    ----------
    what : str
        "output", "log-sum-exp", "inputs", "memory outside `out`", "shape", "type", "rounding", or "raised".
    error : float
        In units of the tolerance; infinite where a number is not finite, or no number at all.
    place : tuple of int
        (batch, head, query, feature) of the largest error; () where there is none.
    actual, expected : float
    message : str
    """

    what: str
    error: float
    place: tuple[int, ...] = ()
    actual: float = math.nan
    expected: float = math.nan
    message: str = ""


@dataclass(frozen=True)
class Verdict:
    """A case's largest error in units of the tolerance, and the finding where it is above 1."""

    error: float
    finding: Finding | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.finding is None


def as_asked(problem: Problem, adapter: Adapter) -> Problem:
    """Return the problem as the reference is to take it: aligned as the kernel does, its mask rounded."""
    options = dict(problem.options)
    if adapter.top_left and (options.get("causal") or options.get("window")):
        options.setdefault("q_offset", 0)
    mask = options.get("mask")
    if adapter.rounds_mask and mask is not None and mask.dtype != np.bool_:
        with np.errstate(over="ignore"):
            options["mask"] = mask.astype(problem.q.dtype).astype(np.float32)
    return replace(problem, options=options)


def supported(needs: frozenset[str], adapter: Adapter) -> bool:
    """Whether a kernel has declared what a case needs."""
    return needs <= adapter.features


def reference(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return output and log-sum-exps in float64."""
    return standard.attention(problem.q, problem.k, problem.v, **problem.options)


def check(adapter: Adapter, problem: Problem, given: Problem | None = None) -> Verdict:
    """Call a kernel on a problem, and judge what it returns.

    Parameters
    ----------
    adapter : Adapter
    problem : Problem
    given : Problem, optional
        The same numbers laid out otherwise, which the kernel gets in its place.
    """
    given = given or problem
    before = [x.tobytes() for x in (given.q, given.k, given.v)]
    try:
        with np.errstate(all="ignore"):
            result = adapter.call(given)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as problem_found:
        text = str(problem_found).strip().splitlines()
        said = f"{type(problem_found).__name__}: {text[0] if text else ''}"
        return Verdict(math.inf, Finding("raised", math.inf, message=said[:300]))
    if [x.tobytes() for x in (given.q, given.k, given.v)] != before:
        return Verdict(math.inf, Finding("inputs", math.inf, message="the kernel changed its inputs"))
    asked = as_asked(problem, adapter)
    out, lse = reference(asked)
    return judge(adapter, asked, result, out, lse)


def judge(adapter: Adapter, asked: Problem, result: Any, out: np.ndarray, lse: np.ndarray) -> Verdict:
    """Compare a result with the reference's."""
    got, got_lse = result if isinstance(result, tuple) else (result, None)
    dtype = asked.q.dtype
    got = np.asarray(got)
    if got.shape != out.shape:
        message = f"the output's shape is {got.shape}, expected {out.shape}"
        return Verdict(math.inf, Finding("shape", math.inf, message=message))
    if got.dtype != dtype:
        message = f"the output is {got.dtype}, expected {dtype} as the inputs"
        return Verdict(math.inf, Finding("type", math.inf, message=message))
    with np.errstate(all="ignore"):
        allowed, allowed_lse = tolerances(asked, out, lse, dtype.name, adapter.accumulation[dtype.name])
        if adapter.flushes:  # a value of each weight, and the sum
            allowed = allowed + 2.0**-125
        # What rounds to infinity in the data type may be infinite.
        limit = _LARGEST[dtype.name]
        expected = np.where(np.abs(out) > limit, np.sign(out) * np.inf, out)
        found = [("output", error_in_tolerances(got, expected, allowed))]
        if got_lse is not None:
            found.append(("log-sum-exp", error_in_tolerances(np.asarray(got_lse), lse, allowed_lse)))
    what, worst = max(found, key=lambda item: item[1].tolerances)
    if worst.tolerances <= 1:
        return Verdict(worst.tolerances)
    return Verdict(
        worst.tolerances, Finding(what, worst.tolerances, worst.place, worst.actual, worst.expected)
    )


def layouts(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """Yield the same problem at other places of memory: names, and arrays with NaN in the gaps."""
    views: dict[str, Any] = {
        "batch, sequence, head, feature": lambda x: _inside(x, (0, 2, 1, 3), (0, 0, 0, 0)),
        "sequence, batch, head, feature": lambda x: _inside(x, (2, 0, 1, 3), (0, 0, 0, 0)),
        "inside wider rows": lambda x: _inside(x, (0, 1, 2, 3), (0, 0, 0, 24)),
        "inside longer axes": lambda x: _inside(x, (0, 1, 2, 3), (1, 2, 3, 8)),
    }
    for name, view in views.items():
        yield name, replace(problem, q=view(problem.q), k=view(problem.k), v=view(problem.v))


def _inside(x: np.ndarray, order: tuple[int, ...], more: tuple[int, ...]) -> np.ndarray:
    """Return a view with the axes in this order in memory, each so much longer there."""
    room = np.full([x.shape[axis] + more[axis] for axis in order], np.nan, x.dtype)
    view = room.transpose(np.argsort(order))[tuple(slice(n) for n in x.shape)]
    view[...] = x
    return view
