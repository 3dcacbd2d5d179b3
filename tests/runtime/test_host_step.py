"""The CPU's step of a host layer: rows written where they belong, attention over a range, from any thread."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fastattention.reference import quantize, standard

from fastattention import cpu_kernels

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}
TOLERANCE = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 2e-2}
PAIRS = [
    ("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "float16"),
    ("float32", "bfloat16"), ("float32", "int8"), ("float16", "int8"), ("bfloat16", "int8"),
]  # fmt: skip


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Bit for bit: poison, too."""
    assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(want).tobytes()


class Problem:
    """A step's arrays: the cache holds `held` rows, and poison behind them."""

    def __init__(
        self, q_dtype: str = "float32", kept: str = "float32", *, batch: int = 2, heads: int = 4,
        kv_heads: int = 2, count: int = 1, held: int = 9, dim: int = 24, threads: int = 2,
        with_lse: bool = True, isa: str | None = None,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(held)
        self.held, self.count = held, count
        compute = DTYPES[q_dtype]
        # As the decoder lays them out: heads of a token side by side.
        rows = (
            rng.standard_normal((batch, count, heads + 2 * kv_heads, dim)).astype(np.float32).astype(compute)
        )
        by_head = rows.swapaxes(1, 2)
        self.q, self.k, self.v = np.split(by_head, [heads, heads + kv_heads], axis=1)
        capacity = held + count + 3
        old = rng.standard_normal((2, batch, kv_heads, capacity, dim)).astype(np.float32)
        if kept == "int8":
            integers, scales = quantize.quantize(old)
            self.planes = (integers[0].copy(), integers[1].copy(), *scales.astype(np.float32).copy())
            for plane, poison in zip(self.planes, (99, 99, np.nan, np.nan), strict=True):
                plane[:, :, held:] = poison
        else:
            self.planes = tuple(x.astype(DTYPES[kept]) for x in old)
            for plane in self.planes:
                plane[:, :, held:] = np.nan
        self.before = [plane.copy() for plane in self.planes]
        self.out = np.full((batch, count, heads, dim), np.nan, compute).swapaxes(1, 2)
        self.lse = np.full((batch, heads, count), np.nan, np.float32) if with_lse else None
        self.failed = np.zeros(1, np.int32)
        self.step = cpu_kernels.HostStep(
            self.q, self.planes, self.out, self.lse, self.k, self.v, scale=dim**-0.5,
            isa=isa or cpu_kernels.available_isas()[-1], num_threads=threads, failed=self.failed,
        )  # fmt: skip

    def check(self, first: int = 0, tolerance: float = 3e-6) -> None:
        """What was written, and what came out."""
        self.step.check()
        end = self.held + self.count
        new = [self.k, self.v]
        if len(self.planes) == 4:
            rounded = [quantize.quantize(x.astype(np.float64)) for x in new]
            want = [rounded[0][0], rounded[1][0], rounded[0][1], rounded[1][1]]
        else:
            want = [x.astype(np.float32).astype(self.planes[0].dtype) for x in new]
        for plane, before, rows in zip(self.planes, self.before, want, strict=True):
            same(plane[:, :, : self.held], before[:, :, : self.held])
            same(plane[:, :, self.held : end], rows.astype(plane.dtype))
            same(plane[:, :, end:], before[:, :, end:])
        k, v = (x[:, :, first:end] for x in self.planes[:2])
        if len(self.planes) == 4:
            k, v = (
                quantize.dequantize(x, s[:, :, first:end])
                for x, s in zip((k, v), self.planes[2:], strict=True)
            )
        exact = [x.astype(np.float64) for x in (self.q, k, v)]
        out, lse = standard.attention(*exact, causal=True)
        np.testing.assert_allclose(self.out.astype(np.float64), out, atol=tolerance, rtol=tolerance)
        if self.lse is not None:
            np.testing.assert_allclose(self.lse, lse, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("q_dtype", "kept"), PAIRS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("first", [0, 5])
def test_every_dtype(q_dtype, kept, count, first):
    for isa in cpu_kernels.available_isas():
        for held, heads in ((9, 4), (70, 2)):
            problem = Problem(q_dtype, kept, count=count, held=held, heads=heads, isa=isa)
            problem.step.set_range(first, held + count)
            problem.step.run()
            problem.check(first, TOLERANCE[q_dtype] * (2 if kept == "int8" else 1))
            assert 0 < problem.step.seconds < 10


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kept", ["float32", "int8"])
def test_keys_split_into_parts(batch, count, kept):
    problem = Problem("float32", kept, batch=batch, count=count, held=3000, threads=2)
    problem.step.set_range(7, 3000 + count)
    problem.step.run()
    problem.check(7, 6e-6 if kept == "int8" else 3e-6)


def test_from_nothing():
    problem = Problem(held=0, batch=3)
    problem.step.set_range(0, 1)
    problem.step.run()
    problem.check()


def test_without_log_sum_exps():
    problem = Problem(with_lse=False)
    problem.step.set_range(0, 10)
    problem.step.run()
    problem.check()


def test_a_fault_stops_the_steps_behind_it():
    first, second = Problem("float32", "int8"), Problem()
    second.step._step.failed = first.step._step.failed  # one session's
    first.k[0, 0, 0, 0] = np.inf
    for problem in (first, second):
        problem.step.set_range(0, 10)
        problem.step.run()
    with pytest.raises(ValueError, match="takes finite numbers, got inf or NaN"):
        first.step.check()
    assert first.failed[0] == 1
    second.step.check()  # it did nothing, and met nothing
    assert second.step.seconds == 0
    assert np.isnan(second.out).all()
    assert np.isnan(second.planes[0][:, :, 9:]).all()
    first.failed[0] = 0
    second.step.run()
    second.check()


def test_an_instruction_set_that_is_not_there():
    problem = Problem()
    problem.step._step.problem.isa = 99
    problem.step.set_range(0, 10)
    problem.step.run()
    assert problem.failed[0] == 1


def test_called_as_a_driver_does_it():
    """By address, on a thread of its own, while Python holds its lock: nothing of Python's is needed."""
    problem = Problem("float16", "float16", held=500)
    problem.step.set_range(0, 501)
    libc: Any = ctypes.PyDLL(None)  # keeps the lock while it runs
    thread = ctypes.c_ulong()
    start = libc.pthread_create
    start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    assert start(ctypes.byref(thread), None, problem.step.function, problem.step.argument) == 0
    libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
    assert libc.pthread_join(thread, None) == 0  # would wait for ever if the thread wanted the lock
    problem.check(tolerance=2e-3)


def test_many_at_once():
    problems = [Problem(held=50 + n, threads=1) for n in range(8)]
    for n, problem in enumerate(problems):
        problem.step.set_range(n, 51 + n)
    threads = [threading.Thread(target=problem.step.run) for problem in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, problem in enumerate(problems):
        problem.check(n)
