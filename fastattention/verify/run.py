"""All cases through a kernel, and what the results say together."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from .adapters import Adapter, adapt
from .blame import blame
from .boundaries import tile_length
from .cases import FEATURES, Case, Sizes, cases
from .check import Finding, Verdict, as_asked, check, judge, layouts, reference, supported
from .report import Failure, Report, Result
from .rounding import PRECISION, check_rounding
from .shrink import shrink
from .tolerances import Problem

__all__ = ["verify"]

_BASE = Case("base", "memory", Sizes(2, 3, 3, 70, 70, 64, 64))
_MANY = Case("mean error of many outputs", "rounding", Sizes(2, 4, 4, 130, 130))
_REPEATS = 3
_THREADS = (1, 2, 3, 4)


def verify(
    kernel: Any,
    *,
    features: Collection[str] | None = None,
    dtypes: Collection[str] | None = None,
    seed: int = 0,
    only: str | None = None,
    quick: bool = False,
    name: str | None = None,
    causal: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Report:
    """Hold an attention kernel to the float64 reference, on the cases where kernels go wrong.

    Parameters
    ----------
    kernel : Adapter, callable, or path of an ONNX file
        See `adapt` for the functions that are known; for others write an `Adapter`.
    features : collection of str, optional
        Which of the features that the adapter declares to try; all by default.
    dtypes : collection of str, optional
        "float32", "float16", "bfloat16"; all that the adapter declares by default.
    seed : int
        Of the random numbers. A report names it; the same seed makes the same cases.
    only : str, optional
        Cases whose name or group contains this text.
    quick : bool
        Fewer sizes.
    name : str, optional
        Of the kernel, for the report.
    causal : bool
        Whether the kernel is causal in every call, without being asked.
    progress : callable
        Called with the number of cases done, of all, and the name of the next.

    Returns
    -------
    Report
        Errors in units of the tolerance; what breaks first; the smallest case that still fails, with a map of
        its errors over query and key tiles; whether results repeat, and do not depend on threads.

    Raises
    ------
    TypeError
        The kernel's signature says too little.
    ValueError
        A feature or dtype is unknown or was not declared, or no case is left.
    ImportError
        A library that the kernel needs is not there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattention.verify import Adapter, verify
    >>> def softmax_of_all(problem):
    ...     p = np.exp(problem.q @ problem.k.swapaxes(-1, -2) / np.sqrt(problem.q.shape[3]))
    ...     return p @ problem.v / p.sum(-1, keepdims=True)
    >>> report = verify(Adapter("no maximum subtracted", softmax_of_all), only="numbers")
    >>> report.first.group, report.first.case
    ('numbers', 'huge scores')
    """
    adapter = _restricted(adapt(kernel, name), features, dtypes)
    if causal:
        adapter = replace(adapter, always={**adapter.always, "causal": True})
    tile = tile_length(adapter)
    tiles = [t for t in dict.fromkeys((tile, tile_length(adapter, q_len=1))) if t]
    chosen, left_out = _choose(adapter, tiles, quick, only)
    jobs = [(case, dtype) for dtype in adapter.dtypes for case in chosen]
    start, results = time.perf_counter(), []
    for done, (case, dtype) in enumerate(jobs):
        progress(done, len(jobs), case.name)
        results.append(_result(case, dtype, case.sizes, check(adapter, case.make(dtype, seed))))
    for dtype in adapter.dtypes:
        results += _memory(adapter, dtype, seed, only)
        if dtype in PRECISION and _asked(only, _MANY.name, _MANY.group):
            results.append(_rounding(adapter, dtype, seed))
    if not results:
        text = f" of {only!r}" if only is not None else ""
        raise ValueError(f"only: no case{text} is left for what the kernel declares")
    report = Report(
        kernel=adapter.name, date=datetime.now(UTC).isoformat(timespec="seconds"), seed=seed,
        note=adapter.note, environment=_environment(), features=sorted(adapter.features),
        dtypes=list(adapter.dtypes),
        not_declared=sorted(set(FEATURES) - adapter.features - set(adapter.always)),
        tiles=tiles, results=results, left_out=left_out,
    )  # fmt: skip
    if only is None:
        report.repeats = {dtype: _repeats(adapter, dtype, seed) for dtype in adapter.dtypes}
        report.threads = {dtype: _with_threads(adapter, dtype, seed) for dtype in adapter.dtypes}
    if report.first is not None:
        progress(len(jobs), len(jobs), "making the failing case smaller")
        by_name = {case.name: case for case in chosen}
        report.smallest = _smallest(adapter, by_name.get(report.first.case), report.first, seed, tiles)
    report.seconds = time.perf_counter() - start
    return report


def _restricted(
    adapter: Adapter, features: Collection[str] | None, dtypes: Collection[str] | None
) -> Adapter:
    if features is not None:
        _known("features", features, adapter.features, FEATURES)
        adapter = replace(adapter, features=frozenset(features))
    if dtypes is not None:
        _known("dtypes", dtypes, adapter.dtypes, ("float32", "float16", "bfloat16"))
        adapter = replace(adapter, dtypes=tuple(dtype for dtype in adapter.dtypes if dtype in dtypes))
    if not adapter.dtypes:
        raise ValueError("dtypes: expected at least one")
    return adapter


def _known(
    name: str, given: Collection[str], declared: Collection[str], all_there_are: Iterable[str]
) -> None:
    if isinstance(given, str):
        raise TypeError(f"{name}: expected a collection of names, got the text {given!r}")
    for item in given:
        if item not in all_there_are:
            raise ValueError(f"{name}: expected some of {', '.join(all_there_are)}, got {item!r}")
        if item not in declared:
            raise ValueError(f"{name}: {item} is not declared by the kernel's adapter")


def _choose(
    adapter: Adapter, tiles: list[int], quick: bool, only: str | None
) -> tuple[list[Case], dict[str, str]]:
    everything = [_of(adapter, case) for case in cases(tiles, adapter.head_dims, quick)]
    if only is not None:
        everything = [case for case in everything if _asked(only, case.name, case.group)]
    chosen = [case for case in everything if supported(case.needs, adapter)]
    left_out = {
        case.name: "not declared: " + ", ".join(sorted(case.needs - adapter.features))
        for case in everything
        if not supported(case.needs, adapter)
    }
    return chosen, left_out


def _of(adapter: Adapter, case: Case) -> Case:
    return case.having(adapter.always, adapter.top_left)


def _asked(only: str | None, name: str, group: str) -> bool:
    return only is None or only in name or only == group


def _result(case: Case, dtype: str, sizes: Sizes, verdict: Verdict, name: str | None = None) -> Result:
    return Result(
        case=name or case.name, group=case.group, dtype=dtype, sizes=asdict(sizes), error=verdict.error,
        finding=None if verdict.finding is None else asdict(verdict.finding),
    )  # fmt: skip


def _memory(adapter: Adapter, dtype: str, seed: int, only: str | None) -> list[Result]:
    """Return results on inputs of odd strides, and on an output that is given."""
    found = []
    problem = _of(adapter, _BASE).make(dtype, seed)
    if "strided" in adapter.features:
        for layout, given in layouts(problem):
            name = f"layout: {layout}"
            if _asked(only, name, _BASE.group):
                found.append(_result(_BASE, dtype, _BASE.sizes, check(adapter, problem, given), name))
    if "out" in adapter.features and _asked(only, "an output full of NaN", _BASE.group):
        found.append(_result(_BASE, dtype, _BASE.sizes, _into(adapter, problem), "an output full of NaN"))
    return found


def _into(adapter: Adapter, problem: Problem) -> Verdict:
    """Let the kernel write into the middle of a larger array full of NaN."""
    shape = (*problem.q.shape[:3], problem.v.shape[3])
    room = np.full((*shape[:2], shape[2] + 2, shape[3]), np.nan, problem.q.dtype)
    into = room[:, :, 1:-1]
    try:
        result = adapter.call(replace(problem, options=problem.options | {"out": into}))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:300]
        return Verdict(float("inf"), Finding("raised", float("inf"), message=said))
    if not np.isnan(room[:, :, [0, -1]].astype(np.float32)).all():
        message = "the rows before and behind the output were written to"
        return Verdict(float("inf"), Finding("memory outside `out`", float("inf"), message=message))
    asked = as_asked(problem, adapter)
    lse = result[1] if isinstance(result, tuple) else None
    return judge(adapter, asked, into if lse is None else (into, lse), *reference(asked))


def _rounding(adapter: Adapter, dtype: str, seed: int) -> Result:
    problem = _of(adapter, _MANY).make(dtype, seed)
    verdict = check(adapter, problem)  # what fails altogether has no mean
    if verdict.passed:
        verdict = check_rounding(adapter, problem)
    return _result(_MANY, dtype, _MANY.sizes, verdict)


def _bits(adapter: Adapter, problem: Problem) -> bytes:
    result = adapter.call(problem)
    return np.ascontiguousarray(result[0] if isinstance(result, tuple) else result).tobytes()


def _repeats(adapter: Adapter, dtype: str, seed: int) -> bool | None:
    """Whether a call gives the same bits again; None where it fails."""
    problem = _of(adapter, Case("repeat", "repeat", Sizes(2, 4, 4, 130, 130))).make(dtype, seed)
    try:
        return len({_bits(adapter, problem) for _ in range(_REPEATS)}) == 1
    except Exception:  # the cases say what it raises
        return None


def _with_threads(adapter: Adapter, dtype: str, seed: int) -> bool | None:
    """Whether all numbers of threads give the same bits; None where they cannot be set, or a call fails."""
    if adapter.threads is None:
        return None
    found = set()
    for sizes in (Sizes(1, 2, 2, 257, 257), Sizes(1, 1, 1, 1, 1500)):
        if sizes.q_len != sizes.k_len and "cross" not in adapter.features:
            continue
        problem = _of(adapter, Case("threads", "threads", sizes)).make(dtype, seed)
        seen = set()
        for count in _THREADS:
            try:
                with adapter.threads(count):
                    seen.add(_bits(adapter, problem))
            except Exception:  # the cases say what it raises
                return None
        found.add(len(seen) == 1)
    return all(found)


def _smallest(
    adapter: Adapter, case: Case | None, first: Result, seed: int, tiles: list[int]
) -> Failure | None:
    """Return the failing case at its smallest, with its map of errors."""
    if case is None:  # of memory or rounding: its sizes are not what matters
        return None

    def fails(sizes: Sizes) -> bool:
        try:
            with np.errstate(all="ignore"):
                return not check(adapter, case.make(first.dtype, seed, sizes)).passed
        except (ValueError, IndexError):  # a case's own numbers do not fit such sizes
            return False

    sizes = shrink(case.sizes, fails)
    verdict = check(adapter, case.make(first.dtype, seed, sizes))
    heat = None
    if verdict.finding is not None and verdict.finding.what in ("output", "log-sum-exp"):
        block = tiles[0] if tiles else 64
        whole = case.make(first.dtype, seed)
        heat = blame(adapter, whole, block_q=16, block_k=min(block, max(1, whole.k.shape[2])))
        if max(map(max, heat.errors), default=0.0) <= 1:  # of outputs: log-sum-exps alone are wrong
            heat = None
    return Failure(_result(case, first.dtype, sizes, verdict), None if heat is None else asdict(heat))


def _environment() -> dict[str, Any]:
    from importlib.metadata import version

    from ..bench.environment import cpu_name

    versions = {"fastattention": version("fastattention"), "python": platform.python_version()}
    for library in ("numpy", "torch", "jax", "onnxruntime"):
        try:
            versions[library] = version(library)
        except ImportError:
            continue
    return {"cpu": cpu_name(), "system": f"{platform.system()} {platform.machine()}", "versions": versions}
