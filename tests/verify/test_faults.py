"""Planted faults are found, by the cases that are about them; what is right is called right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from fastattention.verify import Adapter, Problem, verify

from .kernels import FAULTS, TILE, Kernel, truncating


def test_a_right_kernel_is_right() -> None:
    report = verify(Kernel().adapter())
    assert report.passed, report
    assert report.first is None
    assert report.smallest is None
    assert report.not_declared == []
    assert report.left_out == {}
    assert report.repeats == {"float32": True}
    assert report.threads == {"float32": True}
    assert TILE in report.tiles


def test_a_right_kernel_in_half_types_is_right() -> None:
    report = verify(Kernel().adapter(dtypes=("float16", "bfloat16")), quick=True)
    assert report.passed, report
    assert {result.dtype for result in report.results} == {"float16", "bfloat16"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is(fault: str) -> None:
    kernel = Kernel(fault)
    report = verify(kernel.adapter())
    assert not report.passed
    assert report.first is not None
    assert report.first.group == FAULTS[fault], report
    assert report.first.error > 1
    smallest = report.smallest
    if report.first.group == "memory":
        assert smallest is None
        return
    assert smallest is not None
    assert smallest.result.case == report.first.case
    assert not smallest.result.passed
    for name, size in smallest.result.sizes.items():
        assert size <= report.first.sizes[name]


def test_the_map_points_at_the_tile() -> None:
    # The last tile holds a lone key, which is lost: only its column is wrong.
    report = verify(Kernel("a last key alone in its tile is lost").adapter(), only="length")
    assert report.first is not None
    assert report.first.sizes["k_len"] == TILE + 1
    assert report.smallest is not None
    sizes = report.smallest.result.sizes
    assert sizes["k_len"] == TILE + 1
    assert sizes["batch"] == sizes["q_heads"] == sizes["head_dim"] == 1
    heat = report.smallest.heat_map
    assert heat is not None
    assert heat["block_k"] == TILE
    errors = np.array(heat["errors"])
    assert errors.shape[1] == 2
    assert (errors[:, 1] > 1).any()


def test_the_place_is_the_largest_error() -> None:
    def one_wrong(problem: Problem) -> np.ndarray:
        out = Kernel().compute(problem.q, problem.k, problem.v, {})[0]
        if problem.q.shape[2] == 33:
            out[0, 1, 17, 5] += 0.25
        return out

    report = verify(Adapter("one wrong", one_wrong), only="33 tokens")
    assert report.first is not None
    finding = report.first.finding
    assert finding is not None
    assert finding["what"] == "output"
    assert tuple(finding["place"]) == (0, 1, 17, 5)
    assert finding["actual"] - finding["expected"] == pytest.approx(0.25, rel=1e-5)


def test_cutting_off_is_not_rounding() -> None:
    report = verify(Adapter("truncating", truncating, dtypes=("bfloat16",)), only="rounding")
    assert not report.passed
    assert report.first is not None
    assert report.first.finding is not None
    assert report.first.finding["what"] == "rounding"
    assert "0.50 units in the last place nearer to 0" in report.first.finding["message"]


def test_bits_that_change_from_call_to_call() -> None:
    class Wavering(Kernel):
        def __call__(self, problem: Problem) -> np.ndarray:
            out = np.asarray(super().__call__(problem)[0])
            return out * np.float32(1 + 2.0**-23 * (self.calls % 2))

    report = verify(Wavering().adapter(features=frozenset({"cross"})), quick=True)
    assert report.repeats == {"float32": False}
    assert report.passed  # the errors are within the tolerance


def test_bits_that_change_with_threads() -> None:
    class Split(Kernel):
        def __call__(self, problem: Problem) -> np.ndarray:
            out = np.asarray(super().__call__(problem)[0])
            return out * np.float32(1 + 2.0**-23 * (self.threads == 3))

    report = verify(Split().adapter(features=frozenset({"cross"})), quick=True)
    assert report.threads == {"float32": False}
    assert report.repeats == {"float32": True}
    assert report.passed


def test_threads_that_cannot_be_set_are_unknown() -> None:
    assert verify(Kernel().adapter(threads=None), quick=True).threads == {"float32": None}


def test_threads_that_fail_are_unknown() -> None:
    @contextmanager
    def broken(count: int) -> Iterator[None]:
        raise RuntimeError(f"no {count} threads")
        yield

    assert verify(Kernel().adapter(threads=broken), quick=True).threads == {"float32": None}


def test_nan_is_never_right() -> None:
    def nothing(problem: Problem) -> np.ndarray:
        return np.full((*problem.q.shape[:3], problem.v.shape[3]), np.nan, np.float32)

    report = verify(Adapter("nothing", nothing), quick=True)
    assert not any(result.passed for result in report.results)
    assert report.first is not None
    assert math.isinf(report.first.error)
