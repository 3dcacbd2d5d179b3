"""Attention and output projection on several ranks, the sum over ranks (AllReduce) in tiles.

Rank r of R holds the heads h with r H / R <= h < (r + 1) H / R and the rows of the output matrix that belong
to them. Its product is one term of the answer::

    out = concat_h(attention_h) W = sum_r concat_(h of r)(attention_h) W_r,

so the ranks must add up. FastAttention (arXiv:2410.16663, "tiling-AllReduce") cuts the sequence into blocks
and sums block i while block i + 1 is computed. The blocks are rows of the answer, independent of each other,
and so it is the same answer, whatever their number and sizes.

The time is that of a flow shop of two machines, the computing units and the wires. Block i of a share f_i of
the rows costs c_i = C g_i + a and m_i = M f_i + b; C and M are the whole's compute and communication, a and b
what each block costs besides. g_i is the block's share of the work: f_i, or under a causal mask, where later
rows see more keys, what `work` says. Communication takes cores and memory from compute, which beside it takes
phi times as long; lending k of n multiprocessors is phi = n / (n - k). `schedule` is exact, by recurrence.
For n blocks that cost the same, c = C / n + a and m = M / n + b, it has the closed form ::

    T = c + (n - 1) max(m, c + (1 - 1 / phi) m) + m.

With phi = 1 and one overhead o, on the slower of the two, that is C/n + (n - 1) max(C, M)/n + M/n + n o.

For any blocks T is the longest of n paths. Let block j be the first of the last stretch in which the wires
never rest: all sums before it are done when it is computed, and compute went at 1 / phi beside them. With
x_j = f_1 + ... + f_j and W_j = g_1 + ... + g_j, T is then P_j, and it is never less than any other ::

    P_j = C W_j + j a + (1 - 1 / phi) (M x_(j-1) + (j - 1) b)   (block j is computed)
          + M (1 - x_(j-1)) + (n - j + 1) b                     (its sum, and those behind it).

P_j grows with x_j and falls with x_(j-1): what `best_sizes` rests on.

>>> round(time(4, Costs(compute=1.0, communication=0.5)), 4)  # in sequence: 1.5
1.125
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .standard import attention

__all__ = [
    "Costs", "Schedule", "best_number", "best_sizes", "block_costs", "choose", "even_sizes", "heads_of",
    "partial", "projected", "schedule", "slowdown", "tiled", "time", "work",
]  # fmt: skip


_HALVINGS = 60  # of an interval of time: to the last digit
_ROUNDING = 1e-12  # times that differ by no more are the same


def heads_of(rank: int, ranks: int, q_heads: int, kv_heads: int) -> tuple[slice, slice]:
    """Return the query heads and the key/value heads of a rank.

    Raises
    ------
    ValueError
        Without such a rank, or when the heads are not divisible: a KV head and its queries stay together.

    Examples
    --------
    >>> heads_of(1, 2, q_heads=8, kv_heads=2)
    (slice(4, 8, None), slice(1, 2, None))
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is none of {ranks} ranks")
    if kv_heads < 1 or q_heads % kv_heads or kv_heads % ranks:
        raise ValueError(f"{q_heads} query and {kv_heads} KV heads cannot be split over {ranks} ranks")
    q, kv = q_heads // ranks, kv_heads // ranks
    return slice(rank * q, (rank + 1) * q), slice(rank * kv, (rank + 1) * kv)


def projected(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, w_out: np.ndarray, **options: Any
) -> NDArray[np.float64]:
    """Return attention and output projection on one rank, (B, Sq, hidden).

    Parameters
    ----------
    q, k, v : ndarray
        As `standard.attention` takes them.
    w_out : ndarray
        (Hq Dv, hidden): row h Dv + d is of element d of head h.
    **options
        Of `standard.attention`.
    """
    out, _ = attention(q, k, v, **options)  # (B, Hq, Sq, Dv)
    B, Hq, Sq, Dv = out.shape
    if w_out.ndim != 2 or w_out.shape[0] != Hq * Dv:
        raise ValueError(f"w_out must be (Hq Dv, hidden) = ({Hq * Dv}, ...), got {w_out.shape}")
    rows = out.transpose(0, 2, 1, 3).reshape(B, Sq, Hq * Dv)
    return np.asarray(rows @ w_out.astype(np.float64))


