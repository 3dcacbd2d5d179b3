"""A call that is too large for one launch, as several that are not: each a slice of the same arrays.

A grid has at most `MAX_GRID` CTAs along y (heads, in decode times blocks of rows) and z (sequences). Larger
calls are halved until they fit, by sequences first, then by KV heads, queries, and query heads. No result
depends on another's, and the slices are views, so nothing is computed twice or copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .choose import Configuration, grid

__all__ = ["MAX_GRID", "Call", "portions", "sizes"]

#: CTAs along the y and z axes of a grid.
MAX_GRID = 65535

#: The arguments of `gpu.attention` by name.
Call = dict[str, Any]


def sizes(call: Call) -> dict[str, int]:
    """Return the sizes of a call as `grid` takes them."""
    q, v = call["q"], call["v"]
    if call["cu_seqlens_q"] is None:
        batch, q_heads, q_len, _ = q.shape
    else:
        batch, q_heads, q_len = len(call["cu_seqlens_q"]) - 1, q.shape[1], call["max_seqlen_q"]
    return {"batch": batch, "q_heads": q_heads, "kv_heads": v.shape[1], "q_len": q_len}


def portions(configuration: Configuration, call: Call, most: int = MAX_GRID) -> Iterator[Call]:
    """Yield the calls, each of which one launch takes, that together are `call`.

    Raises
    ------
    ValueError
        Packed queries of one head, whose rows no slice can cut, are too many for decode's kernels;
        `configure` gives these only few rows of packed sequences.
    """
    n = sizes(call)
    _, y, z = grid(configuration, **n)
    if y <= most and z <= most:
        yield call
        return
    halves: tuple[Call, Call]
    if z > most:
        halves = _halves(_sequences, call, n["batch"])
    elif n["kv_heads"] > 1:
        halves = _halves(_kv_heads, call, n["kv_heads"])
    elif configuration.entry == "decode" and n["q_len"] > 1 and call["cu_seqlens_q"] is None:
        halves = _halves(_queries, _with_offsets(call), n["q_len"])
    elif n["q_heads"] > 1:
        halves = _halves(_query_heads, call, n["q_heads"])
    else:
        raise ValueError(f"q: one head of packed sequences takes {y} CTAs, a launch takes {most}")
    for half in halves:
        yield from portions(configuration, half, most)


def _halves(cut: Any, call: Call, length: int) -> tuple[Call, Call]:
    return {**call, **cut(call, 0, length // 2)}, {**call, **cut(call, length // 2, length)}


def _each(call: Call, names: tuple[str, ...], index: Any) -> Call:
    return {name: call[name][index] for name in names if call[name] is not None}


def _sequences(call: Call, first: int, past: int) -> Call:
    these = slice(first, past)
    if call["cu_seqlens_q"] is not None:  # which count rows of the whole arrays: those stay
        part = _each(call, ("cu_seqlens_q", "cu_seqlens_k"), slice(first, past + 1))
    else:
        part = _each(call, ("q", "out", "lse", "mask"), these)
        if call["block_table"] is None:  # else k and v are pools, which all sequences share
            part |= _each(call, ("k", "v", "k_scales", "v_scales"), these)
    part |= _each(call, ("kv_lengths", "q_offsets", "block_table"), these)
    slopes = call["alibi_slopes"]
    return part | ({"alibi_slopes": slopes[these]} if slopes is not None and slopes.ndim == 2 else {})


def _kv_heads(call: Call, first: int, past: int) -> Call:
    group = call["q"].shape[1] // call["v"].shape[1]
    return _query_heads(call, first * group, past * group) | _each(
        call, ("k", "v", "k_scales", "v_scales"), (slice(None), slice(first, past))
    )


def _query_heads(call: Call, first: int, past: int) -> Call:
    these = slice(first, past)
    part = _each(call, ("q", "out", "lse", "mask"), (slice(None), these))
    slopes = call["alibi_slopes"]  # kernels take them without gaps
    part |= {} if slopes is None else {"alibi_slopes": slopes[..., these].copy()}
    return part | _each(call, ("sinks",), these)


def _queries(call: Call, first: int, past: int) -> Call:
    part = _each(call, ("q", "out", "lse", "mask"), (slice(None), slice(None), slice(first, past)))
    return part | {"q_offsets": call["q_offsets"] + first}


def _with_offsets(call: Call) -> Call:
    """Say where the first query stands: the default counts from the last one, which a part may lack."""
    if call["q_offsets"] is not None:
        return call
    batch, _, q_len, _ = call["q"].shape
    lengths = call["kv_lengths"]
    if lengths is None:
        longest = call["k"].shape[2] if call["block_table"] is None else call["max_seqlen_k"]
        lengths = np.full(batch, longest, np.int64)
    return {**call, "q_offsets": lengths - q_len}
