"""Attention and output projection with heads split over ranks; AllReduce in tiles.

Each rank holds its heads' q, k, v and its rows of the output matrix. The sequence is worked on in blocks:
while the sum of one block over ranks is under way, the next is computed. `reference.tiling_allreduce` has the
algorithm, the schedule and the choice of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..arrays import BFLOAT16
from ..attention import attention
from ..reference.tiling_allreduce import Costs, choose, even_sizes
from .communicator import Communicator, Handle, agree
from .measure_allreduce import grain, measure, settle

__all__ = ["measured_costs", "overlapped", "projected_attention"]

_MOST_BLOCKS = 16
_OPTIONS = (
    "causal", "window", "mask", "alibi_slopes", "scale", "softcap", "sinks", "kv_lengths", "q_offset",
    "backend", "num_threads",
)  # fmt: skip

_TURN = 0.002  # seconds: shorter calls are timed several at a time

# Sizes of blocks by group of ranks, then by what was asked: measured once.
_settled: WeakKeyDictionary[Any, dict[Any, list[int]]] = WeakKeyDictionary()


def projected_attention(
    q: Any,
    k: Any,
    v: Any,
    w_out: Any,
    communicator: Communicator,
    *,
    blocks: int | Sequence[int] | Costs | None = None,
    **options: Any,
) -> Any:
    """Compute attention of this rank's heads, its output projection, and the sum over all ranks.

    Parameters
    ----------
    q, k, v : array
        (B, Hq / R, Sq, D), (B, Hkv / R, Sk, D), (B, Hkv / R, Sk, Dv): this rank's heads, NumPy's or CuPy's as
        `communicator.xp` is, of the dtypes that `attention` takes.
    w_out : array
        (Hq / R * Dv, hidden), q's dtype: this rank's rows of the output matrix.
    communicator : Communicator
        All its R ranks make this call together.
    blocks : int, sequence of int, Costs, optional
        How many blocks of nearly equal size; or the rows of each; or what `reference.tiling_allreduce` is to
        choose by. By default costs are measured once for each kind of call, the blocks that they speak for
        are timed, and the fastest are kept (some sixty calls' time in all).
    **options
        Of `attention`, but `return_lse` and `out`: those with an axis of heads for this rank's heads.

    Returns
    -------
    array
        (B, Sq, hidden) of q's dtype, the same on every rank. In CPU memory, half precision is multiplied and
        summed in float32.

    Raises
    ------
    TypeError, ValueError
        On every rank, before any work: an argument that does not fit, more blocks than rows, or ranks that
        disagree on shapes, dtypes, blocks or options; the message says which rank has what.
    """
    problem = None
    facts: dict[str, str] = {}
    try:
        _check(q, k, v, w_out, communicator, options)
        facts = _facts(q, k, v, w_out, options)
        if isinstance(blocks, Costs):
            facts["blocks"] = repr(blocks)
        elif blocks is not None:
            blocks = _sizes(blocks, q.shape[2])
            facts["blocks"] = repr(blocks)
    except (TypeError, ValueError) as error:
        problem = str(error)
    agree(communicator, facts, problem)

    if isinstance(blocks, Costs):
        sizes = choose(q.shape[2], blocks, _MOST_BLOCKS, grain(q.shape[2]))
    elif blocks is not None:
        sizes = list(blocks)  # type: ignore[arg-type]
    elif communicator.size == 1:
        sizes = [q.shape[2]]
    else:
        settled = _settled.setdefault(communicator, {})
        key = tuple(facts.items())
        if key not in settled:
            settled[key] = _settle(q, k, v, w_out, communicator, options)
        sizes = settled[key]
    return _run(q, k, v, w_out, communicator, sizes, options)


def measured_costs(q: Any, k: Any, v: Any, w_out: Any, communicator: Communicator, **options: Any) -> Costs:
    """Measure what `projected_attention` would choose its blocks by; all ranks together.

    Parameters
    ----------
    q, k, v, w_out, communicator, **options
        As there.

    Returns
    -------
    Costs
        In seconds, the slowest rank's.
    """
    _check(q, k, v, w_out, communicator, options)
    return _measure(q, k, v, w_out, communicator, options)


def overlapped(
    compute: Callable[[int, int, Any], None], out: Any, sizes: Sequence[int], communicator: Communicator
) -> None:
    """Fill `out` block by block, the sum over ranks of each beside the compute of those behind it.

    Parameters
    ----------
    compute : callable
        ``compute(start, stop, rows)`` writes this rank's term for rows start to stop.
    out : array
        (rows, hidden), C-contiguous, of a dtype that the communicator sums.
    sizes : sequence of int
        Rows of each block; together all.
    communicator : Communicator
    """
    sums: list[Handle] = []
    start = 0
    for size in sizes:
        block = out[start : start + size]
        compute(start, start + size, block)
        for under_way in sums:
            under_way.poll()
        sums.append(communicator.all_reduce_start(block))
        start += size
    for under_way in sums:
        under_way.wait()


def _run(
    q: Any,
    k: Any,
    v: Any,
    w_out: Any,
    communicator: Communicator,
    sizes: Sequence[int],
    options: dict[str, Any],
) -> Any:
    """Compute and sum; sequences of the batch side by side in a block, so that each block is contiguous."""
    batch, _, rows, _ = q.shape
    xp, hidden = communicator.xp, w_out.shape[1]
    out = xp.empty((rows * batch, hidden), communicator.sum_dtype(q.dtype))  # block by block
    step = projection(q, k, v, w_out, communicator, options)
    overlapped(step, out, [size * batch for size in sizes], communicator)
    if batch == 1:
        return out.reshape(1, rows, hidden).astype(q.dtype, copy=False)
    result = xp.empty((batch, rows, hidden), q.dtype)
    start = 0
    for size in sizes:
        block = out[start * batch : (start + size) * batch]
        result[:, start : start + size] = block.reshape(batch, size, hidden)
        start += size
    return result


def projection(
    q: Any, k: Any, v: Any, w_out: Any, communicator: Communicator, options: dict[str, Any]
) -> Callable[[int, int, Any], None]:
    """Return what computes this rank's term for some rows, as `overlapped` calls it."""
    xp, batch = communicator.xp, q.shape[0]
    heads, rows, v_dim = q.shape[1], q.shape[2], v.shape[3]
    dtype = communicator.sum_dtype(q.dtype)
    weights = w_out.astype(dtype, copy=False)
    own = dict(options)
    mask = own.pop("mask", None)
    lengths = own.get("kv_lengths")
    offset = own.pop("q_offset", None)
    if offset is None:  # of row 0: bottom-right aligned
        offset = k.shape[2] - rows if lengths is None else np.asarray(_host(lengths)) - rows
    else:
        offset = _host(offset)

    def compute(start: int, stop: int, out: Any) -> None:
        first, last = start // batch, stop // batch
        mixed = xp.empty((batch, last - first, heads, v_dim), q.dtype)
        part = mask if mask is None or mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., first:last, :]
        attention(
            q[:, :, first:last],
            k,
            v,
            out=mixed.transpose(0, 2, 1, 3),
            mask=part,
            q_offset=offset + first,
            **own,
        )
        term = mixed.reshape(stop - start, heads * v_dim).astype(dtype, copy=False)
        xp.matmul(term, weights, out=out)

    return compute


