"""A row through its ways: outputs first, then times.

A figure *a host layer* is a step of attention alone, over the number of layers: each layer's queries, keys
and values lie on the GPU when the step begins, all layers are queued in order, and the step ends when the
last one's output is on the GPU. A figure *a token* is the whole decoder's: embedding, projections,
attention, logits on the host. Both follow one another for every way, on the same contents, and limits are
taken before and after.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..measure import TOLERANCE
from .cases import WAYS, OffloadCase
from .results import LongRun, Outcome, Row

__all__ = [
    "ATTENTION_TOLERANCE", "LOGITS_TOLERANCE", "Field", "LeftOutError", "Machine", "Runner",
    "WrongOutputError", "measure_case",
]  # fmt: skip

#: Largest deviation of an output row from the all-GPU run, relative to that row's largest entry. Each side
#: may be off by the float16 tolerance of `bench.measure`, for the reasons given there.
ATTENTION_TOLERANCE = 2 * TOLERANCE["float16"]

#: Of the logits, relative to the largest: every layer adds a deviation like the above to a residual stream
#: that is larger than what attention over thousands of random values puts into it, and rounds it to 11 bits.
LOGITS_TOLERANCE = 2 * ATTENTION_TOLERANCE

#: Of attention, (layers, B, 1, Hq, D), and the logits (B, vocabulary).
Outputs = tuple[NDArray[Any], NDArray[Any]]

_PROBE_SECONDS = 0.15
_LIMITS = ("bus up", "CPU attention", "bus up, both at once", "CPU attention, both at once")
_LEAST, _MOST = 3, 50  # timed steps


class LeftOutError(Exception):
    """A way, or a case, that this machine cannot do; the text says why."""


class WrongOutputError(Exception):
    """Outputs differ from those of the all-GPU run."""


class Runner(Protocol):
    """One way on one case: caches are filled, nothing has been queued yet."""

    outcome: Outcome

    def attend(self) -> None:
        """Take one step of attention through all layers."""

    def outputs(self) -> NDArray[Any]:
        """Return the outputs of the last such step, (layers, B, 1, Hq, D)."""

    def moved(self) -> tuple[float, float, float]:
        """Return the bytes that went up, came down and were read by CPU attention until now."""

    def rewind(self) -> None:
        """Forget all steps."""

    def token(self, number: int) -> NDArray[Any]:
        """Decode a token, the same of the same number for all ways; return the logits (B, vocabulary)."""


class Field(Protocol):
    """A case on a machine."""

    cache_bytes: int

    def open(self, way: str) -> AbstractContextManager[Runner]:
        """Make the caches of a way.

        Raises
        ------
        LeftOutError, MemoryError
            The way does not fit.
        """

    def peer(self) -> dict[str, Any]:
        """Let the peer do the case: see `hugging_face.ask`."""


class Machine(Protocol):
    """What the benchmark needs of a machine."""

    def environment(self) -> dict[str, Any]:
        """Describe GPU, host, libraries."""

    def hardware(self) -> dict[str, Any]:
        """Return what the planner measured, and predicts from."""

    def limits(self, seconds: float, *names: str) -> dict[str, float]:
        """Return limits now: see `limits.HostLimits.measure`."""

    def fit(self, case: OffloadCase) -> tuple[OffloadCase, str]:
        """Return the case, with fewer layers and the reason where host memory does not hold them all.

        Raises
        ------
        LeftOutError
            Nor does it hold two.
        """

    def reserve(self, cases: list[OffloadCase]) -> float:
        """Take the host memory of the largest of these cases; return the seconds that it took."""

    def open(self, case: OffloadCase) -> AbstractContextManager[Field]:
        """Prepare a case."""

    def long(
        self, threads: int | None, say: Callable[[str], None], progress: Callable[[int, int], None]
    ) -> LongRun:
        """Do the long run: see `long_run.run_long`."""

    def foretell_from(self, limits: dict[str, float]) -> None:
        """Let the planner count with limits measured just now, in GB/s: "bus up", "CPU attention", both."""

    def close(self) -> None:
        """Give everything back."""


def measure_case(
    case: OffloadCase,
    machine: Machine,
    budget: float,
    with_peer: bool,
    say: Callable[[str], None] = lambda text: None,
) -> Row:
    """Check and time all ways of a case.

    Parameters
    ----------
    case : OffloadCase
    machine : Machine
    budget : float
        Seconds of timed steps for each way, once of attention and once of tokens. Three steps are taken in
        any case, and fifty at most.
    with_peer : bool
        Whether Hugging Face transformers takes part in a case that has it.
    say : callable
        Called with a line for each way when it is done.

    Raises
    ------
    WrongOutputError
        A way's outputs are not those of the first; nothing of the case is of use then.
    """
    with machine.open(case) as field:
        row = Row(case, field.cache_bytes, limits={name: [] for name in _LIMITS})
        _probe(machine, row)
        machine.foretell_from({name: values[0] for name, values in row.limits.items()})
        expected: Outputs | None = None
        for way in WAYS:
            try:
                found = _do(field, way, row, expected, budget)
            except (LeftOutError, MemoryError) as problem:
                row.ways[way] = Outcome("left out", str(problem) or type(problem).__name__)
                say(f"  {way}: left out: {row.ways[way].detail}")
                continue
            say(f"  {way}: {_line(row, way)}")
            if expected is None:
                expected, row.compared_with = found, way
        _probe(machine, row)
        if case.peer and with_peer:
            row.peer = field.peer()
            say(f"  transformers: {row.peer.get('tokens') or row.peer.get('missing')}")
    return row


def _line(row: Row, way: str) -> str:
    outcome = row.ways[way]
    rates = [
        f"{1e-9 * moved / outcome.step:.1f} GB/s {where}"
        for moved, where in ((outcome.up, "up"), (outcome.cpu, "by the CPU"))
        if moved > 1e-3 * row.cache_bytes
    ]
    times = f"{1e3 * outcome.token:.2f} ms a token, {1e3 * row.layer(way):.3f} ms a layer"
    return ", ".join([times, *rates])


def _probe(machine: Machine, row: Row) -> None:
    for name, rate in machine.limits(_PROBE_SECONDS, *_LIMITS).items():
        row.limits[name].append(rate)


def _do(field: Field, way: str, row: Row, expected: Outputs | None, budget: float) -> Outputs:
    """Check and time a way; its memory is given back at the end."""
    with field.open(way) as runner:
        outputs = _check(runner, f"{row.case.name}: {way}", expected, row.compared_with)
        _time(runner, budget)
        row.ways[way] = runner.outcome
    return outputs


def _check(runner: Runner, name: str, expected: Outputs | None, compared_with: str) -> Outputs:
    outcome = runner.outcome
    runner.attend()
    outputs = runner.outputs()
    runner.rewind()
    logits = runner.token(0)
    runner.rewind()
    if not (np.isfinite(outputs).all() and np.isfinite(logits).all()):
        raise WrongOutputError(f"{name}: outputs or logits are not finite")
    if expected is not None:
        outcome.attention_error = deviation(expected[0], outputs)
        outcome.logits_error = deviation(expected[1], logits)
        for what, error, tolerance in (
            ("attention", outcome.attention_error, ATTENTION_TOLERANCE),
            ("logits", outcome.logits_error, LOGITS_TOLERANCE),
        ):
            if not error <= tolerance:
                raise WrongOutputError(
                    f"{name}: {what} deviates from {compared_with} by {error:.1e}, expected at "
                    f"most {tolerance:.0e}"
                )
    return outputs, logits


def _time(runner: Runner, budget: float) -> None:
    outcome = runner.outcome
    runner.attend()  # warm; the first one found cold memory
    before = runner.moved()
    runner.attend()
    outcome.up, outcome.down, outcome.cpu = (
        now - then for now, then in zip(runner.moved(), before, strict=True)
    )
    outcome.attention = _timed(runner.attend, budget)
    runner.rewind()
    numbers = iter(range(1, 2 + _MOST))
    runner.token(next(numbers))
    outcome.tokens = _timed(lambda: runner.token(next(numbers)), budget)


def deviation(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the largest difference of two arrays, each row's relative to its largest expected entry."""
    if expected.shape != found.shape:
        return float("inf")
    wanted = expected.astype(np.float64)
    largest = np.abs(wanted).max(axis=-1)
    return float((np.abs(found - wanted).max(axis=-1) / largest).max())


def _timed(call: Callable[[], object], budget: float) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() - begin < budget):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
