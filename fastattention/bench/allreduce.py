"""AllReduce in tiles, timed: compute and sums alone, in sequence, in blocks; and what the formula says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..reference.tiling_allreduce import Costs, block_costs, choose, even_sizes, schedule
from ..runtime.communicator import Communicator
from ..runtime.measure_allreduce import compute_alone, measure, seconds, sums_alone
from ..runtime.tensor_parallel import overlapped, projected_attention, projection

__all__ = ["Row", "as_json", "operands", "table", "text"]


@dataclass(frozen=True)
class Row:
    """One way to run it.

    Attributes
    ----------
    name : str
    sizes : list of int
        Rows of each block.
    ms : float
        Median, of the slowest rank.
    predicted_ms : float or None
        By the schedule, from the measured costs.
    """

    name: str
    sizes: list[int]
    ms: float
    predicted_ms: float | None


def operands(
    communicator: Communicator,
    hidden: int,
    rows: int,
    head_dim: int = 128,
    dtype: Any = np.float32,
    seed: int = 0,
) -> tuple[Any, Any, Any, Any]:
    """Return random q, k, v and w_out of this rank: all heads are hidden / head_dim, one sequence.

    Raises
    ------
    ValueError
        The heads cannot be split.
    """
    xp, size = communicator.xp, communicator.size
    heads = hidden // head_dim
    if hidden % head_dim or heads % size:
        raise ValueError(f"hidden: {hidden} is not heads of {head_dim} that {size} ranks can share")
    random = np.random.default_rng((seed, communicator.rank))
    shape = (1, heads // size, rows, head_dim)
    q, k, v = (xp.asarray(random.standard_normal(shape, np.float32).astype(dtype)) for _ in range(3))
    w_out = random.standard_normal((heads // size * head_dim, hidden), np.float32) / hidden**0.5
    return q, k, v, xp.asarray(w_out.astype(dtype))


def table(
    communicator: Communicator,
    q: Any,
    k: Any,
    v: Any,
    w_out: Any,
    *,
    numbers: Sequence[int] = (2, 4, 8),
    repeats: int = 7,
    causal: bool = True,
    **options: Any,
) -> tuple[Costs, list[Row]]:
    """Time one call in every way; all ranks together, and all get the same.

    Parameters
    ----------
    communicator : Communicator
    q, k, v, w_out : array
        As in `projected_attention`.
    numbers : sequence of int
        Of equal blocks.
    repeats : int
        The median counts.
    causal, **options
        Of `attention`.

    Returns
    -------
    Costs
        As measured, in seconds.
    list of Row
        compute alone, AllReduce alone, in sequence, in equal tiles, and as chosen.

    Raises
    ------
    RuntimeError
        Tiles and sequence differ by more than rounding: nothing was timed.
    """
    options = {"causal": causal, **options}
    batch, _, rows, _ = q.shape
    xp = communicator.xp
    _same(communicator, q, k, v, w_out, options, max(numbers))
    step = projection(q, k, v, w_out, communicator, options)
    out = xp.zeros((rows * batch, w_out.shape[1]), communicator.sum_dtype(q.dtype))
    costs = measure(step, out, communicator, unit=batch, repeats=repeats)

    def milliseconds(work: Any) -> float:
        return 1e3 * seconds(work, communicator, repeats)

    def predicted(sizes: list[int]) -> float:
        return 1e3 * schedule(*block_costs(sizes, costs), costs.slowdown).time

    zeros = xp.zeros_like(out)  # summed in place again and again: anything else would overflow
    compute = milliseconds(lambda: compute_alone(step, out, [rows * batch]))
    sums = milliseconds(lambda: sums_alone(zeros, [rows * batch], communicator))
    found = [Row("compute alone", [rows], compute, None), Row("AllReduce alone", [rows], sums, None)]
    ways = {"in sequence": [rows], **{f"tiles, n = {n}": even_sizes(rows, n) for n in numbers}}
    ways["chosen"] = choose(rows, costs)
    for name, sizes in ways.items():
        scaled = [size * batch for size in sizes]
        took = milliseconds(lambda scaled=scaled: overlapped(step, out, scaled, communicator))
        found.append(Row(name, sizes, took, predicted(sizes)))
    return costs, found


def as_json(costs: Costs, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table as JSON holds it."""
    return {"costs": asdict(costs), "rows": [asdict(row) for row in rows]}


def text(costs: Costs, rows: Sequence[Row]) -> str:
    """Return a table as people read it."""
    head = (
        f"C {1e3 * costs.compute:.3f} ms, M {1e3 * costs.communication:.3f} ms, a block "
        f"{1e3 * costs.compute_overhead:.3f} + {1e3 * costs.communication_overhead:.3f} ms, "
        f"compute beside a sum x {costs.slowdown:.3f}"
    )
    sequence = next(row.ms for row in rows if row.name == "in sequence")
    lines = [f"{'':<16} {'ms':>9} {'formula':>9} {'times':>6}  blocks"]
    for row in rows:
        formula = "" if row.predicted_ms is None else f"{row.predicted_ms:.3f}"
        times = "" if row.predicted_ms is None else f"{sequence / row.ms:.2f}"
        lines.append(f"{row.name:<16} {row.ms:>9.3f} {formula:>9} {times:>6}  {row.sizes}")
    return "\n".join((head, *lines))


def _same(
    communicator: Communicator, q: Any, k: Any, v: Any, w_out: Any, options: dict[str, Any], number: int
) -> None:
    """Raise unless tiles give what the sequence gives, to rounding of the result's dtype."""
    one, many = (
        projected_attention(q, k, v, w_out, communicator, blocks=n, **options).astype(np.float32)
        for n in (1, number)
    )
    error, largest = (float(abs(x).max()) for x in (many - one, one))
    allowed = (2e-2 if q.dtype.itemsize == 2 else 1e-4) * largest
    worst = max(communicator.all_gather(error / allowed if error == error else float("inf")))
    if worst > 1:
        raise RuntimeError(f"tiles and sequence differ by {worst:.1f} tolerances; nothing was timed")
