"""Engines, the things under test: every backend, and the CPU's once with each instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastattention
from fastattention import cpu_kernels

from .tolerances import PAIRS, Expected, Problem, error_in_tolerances


@dataclass(frozen=True)
class Engine:
    """A backend, with an instruction set when it is the CPU's."""

    backend: str
    isa: str | None = None

    @property
    def accumulation(self) -> str:
        """How this engine sums; see tolerances.py."""
        if self.backend == "reference":
            return "float64"
        return "pairs" if self.isa in ("avx512_bf16", "amx") else "float32"

    def accumulation_of_int8(self, rows: int) -> str:
        """How this engine sums rows of int8, for so many query rows of a KV head."""
        wide = cpu_kernels.ISAS.index("avx512")
        digits = self.isa in cpu_kernels.ISAS[wide + 1 :]  # all machines with a later set have it
        return "digits" if digits and rows < PAIRS else self.accumulation

    def attention(self, problem: Problem, **extra: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (out, lse)."""
        out, lse = fastattention.attention(
            problem.q, problem.k, problem.v, **problem.options, return_lse=True, backend=self.backend, **extra
        )
        return out, lse

    def check(self, problem: Problem, expected: Expected, **extra: Any) -> None:
        """Run the problem and compare both results with the oracle's."""
        out, lse = self.attention(problem, **extra)
        assert out.dtype == problem.q.dtype
        check(out, lse, expected)


def check(out: np.ndarray, lse: np.ndarray, expected: Expected) -> None:
    """Compare a result with what was expected; say by how many tolerances and where it fails."""
    error = error_in_tolerances(out, expected.out, expected.out_tolerance)
    assert error.tolerances <= 1, f"out: {error}"
    error = error_in_tolerances(lse, expected.lse, expected.lse_tolerance)
    assert error.tolerances <= 1, f"lse: {error}"


def _missing(isa: str) -> tuple[pytest.MarkDecorator, ...]:
    if isa in cpu_kernels.available_isas():
        return ()
    return (pytest.mark.skip(reason=f"this machine or this build lacks {isa}"),)


CPU_ENGINES = [
    pytest.param(Engine("cpu", isa), id=f"cpu-{isa}", marks=_missing(isa)) for isa in cpu_kernels.ISAS
]
ENGINES = [*CPU_ENGINES, pytest.param(Engine("reference"), id="reference")]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn, with its instruction set forced."""
    fastattention.set_isa(request.param.isa)
    yield request.param
    fastattention.set_isa(None)


@pytest.fixture(params=CPU_ENGINES)
def cpu_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each instruction set of the CPU backend in turn."""
    fastattention.set_isa(request.param.isa)
    yield request.param
    fastattention.set_isa(None)


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `np.empty` returns with NaN, so that what a kernel forgets is no earlier test's result."""
    empty = np.empty

    def poisoned(*args: Any, **kwargs: Any) -> np.ndarray:
        array = empty(*args, **kwargs)
        if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)
