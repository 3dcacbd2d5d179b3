"""One case on all ranks: arrays, the check of every way, and their times in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...reference.tiling_allreduce import Costs, block_costs, choose, even_sizes, schedule
from ...runtime.communicator import Communicator
from ...runtime.measure_allreduce import (
    IN_SEQUENCE,
    costs_of,
    grain,
    ingredients,
    interleaved,
    measure,
    settle,
)  # fmt: skip
from ...runtime.tensor_parallel import overlapped, projection
from .cases import AllReduceCase
from .results import Row, Way

__all__ = ["NUMBERS", "WrongOutputError", "check", "measure_case", "operands"]

NUMBERS = (2, 4, 8)
_PERIOD = 2**20 + 7  # odd: no two rows of random numbers are the same
_CHUNK = 2048  # rows that are compared at a time
_PROBED = 5  # rows that are computed a second time, plainly


class WrongOutputError(Exception):
    """A way computed something else; nothing was timed."""


def operands(communicator: Communicator, case: AllReduceCase, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Return random q, k, v and w_out of this rank, (1, H / R, S, D) and (H D / R, hidden).

    Raises
    ------
    ValueError
        The heads cannot be shared out evenly.
    """
    xp, size, hidden, dim = communicator.xp, communicator.size, case.hidden, case.head_dim
    if hidden % dim or hidden // dim % size:
        raise ValueError(f"hidden: {hidden} is not heads of {dim} that {size} ranks can share")
    heads = hidden // dim // size
    random = np.random.default_rng((seed, communicator.rank))
    numbers = xp.asarray(random.standard_normal(_PERIOD, np.float32).astype(case.dtype))

    def filled(start: int, *shape: int) -> Any:
        count = int(np.prod(shape))
        return (
            xp.tile(numbers, -(-(start + count) // _PERIOD))[start : start + count].reshape(shape).copy()
        )  # aligned

    q, k, v = (filled(start, 1, heads, case.tokens, dim) for start in (0, 1001, 5003))
    return q, k, v, filled(7001, heads * dim, hidden) * numbers.dtype.type(hidden**-0.5)


def check(
    communicator: Communicator,
    operand: tuple[Any, Any, Any, Any],
    run: Callable[[Any, Sequence[int]], None],
    ways: dict[str, list[int]],
) -> float:
    """Return the largest error of any way in parts of what is allowed; all ranks the same.

    In sequence must give, in some rows, what plain float32 arithmetic gives; the other ways must give what in
    sequence gives, in all rows. Outputs are NaN beforehand, so that a row nobody writes is noticed.

    Parameters
    ----------
    communicator : Communicator
    operand : tuple of array
        q, k, v, w_out.
    run : callable
        ``run(out, sizes)`` makes the call.
    ways : dict of str to list of int
        Sizes of blocks.

    Raises
    ------
    WrongOutputError
        On every rank: which way, and by how much.
    """
    xp, (q, _, _, w_out) = communicator.xp, operand
    shape, dtype = (q.shape[2], w_out.shape[1]), communicator.sum_dtype(q.dtype)
    allowed = 2e-2 if q.dtype.itemsize == 2 else 1e-4
    one = xp.full(shape, np.nan, dtype)
    run(one, [q.shape[2]])
    communicator.synchronize()
    places = sorted({int(place) for place in np.linspace(0, q.shape[2] - 1, _PROBED)})
    errors = {IN_SEQUENCE: _error(xp, one[xp.asarray(places)], _plain(communicator, operand, places))}
    for name, sizes in ways.items():
        many = xp.full(shape, np.nan, dtype)
        run(many, sizes)
        communicator.synchronize()
        errors[name] = max(
            _error(xp, many[start : start + _CHUNK], one[start : start + _CHUNK])
            for start in range(0, shape[0], _CHUNK)
        )
    every = communicator.all_gather(list(errors.values()))
    worst = {name: max(rank[place] for rank in every) / allowed for place, name in enumerate(errors)}
    for name, error in worst.items():
        if error > 1:
            raise WrongOutputError(f"{name}: wrong by {error:.1f} tolerances; nothing was timed")
    largest: float = max(worst.values())
    return largest


def _error(xp: Any, found: Any, wanted: Any) -> float:
    """Return the largest difference in parts of the largest entry; infinite where a number is none."""
    found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    error = float(abs(found - wanted).max()) / float(abs(wanted).max())
    return error if error == error else 1e30  # JSON has no infinity


def _plain(communicator: Communicator, operand: tuple[Any, Any, Any, Any], places: list[int]) -> Any:
    """Return some rows of the sum over ranks in float32, by matrix products alone."""
    xp, (q, k, v, w_out) = communicator.xp, operand
    heads, rows, dim = q.shape[1:]
    chosen = xp.asarray(places)
    hidden_keys = xp.arange(rows)[None, :] > chosen[:, None]
    mixed = xp.empty((len(places), heads * dim), np.float32)
    for head in range(heads):
        one = [x[0, head].astype(np.float32) for x in (q, k, v)]
        scores = one[0][chosen] @ one[1].T * np.float32(dim**-0.5)
        scores[hidden_keys] = -np.inf
        weights = xp.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, head * dim : (head + 1) * dim] = weights @ one[2] / weights.sum(axis=1, keepdims=True)
    total = mixed @ w_out.astype(np.float32)
    communicator.all_reduce_start(total).wait()
    communicator.synchronize()
    return total


def measure_case(
    communicator: Communicator,
    case: AllReduceCase,
    *,
    repeats: int = 7,
    least: float = 0.0,
    threads: int | None = None,
    seed: int = 0,
) -> Row:
    """Check one case, then time it in every way; all ranks together, and all get the same.

    Parameters
    ----------
    communicator : Communicator
    case : AllReduceCase
    repeats : int
        How often each way has its turn.
    least : float
        Seconds of a turn.
    threads : int, optional
        Of a CPU rank's attention.
    seed : int
        Of the operands.

    Raises
    ------
    ValueError
        The heads cannot be split.
    WrongOutputError
        Nothing was timed.
    """
    xp, rows = communicator.xp, case.tokens
    operand = operands(communicator, case, seed)
    q, _, _, w_out = operand
    options: dict[str, Any] = {"causal": True} | ({} if threads is None else {"num_threads": threads})
    step = projection(*operand, communicator, options)
    out = xp.zeros((rows, case.hidden), communicator.sum_dtype(q.dtype))
    tiles = {f"n = {n}": even_sizes(rows, n) for n in NUMBERS}

    def run(into: Any, sizes: Sequence[int]) -> None:
        overlapped(step, into, sizes, communicator)

    error = check(communicator, operand, run, tiles)
    rough = measure(step, out, communicator, least=least)
    sizes = settle(lambda found: run(out, found), rows, rough, communicator, least=least)
    if len(sizes) > 1 and sizes not in tiles.values():
        error = max(error, check(communicator, operand, run, {"chosen": sizes}))
        tiles["chosen"] = sizes
    chosen = next((name for name, found in tiles.items() if found == sizes), IN_SEQUENCE)

    mixed = xp.ascontiguousarray(q.transpose(0, 2, 1, 3)).reshape(rows, -1)
    mixed = mixed.astype(out.dtype, copy=False)
    weights = w_out.astype(out.dtype, copy=False)

    def product(start: int, stop: int, into: Any) -> None:
        xp.matmul(mixed[start:stop], weights, out=into)

    parts = ingredients(step, out, communicator)
    blocks = {IN_SEQUENCE: [rows], **tiles}
    streams = {f"projection, {name}": found for name, found in blocks.items() if name != "chosen"}
    ways = dict(parts)
    for name, found in blocks.items():
        ways[name] = partial(run, out, found)
    ways["projection"] = partial(product, 0, rows, out)
    for name, found in streams.items():
        ways[name] = partial(overlapped, product, out, found, communicator)
    times = interleaved(ways, communicator, repeats, least)
    middle = {name: statistics.median(found) for name, found in times.items()}
    costs = costs_of(middle, rows)
    plain = Costs(middle["projection"], middle["sum"])  # the formula without overheads
    best = choose(rows, costs, unit=grain(rows))

    def predicted(name: str) -> float | None:
        if name in blocks:
            return _time(blocks[name], costs)
        return _time(streams[name], plain) if name in streams else None

    every = blocks | streams
    return Row(
        case, costs, chosen, best, _time(best, costs), error,
        {name: Way(found, every.get(name), predicted(name)) for name, found in times.items()},
    )  # fmt: skip


def _time(sizes: Sequence[int], costs: Costs) -> float:
    return schedule(*block_costs(sizes, costs), costs.slowdown).time
