"""What compute and AllReduce cost, alone, in blocks, and beside each other: what blocks are chosen by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..reference.tiling_allreduce import Costs, even_sizes
from .communicator import Communicator

__all__ = ["compute_alone", "measure", "seconds", "sums_alone"]

_BLOCKS = 4  # enough to see what a block costs
_NO_OVERLAP = 1e6  # a slowdown by which nothing overlaps


def seconds(work: Callable[[], None], communicator: Communicator, repeats: int = 3) -> float:
    """Return the median time of `work`, the slowest rank's; all ranks start together."""
    times = []
    for turn in range(repeats + 1):
        communicator.barrier()
        started = time.perf_counter()
        work()
        communicator.synchronize()
        if turn:  # the first warms up
            times.append(time.perf_counter() - started)
    found: float = max(communicator.all_gather(statistics.median(times)))
    return found


def compute_alone(step: Callable[[int, int, Any], None], out: Any, sizes: Sequence[int]) -> None:
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


def measure(
    step: Callable[[int, int, Any], None],
    out: Any,
    communicator: Communicator,
    *,
    unit: int = 1,
    repeats: int = 3,
) -> Costs:
    """Measure the costs of a call; all ranks together, and all get the same.

    Parameters
    ----------
    step : callable
        ``step(start, stop, rows)``: as `overlapped` calls it.
    out : array
        (rows, hidden), finite; overwritten.
    communicator : Communicator
    unit : int
        Rows that stay together.
    repeats : int
        Of each measurement; the median counts.

    Returns
    -------
    Costs
        In seconds. C, M, a and b from one block and from four; phi from compute that runs beside a sum of
        about its own length: what compute and the rest of the sum then take longer than compute alone, in
        parts of the sum.
    """
    rows = len(out)
    number = min(_BLOCKS, rows // unit)
    parts = [size * unit for size in even_sizes(rows // unit, number)]

    def timed(work: Callable[[], None]) -> float:
        return seconds(work, communicator, repeats)

    whole_compute = timed(lambda: compute_alone(step, out, [rows]))
    parts_compute = timed(lambda: compute_alone(step, out, parts))
    other = communicator.xp.zeros_like(out)  # sums of zeros: what is summed again and again must not overflow
    whole_sum = timed(lambda: sums_alone(other, [rows], communicator))
    parts_sum = timed(lambda: sums_alone(other, parts, communicator))
    a = _each(whole_compute, parts_compute, number)
    b = _each(whole_sum, parts_sum, number)
    share = min(1.0, 0.8 * whole_compute / whole_sum)
    piece = other[: max(1, int(rows * share))]

    def both() -> None:
        under_way = communicator.all_reduce_start(piece)
        compute_alone(step, out, [rows])
        under_way.wait()

    alone = timed(lambda: sums_alone(piece, [len(piece)], communicator))
    lost = (timed(both) - whole_compute) / alone  # 1 - 1 / phi
    slowdown = _NO_OVERLAP if lost >= 1 else 1 / (1 - max(lost, 0.0))
    return Costs(whole_compute - a, whole_sum - b, a, b, slowdown)


def _each(whole: float, parts: float, number: int) -> float:
    """Return what a block costs besides, no more than the whole."""
    return min(max((parts - whole) / (number - 1), 0.0), whole) if number > 1 else 0.0