def partial(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, w_out: np.ndarray, rank: int, ranks: int, **options: Any
) -> NDArray[np.float64]:
    """Return one rank's term of `projected`; the sum over ranks is the answer.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((1, 4, 5, 2)) for _ in "qkv")
    >>> w_out = rng.standard_normal((8, 3))
    >>> terms = [partial(q, k, v, w_out, rank, 2) for rank in range(2)]
    >>> np.allclose(sum(terms), projected(q, k, v, w_out))
    True
    """
    heads, kv_heads = heads_of(rank, ranks, q.shape[1], k.shape[1])
    Dv = v.shape[3]
    for name in ("mask", "alibi_slopes", "sinks"):
        if options.get(name) is not None:
            options[name] = _of_heads(name, np.asarray(options[name]), heads)
    rows = w_out[heads.start * Dv : heads.stop * Dv]
    return projected(q[:, heads], k[:, kv_heads], v[:, kv_heads], rows, **options)


def tiled(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    w_out: np.ndarray,
    *,
    ranks: int,
    sizes: Sequence[int],
    **options: Any,
) -> NDArray[np.float64]:
    """Return `projected`, computed block by block and rank by rank.

    Parameters
    ----------
    q, k, v, w_out, **options
        As in `projected`.
    ranks : int
        R.
    sizes : sequence of int
        Rows of each block: at least 1 each, Sq together.

    Raises
    ------
    ValueError
        For sizes that do not make up the sequence, or heads that cannot be split.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((1, 4, 5, 2)) for _ in "qkv")
    >>> w_out = rng.standard_normal((8, 3))
    >>> one = projected(q, k, v, w_out, causal=True)
    >>> np.allclose(tiled(q, k, v, w_out, ranks=4, sizes=[1, 3, 1], causal=True), one)
    True
    """
    B, _, Sq, _ = q.shape
    if min(sizes, default=0) < 1 or sum(sizes) != Sq:
        raise ValueError(f"sizes must be at least 1 and add up to Sq = {Sq}, got {list(sizes)}")
    out = np.zeros((B, Sq, w_out.shape[1]))
    lengths = options.get("kv_lengths")
    ends = np.full(B, k.shape[2]) if lengths is None else np.asarray(lengths)
    given = options.pop("q_offset", None)
    offset = np.broadcast_to(ends - Sq if given is None else given, (B,))  # (B,): of the sequence's row 0
    mask = options.pop("mask", None)
    mask = None if mask is None else np.broadcast_to(mask, (B, q.shape[1], Sq, k.shape[2]))
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        block = {**options, "q_offset": offset + start, "mask": None if mask is None else mask[:, :, rows]}
        for rank in range(ranks):  # AllReduce: what each rank has, added up
            out[:, rows] += partial(q[:, :, rows], k, v, w_out, rank, ranks, **block)
        start += size
    return out


