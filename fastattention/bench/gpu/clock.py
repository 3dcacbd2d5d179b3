"""How calls on a GPU are timed: CUDA events around batches, replayed from a graph and launched one by one.

A graph's replay is the GPU's own time: many calls with nothing to wait for. Launched one by one, each call
costs what its Python and its launches cost, where that is longer. Both are figures; they are never mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from ...gpu import load_cupy

__all__ = ["BATCH_SECONDS", "Calls", "Graph", "Way", "plan_calls", "time_batch"]

#: Of a timed batch, at least.
BATCH_SECONDS = 0.005
_GRAPH_SECONDS = 0.005  # of the calls in one graph, launched one by one
_GRAPH_CALLS = 256  # at most
_LONG = 0.02  # a run this long has no other before it to warm up


class Graph(Protocol):
    """Calls that were captured."""

    def launch(self) -> None:
        """Queue all of them."""
        ...


class Calls(Protocol):
    """Somebody's calls of one case, on the current stream."""

    name: str
    detail: str
    caches: int

    def around(self) -> AbstractContextManager[object]:
        """Return what has to be in force while calls are made, replayed or captured."""
        ...

    def call(self, number: int) -> None:
        """Queue one call, on cache `number`."""
        ...

    def capture(self, count: int) -> Graph:
        """Capture `count` calls, on the caches in turn; raises what the library raises."""
        ...

    def check(self, number: int, graph: Graph | None) -> float:
        """Poison the output, call or replay, and return the error; cache `number` was last."""
        ...


def plan_calls(seconds: float, caches: int) -> int:
    """Return how many calls go into a graph: whole turns of the caches, about five milliseconds."""
    turns = math.ceil(_GRAPH_SECONDS / (seconds * caches))
    return caches * max(1, min(turns, _GRAPH_CALLS // caches))


def time_batch(run: Callable[[], object], times: int, warm: bool) -> float:
    """Return the seconds that the device takes for `times` runs, by events around them.

    Parameters
    ----------
    run : callable
        Queues work on the current stream.
    times : int
    warm : bool
        Queue one more run before the first event, which then does not start on an idle device.
    """
    cupy = load_cupy()
    first, last = cupy.cuda.Event(), cupy.cuda.Event()
    if warm:
        run()
    first.record()
    for _ in range(times):
        run()
    last.record()
    last.synchronize()
    return 1e-3 * float(cupy.cuda.get_elapsed_time(first, last))


@dataclass(slots=True)
class Way:
    """Somebody's way of doing a case, ready to be checked and timed.

    Attributes
    ----------
    calls : Calls
    not_captured : str
        Why there is no graph; "" where there is one.
    graph_calls : int
        In the graph.
    """

    calls: Calls
    not_captured: str = "not tried"
    graph_calls: int = 0
    _graph: Graph | None = None
    _seconds: dict[str, float] = field(default_factory=dict)
    _next: int = 0

    @property
    def name(self) -> str:
        """Whose it is."""
        return self.calls.name

    @property
    def detail(self) -> str:
        """Which kernel or backend it is."""
        return self.calls.detail

    def check(self) -> float:
        """Make a call on the first cache and one on the last; return the larger error, or NaN."""
        with self.calls.around():
            errors = [self.calls.check(number, None) for number in sorted({0, self.calls.caches - 1})]
        return _worst(errors)

    def capture(self) -> None:
        """Capture calls in a graph; where that fails, say why in `not_captured`."""
        count = plan_calls(self.time("launches", 0.0), self.calls.caches)
        try:
            with self.calls.around():
                self._graph = self.calls.capture(count)
        except Exception as problem:  # whatever the library raises is the finding
            lines = str(problem).splitlines() or [""]
            self.not_captured = f"{type(problem).__name__}: {lines[0]}"[:200]
            return
        self.graph_calls, self.not_captured = count, ""

    def check_graph(self) -> float:
        """Replay the graph; return the error of what its last call wrote."""
        with self.calls.around():
            return self.calls.check((self.graph_calls - 1) % self.calls.caches, self._graph)

    def time(self, mode: str, batch: float = BATCH_SECONDS) -> float:
        """Return the seconds of a call.

        Parameters
        ----------
        mode : str
            "graph" or "launches".
        batch : float
            Seconds of the batch, at least.
        """
        run, calls = self._one, 1
        if mode == "graph":
            if self._graph is None:
                raise ValueError(f"{self.name}: there is no graph: {self.not_captured}")
            run, calls = self._graph.launch, self.graph_calls
        with self.calls.around():
            known = self._seconds.get(mode)
            if known is None:
                known = time_batch(run, 1, warm=True)
            times = max(1, math.ceil(batch / known))
            seconds = time_batch(run, times, warm=known < _LONG) / times
        # A first run may have been slow: then the next batch has more of them.
        self._seconds[mode] = min(known, seconds)
        return seconds / calls

    def _one(self) -> None:
        self.calls.call(self._next)
        self._next = (self._next + 1) % self.calls.caches


def _worst(errors: list[float]) -> float:
    return float("nan") if any(math.isnan(error) for error in errors) else max(errors)