def _measure(
    q: Any, k: Any, v: Any, w_out: Any, communicator: Communicator, options: dict[str, Any]
) -> Costs:
    batch, _, rows, _ = q.shape
    shape = (rows * batch, w_out.shape[1])
    out = communicator.xp.zeros(shape, communicator.sum_dtype(q.dtype))
    step = projection(q, k, v, w_out, communicator, options)
    return measure(step, out, communicator, unit=batch, least=_TURN)


def _settle(
    q: Any, k: Any, v: Any, w_out: Any, communicator: Communicator, options: dict[str, Any]
) -> list[int]:
    """Measure, time what the costs speak for, and return the fastest blocks."""

    def run(sizes: Sequence[int]) -> None:
        _run(q, k, v, w_out, communicator, sizes, options)

    costs = _measure(q, k, v, w_out, communicator, options)
    return settle(run, q.shape[2], costs, communicator, most=_MOST_BLOCKS, least=_TURN)


def _sizes(blocks: Any, rows: int) -> list[int]:
    """Return the rows of each block."""
    if isinstance(blocks, (int, np.integer)) and not isinstance(blocks, bool):
        if not 1 <= blocks <= rows:
            raise ValueError(f"blocks: expected 1 to Sq = {rows} of them, got {blocks}")
        return even_sizes(rows, int(blocks))
    if not isinstance(blocks, Sequence) or isinstance(blocks, str):
        raise TypeError(f"blocks: expected an int, sizes, Costs, or None; got {type(blocks).__name__}")
    sizes = [int(size) for size in blocks]
    if min(sizes, default=0) < 1 or sum(sizes) != rows:
        raise ValueError(f"blocks: expected sizes of at least 1 that add up to Sq = {rows}, got {sizes}")
    return sizes


