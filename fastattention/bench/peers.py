"""Other libraries on the same cases: same arrays, same cores, checked by the reference before they are timed.

A peer offers every way its library has of doing a case. Each is checked, the right ones are tried, and the
fastest takes its turns in the rounds: the comparison is with the best the library can do.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from .cases import Case
from .data import Data
from .measure import TOLERANCE, Expected, error, time_call
from .results import PeerResult

__all__ = [
    "NAMES",
    "Peer",
    "UnsupportedError",
    "Variant",
    "choose",
    "comparable",
    "import_any",
    "load",
    "one_line",
]

#: Libraries by the name `--peers` takes, and the module of this package that speaks to each.
NAMES = {"pytorch": "peer_pytorch", "onnxruntime": "peer_onnxruntime", "openvino": "peer_openvino"}


#: A way whose first call took this many times as long as another's is not tried again.
_HOPELESS = 3


class UnsupportedError(Exception):
    """The library, or this way of using it, has no such case; the text says what is lacking."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of doing a case.

    Attributes
    ----------
    label : str
        Operator and options, for the report.
    call : callable
        Runs it once, synchronously. This is what is timed. It keeps alive whatever it reads and writes.
    result : callable
        Returns the output of the last call as (B, Hq, Sq, Dv), of any floating-point type. Not timed.
    """

    label: str
    call: Callable[[], object]
    result: Callable[[], NDArray[Any]]


class Peer(Protocol):
    """A library that can be compared with."""

    name: str
    version: str

    def variants(self, case: Case, data: Data) -> Iterable[Callable[[], Variant]]:
        """Return makers of the ways to do `case`; each may raise `UnsupportedError`.

        Threads are limited to ``case.threads``. Arrays are shared with `data` where the library can.
        """
        ...


def load(names: Iterable[str]) -> tuple[list[Peer], dict[str, str]]:
    """Import the peers that are installed.

    Returns
    -------
    peers : list of Peer
    absent : dict of str to str
        The others, and why.
    """
    peers: list[Peer] = []
    absent: dict[str, str] = {}
    for name in names:
        try:
            peers.append(importlib.import_module(f".{NAMES[name]}", __package__).create())
        except ImportError as problem:
            absent[name] = f"not installed ({problem})"
    return peers, absent


def comparable(case: Case) -> bool:
    """Return whether other libraries are asked to do the case.

    Pages and int8 caches have a layout of our own, and a forced instruction set is our own affair: the same
    problem stands in another row.
    """
    return case.page_size is None and case.dtype != "int8" and case.isa is None


def choose(peer: Peer, case: Case, data: Data, expected: Expected) -> tuple[PeerResult, Variant | None]:
    """Check every way the peer has, and find the fastest right one.

    Parameters
    ----------
    peer : Peer
    case : Case
    data : Data
    expected : Expected
        The reference's rows.

    Returns
    -------
    result : PeerResult
        Without times. Never raises for what the library does: its errors are results too.
    way : Variant or None
        What to time, where the status is "ok".
    """
    right: list[tuple[float, Variant, float]] = []
    reasons: list[str] = []
    wrong = False
    for make in peer.variants(case, data):
        try:
            variant = make()
            start = time.perf_counter()
            variant.call()
            first = time.perf_counter() - start
            deviation = error(expected, variant.result())
        except UnsupportedError as problem:
            reasons.append(str(problem))
            continue
        except Exception as problem:  # a peer raises what it likes, and that is the finding
            wrong = True
            reasons.append(one_line(problem))
            continue
        if not deviation <= TOLERANCE[case.dtype]:
            wrong = True
            reasons.append(f"{variant.label}: error {deviation:.1e}, more than {TOLERANCE[case.dtype]:.0e}")
            continue
        right.append((first, variant, deviation))
    if not right:
        return PeerResult("failed" if wrong else "unsupported", "; ".join(dict.fromkeys(reasons))), None
    quickest = min(first for first, _, _ in right)
    hopeful = [way for way in right if way[0] <= _HOPELESS * quickest]
    if len(hopeful) > 1:  # by a second call: the first may have set something up
        hopeful.sort(key=lambda way: time_call(way[1].call, 0)[0])
    _, variant, deviation = hopeful[0]
    return PeerResult("ok", variant.label, deviation), variant


def one_line(problem: Exception) -> str:
    """Return the first line of an error, with its type, in 200 characters at most."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(problem).__name__}: {text}"[:200]


def import_any(name: str) -> Any:
    """Import a library that is no dependency, untyped: type checks must not depend on its presence."""
    return importlib.import_module(name)
