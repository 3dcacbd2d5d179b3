"""Engines, the things under test: the reference, the CPU by instruction set, the GPU by atom."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastattention
from fastattention import cpu_kernels, gpu

from . import gpu_arrays, pretended
from .tolerances import PAIRS, Expected, Problem, error_in_tolerances

# What a script starts with & ignores interrupts, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Engine:
    """A backend, with an instruction set when it is the CPU's, an atom when it is the GPU's."""

    backend: str
    isa: str | None = None
    atom: int | None = None

    @property
    def accumulation(self) -> str:
        """How this engine sums; see tolerances.py."""
        if self.backend == "reference":
            return "float64"
        if self.backend == "gpu":
            return "volta" if self.atom == 70 else "tensor"
        return "pairs" if self.isa in ("avx512_bf16", "amx") else "float32"

    def accumulation_of_int8(self, rows: int) -> str:
        """How this engine sums rows of int8, for so many query rows of a KV head."""
        wide = cpu_kernels.ISAS.index("avx512")
        digits = self.isa in cpu_kernels.ISAS[wide + 1 :]  # all machines with a later set have it
        return "digits" if digits and rows < PAIRS else self.accumulation

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a public function, of NumPy arrays, on this engine."""
        if self.backend != "gpu":
            return function(*args, **options, backend=self.backend)
        if self.atom is not None and self.atom < 80 and args[0].dtype == ml_dtypes.bfloat16:
            pytest.skip(f"atom {self.atom} has no bfloat16")
        return gpu_arrays.run(function, *args, **options)

    def attention(self, problem: Problem, **extra: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (out, lse)."""
        options = {**problem.options, **extra}
        out, lse = self.run(
            fastattention.attention, problem.q, problem.k, problem.v, **options, return_lse=True
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
HOST_ENGINES = [*CPU_ENGINES, pytest.param(Engine("reference"), id="reference")]


def _gpu_engines() -> list[Any]:
    """The GPU's kernels with each atom that the card can run; without a card, one that is skipped."""
    if reason := gpu.why_not():
        skipped = pytest.mark.skip(reason=f"no CUDA device: {reason}")
        return [pytest.param(Engine("gpu"), id="gpu", marks=(pytest.mark.gpu, skipped))]
    if (
        os.environ.get("FASTATTENTION_TEST_POOL") == "0"
    ):  # make sanitize-gpu: memory that ends where an array does
        gpu.load_cupy().cuda.set_allocator(None)
    own = gpu.atom_of(*gpu.card().capability)
    return [
        pytest.param(Engine("gpu", atom=atom), id=f"gpu-{atom}", marks=pytest.mark.gpu)
        for atom in gpu.ATOMS
        if atom <= own
    ]


GPU_ENGINES = _gpu_engines()
ENGINES = [*HOST_ENGINES, *GPU_ENGINES]


def _forced(engine: Engine) -> Iterator[Engine]:
    fastattention.set_isa(engine.isa)
    if engine.backend == "gpu":
        fastattention.set_gpu_atom(engine.atom)
    yield engine
    fastattention.set_isa(None)
    fastattention.set_gpu_atom(None)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn, with its instruction set or its atom forced."""
    yield from _forced(request.param)


@pytest.fixture(params=HOST_ENGINES)
def host_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn that computes in CPU memory."""
    yield from _forced(request.param)


@pytest.fixture(params=GPU_ENGINES)
def gpu_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each atom of the GPU in turn."""
    yield from _forced(request.param)


@pytest.fixture(params=CPU_ENGINES)
def cpu_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each instruction set of the CPU backend in turn."""
    yield from _forced(request.param)


def _caches() -> list[Any]:
    """KV caches by where they lie: CPU memory, a GPU, and memory that passes for a GPU's (pretended.py)."""
    reason = pretended.why_not()
    pretend = pytest.mark.skipif(bool(reason), reason=reason or "pretended")
    on_gpu = [pytest.mark.gpu, *(m for p in GPU_ENGINES for m in p.marks if m.name == "skip")]
    return [
        pytest.param("cpu"), pytest.param("pretended", marks=pretend), pytest.param("gpu", marks=on_gpu)
    ]  # fmt: skip


CACHES = _caches()


@pytest.fixture(params=CACHES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let `KVCache` in the test's module be the cache of each place in turn."""
    where: str = request.param
    if where == "pretended":
        pretended.pretend(monkeypatch)
    if where != "cpu":
        monkeypatch.setattr(request.module, "KVCache", gpu_arrays.DeviceCache)
    return where


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Fill what `empty` returns with NaN, so that what a kernel forgets is no earlier test's result."""
    _poison(monkeypatch, np)
    if request.node.get_closest_marker("gpu"):
        _poison(monkeypatch, gpu.load_cupy())


def _poison(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    empty = library.empty

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        array = empty(*args, **kwargs)
        if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
            array.fill(np.nan)
        return array

    monkeypatch.setattr(library, "empty", poisoned)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs a browser and the built book, unless it is asked for: `make test-docs`."""
    browser = Path(__file__).parent / "docs_browser"
    return True if collection_path == browser and "docs_browser" not in "".join(config.args) else None