@dataclass(frozen=True)
class Costs:
    """What a whole sequence costs, in any unit of time.

    Attributes
    ----------
    compute, communication : float
        C and M.
    compute_overhead, communication_overhead : float
        a and b: of each block.
    slowdown : float
        phi, 1 or more: compute beside communication takes so many times as long.
    skew : float
        -1 to 1. A row at the share x of the way costs 1 + skew (2 x - 1) times the mean row's compute: 0
        where all cost the same, 1 for causal attention alone of as many queries as keys, in between with a
        product behind it.
    """

    compute: float
    communication: float
    compute_overhead: float = 0.0
    communication_overhead: float = 0.0
    slowdown: float = 1.0
    skew: float = 0.0

    def __post_init__(self) -> None:
        parts = (self.compute, self.communication, self.compute_overhead, self.communication_overhead)
        if not all(math.isfinite(x) and x >= 0 for x in parts):
            raise ValueError(f"costs must be finite and at least 0: {self}")
        if not (math.isfinite(self.slowdown) and self.slowdown >= 1):
            raise ValueError(f"slowdown must be finite and at least 1, got {self.slowdown}")
        if not -1 <= self.skew <= 1:
            raise ValueError(f"skew must be from -1 to 1, got {self.skew}")


@dataclass(frozen=True)
class Schedule:
    """When each block is computed and summed: (start, end) of each, in order."""

    compute: tuple[tuple[float, float], ...]
    communication: tuple[tuple[float, float], ...]

    @property
    def time(self) -> float:
        """When the last sum is done."""
        return self.communication[-1][1]


def schedule(computes: Sequence[float], communications: Sequence[float], slowdown: float = 1.0) -> Schedule:
    """Return when each block is computed and summed, each as early as can be.

    Compute of a block starts when the one before it is computed; its sum when it is computed and the sum
    before is done. From the start of a block's compute on, the wires are busy without a gap until the sum of
    the block before ends; that long, compute goes at 1 / slowdown.

    Parameters
    ----------
    computes, communications : sequence of float
        Of each block, undisturbed. Any: with a causal mask later blocks cost more.
    slowdown : float
        phi.

    Examples
    --------
    >>> found = schedule([2.0, 2.0], [1.0, 1.0], slowdown=2.0)
    >>> found.compute, found.communication  # half a unit of work is done in the first unit of time
    (((0.0, 2.0), (2.0, 4.5)), ((2.0, 3.0), (4.5, 5.5)))
    """
    if len(computes) != len(communications) or not computes:
        raise ValueError(
            f"{len(computes)} computes and {len(communications)} sums: need as many, at least one"
        )
    now = wires = 0.0
    work, sums = [], []
    for compute, communication in zip(computes, communications, strict=True):
        beside = max(wires - now, 0.0)  # while the wires are busy
        length = min(compute * slowdown, compute + beside * (1 - 1 / slowdown))
        work.append((now, now + length))
        now += length
        begin = max(now, wires)
        wires = begin + communication
        sums.append((begin, wires))
    return Schedule(tuple(work), tuple(sums))


def work(share: float, skew: float) -> float:
    """Return W(x), what part of the compute the first rows take, x = `share` of them.

    Examples
    --------
    >>> work(0.5, 0.0), work(0.5, 1.0)  # under a causal mask the first half of the queries sees a quarter
    (0.5, 0.25)
    """
    return share * (1 + skew * (share - 1))


def block_costs(sizes: Sequence[int], costs: Costs) -> tuple[list[float], list[float]]:
    """Return (c_i, m_i) of blocks: computes by their work, sums by their rows.

    Examples
    --------
    >>> block_costs([1, 3], Costs(4.0, 8.0, compute_overhead=1.0))
    ([2.0, 4.0], [2.0, 6.0])
    >>> block_costs([2, 2], Costs(4.0, 8.0, skew=1.0))
    ([1.0, 3.0], [4.0, 4.0])
    """
    rows = sum(sizes)
    done = [work(edge / rows, costs.skew) for edge in itertools.accumulate(sizes, initial=0)]
    computes = [
        costs.compute * (after - before) + costs.compute_overhead
        for before, after in itertools.pairwise(done)
    ]
    return computes, [costs.communication * size / rows + costs.communication_overhead for size in sizes]


