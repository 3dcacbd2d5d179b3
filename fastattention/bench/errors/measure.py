"""One case: every kernel's output and PyTorch's, their distance from float64, and what it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import cpu_kernels
from ...verify import budget
from ...verify.tolerances import PAIRS, Problem, tolerances
from .cases import HEAD_DIM, Arrays, ErrorCase
from .peer import PyTorch
from .results import Errors, Row

__all__ = ["kernels", "measure_case", "unit_of"]

_DIGITS = {"float32": 24, "float16": 11, "bfloat16": 8, "int8": 24}  # of a significand
_WEIGHTS = {"float16": "half weights", "bfloat16": "bfloat16 weights"}  # of others' kernels


@dataclass(frozen=True)
class _Kernel:
    """A kernel and how it computes: accumulation names a row of the table of tolerances."""

    isa: str
    chains: budget.Chains
    accumulation: str


def _options(arrays: Arrays, isa: str) -> dict[str, Any]:
    scales: dict[str, Any] = {}
    if arrays.k_scales is not None:
        scales = {"k_scales": arrays.k_scales, "v_scales": arrays.v_scales}
    return {"scale": HEAD_DIM**-0.5, "num_threads": 1, "isa": isa, **scales}


def kernels(case: ErrorCase, arrays: Arrays) -> Iterator[_Kernel]:
    """Yield each instruction set of this machine that has kernels of its own for the case."""
    for isa in cpu_kernels.available_isas():
        plan = cpu_kernels.explain(
            arrays.q, arrays.k, arrays.v, np.empty_like(arrays.q), **_options(arrays, isa)
        )
        if plan["isa"] != isa:
            continue  # an older set's, which has its own turn
        accumulation = "float32"
        if isa in ("avx512_bf16", "amx") and not plan["decode"]:
            accumulation = "pairs"
        elif case.dtype == "int8" and isa in ("avx512_vnni", "amx"):
            accumulation = "digits"
        yield _Kernel(isa, budget.chains_of(plan, case.dtype, case.keys, case.rows), accumulation)


def unit_of(exact: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Return in what unit the error of each element counts: a unit in the last place, at the row's size.

    That is of the element itself or, if that is larger, of the root mean square of its row: where an element
    happens to be near zero, units of its own would measure that and not the kernel.

    Parameters
    ----------
    exact : ndarray (S, Dv)
    dtype : str
        Of the case.
    """
    size = np.maximum(np.abs(exact), np.sqrt((exact**2).mean(-1, keepdims=True)))
    return np.asarray(2.0 ** (np.frexp(size)[1] - _DIGITS[dtype]))


class _Tally:
    """Errors of one output, KV head after KV head."""

    def __init__(self) -> None:
        self.largest = self.own = self.of_bound = self.of_tolerance = self.bound = 0.0
        self.squares = self.bound_squares = 0.0
        self.count = 0

    def add(
        self,
        error: NDArray[np.float64],
        unit: NDArray[np.float64],
        own_unit: NDArray[np.float64],
        bound: NDArray[np.float64] | None,
        tolerance: NDArray[np.float64],
    ) -> None:
        def raised(so_far: float, values: NDArray[np.float64]) -> float:
            return max(so_far, float(np.where(np.isfinite(values), values, 1e30).max()))  # JSON has no NaN

        self.largest = raised(self.largest, error / unit)
        self.own = raised(self.own, error / own_unit)
        self.of_tolerance = raised(self.of_tolerance, error / tolerance)
        self.squares += float(((error / unit) ** 2).sum())
        self.count += error.size
        if bound is not None:
            self.of_bound = raised(self.of_bound, error / bound)
            self.bound = raised(self.bound, bound / unit)
            self.bound_squares += float(((bound / unit) ** 2).sum())

    def result(self, has_bound: bool) -> Errors:
        count = max(self.count, 1)
        return Errors(
            self.largest,
            (self.squares / count) ** 0.5,
            self.own,
            self.of_tolerance,
            self.of_bound if has_bound else None,
            self.bound if has_bound else None,
            (self.bound_squares / count) ** 0.5 if has_bound else None,
        )


def measure_case(case: ErrorCase, peer: PyTorch | None) -> Row:
    """Run a case on every kernel and on PyTorch; compare with float64.

    Parameters
    ----------
    case : ErrorCase
    peer : PyTorch, optional
    """
    arrays = case.arrays()
    ours = list(kernels(case, arrays))
    outputs: dict[str, NDArray[Any]] = {}
    for kernel in ours:
        out = np.full_like(arrays.q, np.nan)
        cpu_kernels.attention(arrays.q, arrays.k, arrays.v, out, **_options(arrays, kernel.isa))
        outputs[kernel.isa] = out
    theirs = None if peer is None else peer.attention(arrays)
    tallies = {name: _Tally() for name in (*outputs, "PyTorch")}
    places = case.sampled()
    dtype = "float32" if case.dtype == "int8" else case.dtype
    storage = 2.0 ** -_DIGITS[case.dtype]

    for head in range(case.kv_heads):

        def rows(x: NDArray[Any], head: int = head) -> NDArray[np.float64]:
            group = case.q_heads // case.kv_heads
            some = x[0, head * group : (head + 1) * group].reshape(case.rows, HEAD_DIM)[places]
            return some.astype(np.float64)

        k, v = arrays.head(head)
        q = rows(arrays.q)
        exact, lse = _exact(q, k, v)
        row = budget.Row(q, k, v, exact, lse, HEAD_DIM**-0.5)
        unit = unit_of(exact, case.dtype)
        own_unit = 2.0 ** (np.frexp(exact)[1] - _DIGITS[case.dtype])
        problem = Problem(q[None, None], k[None, None], v[None, None])
        allowed = {
            name: tolerances(
                problem, exact[None, None], lse[None, None], dtype, name,
                q_len=max(case.rows, PAIRS) if name == "pairs" else case.rows,
            )[0][0, 0]
            for name in {*(kernel.accumulation for kernel in ours), _WEIGHTS.get(dtype, "float32")}
        }  # fmt: skip
        for kernel in ours:
            bound = budget.worst_case(
                row, kernel.chains, storage,
                weights=2.0**-8 if kernel.accumulation == "pairs" else 0.0,
                digits=kernel.accumulation == "digits",
            )  # fmt: skip
            error = np.abs(rows(outputs[kernel.isa]) - exact)
            tallies[kernel.isa].add(error, unit, own_unit, bound, allowed[kernel.accumulation])
        if theirs is not None:
            error = np.abs(rows(theirs) - exact)
            tallies["PyTorch"].add(error, unit, own_unit, None, allowed[_WEIGHTS.get(dtype, "float32")])
    return Row(
        case,
        case.kv_heads * len(places),
        {kernel.isa: tallies[kernel.isa].result(True) for kernel in ours},
        None if theirs is None else tallies["PyTorch"].result(False),
    )


def _exact(
    q: NDArray[np.float64], k: NDArray[np.float64], v: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from ...reference import standard

    out, lse = standard.attention(*(x[None, None] for x in (q, k, v)))
    return out[0, 0], lse[0, 0]
