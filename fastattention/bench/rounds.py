"""Rounds: the limit, our calls and everybody else's, in turn, several times over.

A shared machine's clock and memory change by a third within seconds. A limit probed before and after two
seconds of timing is then not the limit that the kernel had. In rounds of a few tenths of a second, whatever
the machine does meets all alike; figures compare what happened in the same round, and take the median of the
rounds at the end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .measure import time_call

__all__ = ["Rounds", "percents", "ratios", "take_turns"]


@dataclass(frozen=True, slots=True)
class Rounds:
    """What was seen, in order.

    Attributes
    ----------
    limits : list of float
        One before each round, and one after the last: a round is between two.
    ours : list of list of float
        For each round the seconds of each call.
    peers : dict of str to list of list of float
        Likewise; fewer rounds for a slow peer. A peer that raised is not among them.
    raised : dict of str to Exception
        What a peer raised; it took no turn after that.
    """

    limits: list[float]
    ours: list[list[float]]
    peers: dict[str, list[list[float]]]
    raised: dict[str, Exception]


def take_turns(
    probe: Callable[[], float],
    ours: Callable[[], object],
    peers: Mapping[str, Callable[[], object]],
    *,
    count: int,
    budget: float,
    peer_budget: float,
    pause: float = 0.0,
    every: Collection[str] = (),
    settle: Callable[[], object] = lambda: None,
) -> Rounds:
    """Probe and time in `count` rounds.

    Parameters
    ----------
    probe : callable
        Returns the limit at this moment.
    ours : callable
    peers : dict of str to callable
        By name.
    count : int
    budget, peer_budget : float
        Seconds for all rounds together: our calls, and each peer's. Each gets one call a round at least, but
        a peer whose first call alone takes longer than its whole budget has no further turn.
    pause : float
        Seconds to wait after each peer: worker threads of some libraries keep their cores busy for a while
        after a call, in wait for the next.
    every : collection of str
        Peers that have `budget` and every turn, however slow: ways of our own that ours are compared with.
    settle : callable
        Called before every turn, to undo what the one before may have left behind: OpenVINO moves the thread
        that calls it to the cores it had earlier.

    Returns
    -------
    Rounds
    """
    seen = Rounds([], [], {name: [] for name in peers}, {})
    slow: set[str] = set()
    for _ in range(count):
        settle()
        seen.limits.append(probe())
        settle()
        seen.ours.append(time_call(ours, budget / count))
        for name, call in peers.items():
            if name in seen.raised or name in slow:
                continue
            settle()
            try:
                times = time_call(call, (budget if name in every else peer_budget) / count)
                seen.peers[name].append(times)
                if times[0] > peer_budget > 0 and name not in every:
                    slow.add(name)
            except Exception as problem:  # a peer raises what it likes, and that is the finding
                seen.raised[name] = problem
                del seen.peers[name]
            time.sleep(pause)
    settle()
    seen.limits.append(probe())
    return seen


def percents(work: float, rounds: Sequence[Sequence[float]], limits: Sequence[float]) -> list[float]:
    """Return for each round what part of the limit was reached, in percent.

    Parameters
    ----------
    work : float
        Of one call, in the limit's unit times seconds.
    rounds : list of list of float
        Seconds.
    limits : list of float
        One more than there are rounds. A round is judged by the mean of the two around it.
    """
    around = [(before + after) / 2 for before, after in pairwise(limits)]
    return [
        100 * work / statistics.median(times) / limit for times, limit in zip(rounds, around, strict=True)
    ]


def ratios(ours: Sequence[Sequence[float]], peer: Sequence[Sequence[float]]) -> list[float]:
    """Return for each round how many times as long as ours the peer's calls took, by their medians.

    A slow peer has fewer rounds than we have: those it took are compared.
    """
    return [
        statistics.median(theirs) / statistics.median(times)
        for times, theirs in zip(ours, peer, strict=False)
    ]