def time(number: int, costs: Costs) -> float:
    """Return the time of `number` equal blocks, in closed form; 1 is in sequence.

    Raises
    ------
    ValueError
        With a skew equal blocks do not cost the same: `schedule` has their time.

    Examples
    --------
    >>> [round(time(n, Costs(1.0, 1.0)), 3) for n in (1, 2, 4, 1000)]  # tends to max(C, M)
    [2.0, 1.5, 1.25, 1.001]
    """
    if costs.skew and number > 1:
        raise ValueError(f"the closed form is for rows that cost the same, got a skew of {costs.skew}")
    c = costs.compute / number + costs.compute_overhead
    m = costs.communication / number + costs.communication_overhead
    return c + (number - 1) * max(m, c + (1 - 1 / costs.slowdown) * m) + m


def best_number(costs: Costs, most: int) -> int:
    """Return how many equal blocks, 1 to `most`, take the least time; the fewest of equals.

    Where compute is slower, T = n (a + s b) + (1 - s) M / n + ... with s = 1 - 1 / phi, least at
    n = sqrt((1 - s) M / (a + s b)), which is sqrt(M / o) without slowdown. Where communication is slower,
    T = n b + C / n + ..., least at sqrt(C / b). T is the larger of these two convex functions, so its least
    value lies at one of the two or where they cross; of whole numbers, beside it.

    Examples
    --------
    >>> best_number(Costs(1.0, 0.64, compute_overhead=0.01), most=100)  # sqrt(64)
    8
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    s = 1 - 1 / costs.slowdown
    C, M, a, b = costs.compute, costs.communication, costs.compute_overhead, costs.communication_overhead
    places = [1.0, float(most)]
    if a + s * b > 0:
        places.append(math.sqrt((1 - s) * M / (a + s * b)))
    if b > 0:
        places.append(math.sqrt(C / b))
    if (1 - s) * b != a:
        places.append((C - (1 - s) * M) / ((1 - s) * b - a))
    whole = {min(max(int(step), 1), most) for x in places for step in (math.floor(x), math.ceil(x))}
    return min(sorted(whole), key=lambda n: time(n, costs))


def even_sizes(rows: int, number: int) -> list[int]:
    """Return the sizes of `number` blocks that differ by one row at most.

    Examples
    --------
    >>> even_sizes(10, 4)
    [2, 3, 2, 3]
    """
    _check_number(rows, number)
    edges = [rows * i // number for i in range(number + 1)]
    return [after - before for before, after in itertools.pairwise(edges)]


def best_sizes(rows: int, number: int, costs: Costs, unit: int = 1) -> list[int]:
    """Return the sizes of `number` blocks that take the least time of all.

    T is the longest of the paths P_j (see above), and P_j <= T bounds block j's end by that of the block
    before: the further that is, the further it may be. So a time T can be kept if, and only if, it is kept by
    taking each block as far as T, and a unit for each block behind, let it. Halving the interval of T finds
    the least.

    Without rounding, all paths are then as long: the sum of each block takes just as long as compute of the
    next beside it. Rows that cost the same go down towards the last block where C is larger, and up from the
    first where M is: by M / (phi C) from block to block, without overheads. Of rows that cost ever more,
    later blocks have fewer.

    Parameters
    ----------
    rows, number : int
        `number` blocks of at least one row each.
    costs : Costs
    unit : int
        Blocks end at multiples of so many rows, the last one where the rows end.

    Raises
    ------
    ValueError
        There are fewer units of rows than blocks.

    Examples
    --------
    >>> best_sizes(700, 3, Costs(compute=2.0, communication=1.0))
    [400, 200, 100]
    >>> best_sizes(700, 3, Costs(compute=1.0, communication=2.0))
    [100, 200, 400]
    >>> best_sizes(700, 3, Costs(compute=2.0, communication=1.0, skew=1.0), unit=10)
    [510, 150, 40]
    """
    units = -(-rows // unit)
    _check_number(rows, number, unit)
    overheads = number * (costs.compute_overhead + costs.communication_overhead)
    low, high = 0.0, costs.compute + costs.communication + overheads  # nothing overlaps
    edges = _furthest(units, number, rows / unit, costs, high * (1 + 1e-12))
    assert edges is not None  # blocks that exist take their time
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _furthest(units, number, rows / unit, costs, middle)
        if found is None:
            low = middle
        else:
            high, edges = middle, found
    ends = [min(edge * unit, rows) for edge in edges]
    return [after - before for before, after in itertools.pairwise((0, *ends))]


def _furthest(units: int, number: int, length: float, costs: Costs, limit: float) -> list[int] | None:
    """Return how far each block can reach with all P_j <= limit; None where that is impossible.

    What bounds an end, P_j and the unit that each block behind needs, is the looser the further the other
    ends are. So ends that start too far, and are moved back to their bounds until all keep them, find the
    furthest.

    Parameters
    ----------
    units : int
        Of rows; the last may be short.
    number : int
        Of blocks.
    length : float
        Of all rows, in units.
    costs : Costs
    limit : float
        T.
    """
    C, M, a, b = costs.compute, costs.communication, costs.compute_overhead, costs.communication_overhead
    ends = [0, *range(units - number + 1, units + 1)]

    def compute(end: int) -> float:
        return C * work(min(end / length, 1.0), costs.skew)

    while True:
        for j in range(1, number + 1):
            before = M * ends[j - 1] / length + (j - 1) * b  # sums of the blocks before
            room = limit - j * a - M - number * b + before / costs.slowdown  # for C W(x_j)
            ends[j] = bisect.bisect_right(range(ends[j] + 1), room, key=compute) - 1
            if ends[j] < j:
                return None
        if ends[-1] < units:
            return None
        kept = list(ends)
        for j in range(number - 1, 0, -1):
            ends[j] = min(ends[j], ends[j + 1] - 1)
        if ends == kept:
            return ends[1:]


def choose(rows: int, costs: Costs, most: int = 16, unit: int = 1) -> list[int]:
    """Return the sizes of the blocks, at most `most`, that take the least time by `schedule`.

    Of equals it takes the fewest blocks.

    Parameters
    ----------
    rows : int
    costs : Costs
    most : int
        Blocks.
    unit : int
        Blocks end at multiples of so many rows.

    Examples
    --------
    >>> choose(1000, Costs(1.0, 0.5, 0.1, 0.1))
    [666, 334]
    >>> choose(1000, Costs(1.0, 0.1, 0.5, 0.5))  # it does not pay
    [1000]
    """
    _check_number(rows, 1)
    found = [best_sizes(rows, number, costs, unit) for number in range(1, min(most, -(-rows // unit)) + 1)]
    times = [schedule(*block_costs(sizes, costs), costs.slowdown).time for sizes in found]
    least = min(times) * (1 + _ROUNDING)
    return next(sizes for sizes, taken in zip(found, times, strict=True) if taken <= least)


def slowdown(units: int, lent: int) -> float:
    """Return phi where communication holds `lent` of `units` multiprocessors.

    Examples
    --------
    >>> slowdown(132, 12)
    1.1
    """
    if not 0 <= lent < units:
        raise ValueError(f"{lent} of {units} multiprocessors cannot be lent")
    return units / (units - lent)


def _of_heads(name: str, array: np.ndarray, heads: slice) -> np.ndarray:
    """Return what a rank's heads need of an option that may have an axis of heads."""
    axis = -3 if name == "mask" else -1
    return (
        array
        if array.ndim < -axis or array.shape[axis] == 1
        else array[(..., heads) + (slice(None),) * (-axis - 1)]
    )


def _check_number(rows: int, number: int, unit: int = 1) -> None:
    if not 1 <= number <= -(-rows // unit):
        what = f"{rows} rows" if unit == 1 else f"{-(-rows // unit)} units of {unit} rows"
        raise ValueError(f"{what} cannot be cut into {number} blocks")