def _check(q: Any, k: Any, v: Any, w_out: Any, communicator: Communicator, options: dict[str, Any]) -> None:
    """Raise for what is seen on one rank; what concerns attention alone, `attention` checks on no rows."""
    xp = communicator.xp
    for name, array, axes in (("q", q, 4), ("k", k, 4), ("v", v, 4), ("w_out", w_out, 2)):
        if not isinstance(array, xp.ndarray):
            raise TypeError(f"{name}: expected an array of {xp.__name__}, got {type(array).__name__}")
        if array.ndim != axes:
            raise ValueError(f"{name}: expected {axes} axes, got shape {array.shape}")
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise TypeError(f"{unknown[0]}: no option of projected_attention; it takes {', '.join(_OPTIONS)}")
    if w_out.dtype != q.dtype:
        raise TypeError(f"w_out: expected q's dtype {q.dtype}, got {w_out.dtype}")
    expected = q.shape[1] * v.shape[3]
    if w_out.shape[0] != expected or w_out.shape[1] < 1:
        raise ValueError(f"w_out: expected (Hq Dv, hidden) = ({expected}, 1 or more), got {w_out.shape}")
    if q.shape[0] < 1 or q.shape[2] < 1:
        raise ValueError(f"q: expected at least one sequence and one query, got shape {q.shape}")
    if xp is not np and q.dtype == BFLOAT16:
        raise TypeError("q: CuPy multiplies no matrices of bfloat16; expected float16 or float32")
    mask = options.get("mask")
    if mask is not None:
        full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        try:
            np.broadcast_shapes(mask.shape, full)
        except (AttributeError, ValueError):
            raise ValueError(f"mask: expected an array that broadcasts to {full}") from None
    # The last row alone passes through the same gate as all: one query, cheap beside what follows.
    own = {name: option for name, option in options.items() if name not in ("mask", "q_offset")}
    last = None if mask is None or mask.ndim < 2 else mask[..., -1:, :]
    attention(
        q[:, :, -1:], k, v, mask=mask if last is None else last, q_offset=options.get("q_offset"), **own
    )


def _facts(q: Any, k: Any, v: Any, w_out: Any, options: dict[str, Any]) -> dict[str, str]:
    """Return what must be the same on every rank, as text."""
    facts = {name: f"{x.dtype} {x.shape}" for name, x in (("q", q), ("k", k), ("v", v), ("w_out", w_out))}
    for name in _OPTIONS:
        option = options.get(name)
        if name == "num_threads" or option is None:
            continue
        shape = getattr(option, "shape", None)
        facts[name] = repr(option) if shape is None or shape == () else f"{option.dtype} {shape}"
    return facts


def _host(array: Any) -> Any:
    """Return a small array in CPU memory, an int as it is."""
    return array.get() if hasattr(array, "get") else array if isinstance(array, int) else np.asarray(array)
