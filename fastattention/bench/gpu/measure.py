"""One row: everybody is checked, then all are timed in rounds, between probes of what limits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ..cases import useful_flops
from ..peers import UnsupportedError, one_line
from .cases import GpuCase
from .results import GRAPH, LAUNCHES, Contender, Row

__all__ = ["Device", "Field", "WrongOutputError", "measure_case"]


class WrongOutputError(Exception):
    """One of our kernels computed something else; no figure of this run is worth anything."""


class Way(Protocol):
    """One way of doing a case: `clock.Way` on a GPU."""

    not_captured: str
    graph_calls: int

    @property
    def name(self) -> str:
        """Whose it is."""
        ...

    @property
    def detail(self) -> str:
        """Which kernel or backend it is."""
        ...

    def check(self) -> float:
        """Return the error of its output."""
        ...

    def capture(self) -> None:
        """Capture a graph, or say in `not_captured` why there is none."""
        ...

    def check_graph(self) -> float:
        """Return the error of the graph's output."""
        ...

    def time(self, mode: str) -> float:
        """Return the seconds of a call."""
        ...


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part in a row.

    Attributes
    ----------
    caches : int
    tolerance : float
    ours : list of (Way, str, bool)
        Each with its limit and whether its instruction is emulated.
    peers : dict of str to list of Way
        By name, each library's ways: the fastest right one is timed. Those in `last_resorts` only where no
        other is right.
    """

    caches: int
    tolerance: float
    ours: Sequence[tuple[Way, str, bool]]
    peers: Mapping[str, Sequence[Way]]
    is_last_resort: Callable[[Way], bool] = lambda way: False


class Device(Protocol):
    """A GPU; the tests have one that is none."""

    capability: tuple[int, int]
    absent_peers: dict[str, str]

    def environment(self) -> dict[str, Any]:
        """Describe GPU, driver, libraries and machine, ready for JSON."""
        ...

    def note_clocks(self, when: str) -> None:
        """Keep clocks, power and temperature as they are now, where the system tells."""
        ...

    def limit_names(self) -> list[str]:
        """Return the names of all limits of the card."""
        ...

    def missing(self, case: GpuCase) -> str | None:
        """Return why the card cannot do a case, or None."""
        ...

    def compile(self, cases: Sequence[GpuCase]) -> dict[str, float]:
        """Compile all kernels that the cases need; say how many and in how many seconds."""
        ...

    def probe(self, name: str, seconds: float = 0.004) -> float:
        """Return a limit now: TFLOP/s, or GB/s for "copy"."""
        ...

    def open(self, case: GpuCase) -> AbstractContextManager[Field]:
        """Make the arrays of a case, and give who takes part; at the end give all memory back."""
        ...

    def close(self) -> None:
        """Give back what the device itself holds."""
        ...


def measure_case(case: GpuCase, device: Device, rounds: int) -> Row:
    """Check and time one case.

    Raises
    ------
    WrongOutputError
        One of our outputs missed the tolerance.
    """
    with device.open(case) as field:
        row = Row(case, useful_flops(case), field.caches)
        ways: dict[str, Way] = {}
        for way, limit, emulated in field.ours:
            error = _right(case, way, field.tolerance, way.check)
            who = Contender(True, "ok", way.detail, limit, emulated, error)
            row.contenders[way.name], ways[way.name] = who, way
        for name, offered in field.peers.items():
            row.contenders[name], chosen = _choose(name, offered, field)
            if chosen is not None:
                ways[name] = chosen
        for name, way in ways.items():
            _capture(case, row.contenders[name], way, field.tolerance)
        limits = list(dict.fromkeys(limit for _, limit, _ in field.ours))
        row.limits = {name: [] for name in limits}
        for _ in range(rounds):
            _probe(row, device)
            _turn(row, ways)
        _probe(row, device)
    return row


def _probe(row: Row, device: Device) -> None:
    for name, found in row.limits.items():
        found.append(device.probe(name))


def _turn(row: Row, ways: Mapping[str, Way]) -> None:
    for mode in (GRAPH, LAUNCHES):
        for name, way in ways.items():
            who = row.contenders[name]
            if mode == LAUNCHES or not who.not_captured:
                who.times(mode).append(way.time(mode))


def _right(case: GpuCase, way: Way, tolerance: float, check: Callable[[], float]) -> float:
    error = check()
    if not error <= tolerance:
        raise WrongOutputError(
            f"{case.name}: {way.name} ({way.detail}): error {error:.1e}, expected at most {tolerance:.0e}"
        )
    return error


def _choose(name: str, offered: Sequence[Way], field: Field) -> tuple[Contender, Way | None]:
    """Return the fastest right way of a library; a library's error is a result, too."""
    right: list[tuple[float, Way, float]] = []
    reasons: list[str] = []
    failed = False
    for way in offered:
        if field.is_last_resort(way) and right:
            continue
        try:
            error = way.check()
            seconds = way.time(LAUNCHES) if error <= field.tolerance and len(offered) > 1 else 0.0
        except UnsupportedError as problem:
            reasons.append(str(problem))
            continue
        except Exception as problem:  # a peer raises what it likes, and that is the finding
            failed = True
            reasons.append(f"{way.detail}: {one_line(problem)}")
            continue
        if error <= field.tolerance:
            right.append((seconds, way, error))
        else:
            failed = True
            reasons.append(f"{way.detail}: error {error:.1e}, more than {field.tolerance:.0e}")
    if not right:
        status = "failed" if failed else "unsupported"
        return Contender(False, status, "; ".join(dict.fromkeys(reasons))), None
    _, way, error = min(right, key=lambda found: found[0])
    return Contender(False, "ok", way.detail, error=error), way


def _capture(case: GpuCase, who: Contender, way: Way, tolerance: float) -> None:
    way.capture()
    who.not_captured, who.graph_calls = way.not_captured, way.graph_calls
    if who.not_captured:
        return
    if who.ours:
        _right(case, way, tolerance, way.check_graph)
        return
    error = way.check_graph()
    if math.isnan(error) or error > tolerance:
        who.not_captured = f"the graph's output is wrong: error {error:.1e}"
