"""What compute and AllReduce cost, alone, in blocks, and beside each other: what blocks are chosen by."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..reference.tiling_allreduce import Costs, best_sizes, choose, even_sizes
from .communicator import Communicator

__all__ = [
    "IN_SEQUENCE", "compute_alone", "costs_of", "grain", "ingredients", "interleaved", "measure", "settle",
    "sums_alone",
]  # fmt: skip

Step = Callable[[int, int, Any], None]

_BLOCKS = 4  # enough to see what a block costs
_NO_OVERLAP = 1e6  # a slowdown by which nothing overlaps
_PIECE = 0.8  # of compute's time: how long a sum beside it takes by itself
_MOST_CALLS = 200
_FEW = (2, 3, 4)  # numbers of blocks that are tried, besides what the schedule says
_CLEAR = 0.99  # blocks must take no more of the time in sequence to be taken: the rest is noise
_LARGEST_GRAIN = 128  # rows: a multiple of every kernel's tile

IN_SEQUENCE = "in sequence"


def interleaved(
    ways: Mapping[str, Callable[[], None]], communicator: Communicator, repeats: int = 3, least: float = 0.0
) -> dict[str, list[float]]:
    """Time several ways in turn, over and over, so that whatever the machine does meets all alike.

    Parameters
    ----------
    ways : mapping of str to callable
        The same on every rank, in the same order.
    communicator : Communicator
    repeats : int
        How often each has its turn, after one to warm up.
    least : float
        Seconds of a turn: shorter calls are made several times, queued one behind the other.

    Returns
    -------
    dict of str to list of float
        Seconds of a call in each turn: the slowest rank's, all having started together.
    """

    def turn(work: Callable[[], None], calls: int) -> float:
        communicator.barrier()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        communicator.synchronize()
        return (time.perf_counter() - started) / calls

    counts = {}
    for name, work in ways.items():
        turn(work, 1)
        once = max(communicator.all_gather(turn(work, 1)))
        counts[name] = min(max(1, math.ceil(least / once)), _MOST_CALLS)
    mine = [[turn(work, counts[name]) for name, work in ways.items()] for _ in range(repeats)]
    every = communicator.all_gather(mine)  # rank by rank, turn by turn, way by way
    return {
        name: [max(rank[number][place] for rank in every) for number in range(repeats)]
        for place, name in enumerate(ways)
    }


def compute_alone(step: Step, out: Any, sizes: Sequence[int]) -> None:
    """Compute all blocks; no sums."""
    start = 0
    for size in sizes:
        step(start, start + size, out[start : start + size])
        start += size


def sums_alone(out: Any, sizes: Sequence[int], communicator: Communicator) -> None:
    """Sum all blocks over ranks; no compute."""
    sums, start = [], 0
    for size in sizes:
        sums.append(communicator.all_reduce_start(out[start : start + size]))
        start += size
    for under_way in sums:
        under_way.wait()


def ingredients(
    step: Step, out: Any, communicator: Communicator, *, unit: int = 1
) -> dict[str, Callable[[], None]]:
    """Return what is timed to know the costs of a call, by the names that `costs_of` reads.

    A short call of all ranks finds how large a sum must be to take about as long as compute.

    Parameters
    ----------
    step : callable
        ``step(start, stop, rows)``: as `tensor_parallel.overlapped` calls it.
    out : array
        (rows, hidden), finite; overwritten.
    communicator : Communicator
    unit : int
        Rows that stay together.
    """
    rows = len(out)
    units = rows // unit
    parts = [size * unit for size in even_sizes(units, min(_BLOCKS, units))]
    middle = units // 2 * unit
    other = communicator.xp.zeros_like(out)  # summed again and again, zeros do not overflow

    def of_rows(start: int, stop: int) -> None:
        step(start, stop, out[start:stop])

    ways: dict[str, Callable[[], None]] = {
        "compute": lambda: of_rows(0, rows),
        "compute in parts": lambda: compute_alone(step, out, parts),
        "sum": lambda: sums_alone(other, [rows], communicator),
        "sum in parts": lambda: sums_alone(other, parts, communicator),
    }
    if middle:
        ways |= {"first half": lambda: of_rows(0, middle), "second half": lambda: of_rows(middle, rows)}
    short = {name: min(times) for name, times in interleaved(ways, communicator, 1).items()}
    piece = other[: max(1, int(rows * min(1.0, _PIECE * short["compute"] / short["sum"])))]

    def both() -> None:
        under_way = communicator.all_reduce_start(piece)
        of_rows(0, rows)
        under_way.wait()

    return ways | {"piece": lambda: sums_alone(piece, [len(piece)], communicator), "compute and piece": both}


def costs_of(seconds: Mapping[str, float], rows: int, unit: int = 1) -> Costs:
    """Return the costs that follow from the times of `ingredients`.

    C, M, a and b come from one block and from four. The skew comes from the two halves of the rows. phi comes
    from compute that runs beside a sum of about its own length: what both take longer than compute alone, in
    parts of the sum, is 1 - 1 / phi. So what compute loses to communication counts, and whatever of the sum
    does not fit beside it.

    Parameters
    ----------
    seconds : mapping of str to float
    rows, unit : int
        As timed.

    Examples
    --------
    >>> seconds = {"compute": 1.1, "compute in parts": 1.4, "sum": 0.5, "sum in parts": 0.5,
    ...            "first half": 0.35, "second half": 0.85, "piece": 0.8, "compute and piece": 1.26}
    >>> found = costs_of(seconds, rows=64)
    >>> [round(x, 3) for x in (found.compute, found.compute_overhead, found.slowdown, found.skew)]
    [1.0, 0.1, 1.25, 1.0]
    """
    units = rows // unit
    number = min(_BLOCKS, units)
    a = _each(seconds["compute"], seconds["compute in parts"], number)
    b = _each(seconds["sum"], seconds["sum in parts"], number)
    lost = (seconds["compute and piece"] - seconds["compute"]) / seconds["piece"]
    slowdown = _NO_OVERLAP if lost >= 1 else 1 / (1 - max(lost, 0.0))
    skew = 0.0
    if units > 1:
        first, second = (max(seconds[name] - a, 0.0) for name in ("first half", "second half"))
        half = units // 2 * unit / rows
        if first + second > 0:  # W(half) = half (1 + skew (half - 1))
            skew = min(max((first / (first + second) / half - 1) / (half - 1), -1.0), 1.0)
    return Costs(seconds["compute"] - a, seconds["sum"] - b, a, b, slowdown, skew)


def measure(
    step: Step, out: Any, communicator: Communicator, *, unit: int = 1, repeats: int = 3, least: float = 0.0
) -> Costs:
    """Measure the costs of a call; all ranks together, and all get the same.

    Parameters
    ----------
    step, out, communicator, unit
        As in `ingredients`.
    repeats, least
        As in `interleaved`; the medians count.

    Returns
    -------
    Costs
        In seconds.
    """
    ways = ingredients(step, out, communicator, unit=unit)
    times = interleaved(ways, communicator, repeats, least)
    return costs_of({name: statistics.median(found) for name, found in times.items()}, len(out), unit)


def grain(rows: int) -> int:
    """Return of how many rows blocks of a call are multiples: of whole tiles, where it has so many rows.

    Examples
    --------
    >>> grain(40), grain(512), grain(32768)
    (1, 16, 128)
    """
    return min(_LARGEST_GRAIN, 1 << max(0, (rows // 32).bit_length() - 1))


def settle(
    run: Callable[[Sequence[int]], None],
    rows: int,
    costs: Costs,
    communicator: Communicator,
    *,
    most: int = 16,
    repeats: int = 3,
    least: float = 0.0,
) -> list[int]:
    """Return the sizes of blocks that took the least time, of those that the costs speak for.

    The schedule knows what was measured of whole calls. What it does not know, such as a kernel that leaves
    multiprocessors idle on few rows, a timed call does. In sequence is among the candidates and is taken
    unless another is clearly faster.

    Parameters
    ----------
    run : callable
        ``run(sizes)`` makes the call in blocks.
    rows : int
    costs : Costs
        As measured.
    communicator : Communicator
        All its ranks call this together, and get the same.
    most : int
        Blocks.
    repeats, least
        As in `interleaved`.
    """
    unit = grain(rows)
    few = [number for number in _FEW if number <= min(most, -(-rows // unit))]
    sizes = [choose(rows, costs, most, unit), *(best_sizes(rows, number, costs, unit) for number in few)]
    candidates = {IN_SEQUENCE: [rows]} | {str(found): found for found in sizes if len(found) > 1}
    if len(candidates) == 1:
        return [rows]
    ways = {name: lambda found=found: run(found) for name, found in candidates.items()}
    times = interleaved(ways, communicator, repeats, least)
    medians = {name: statistics.median(found) for name, found in times.items()}
    medians[IN_SEQUENCE] *= _CLEAR
    return candidates[min(medians, key=lambda name: medians[name])]


def _each(whole: float, parts: float, number: int) -> float:
    """Return what a block costs besides, no more than the whole."""
    return min(max((parts - whole) / (number - 1), 0.0), whole) if number > 1 else 0.0
