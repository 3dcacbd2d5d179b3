"""How large the error of attention can be at most: a bound that holds for any signs of the roundings.

The book derives it step by step ("How large may the error be?"). With u the unit roundoff of float32,
p_j the weights, s_j the scores, m and R the largest score and the range of all, S_j = scale sum_d |q_d k_jd|,
to first order in u:

    relative error of weight j    t_j = u ((D + 5) S_j + 3 (m - s_j) + 80 + 4 R
                                           + parts (max_j |s_j| + ln Sk + 3))
    error of out                  half a unit in the last place of out
                                  + sum_j p_j t_j (|v_j| + |out|)
                                  + u (C_out sum_j p_j |v_j| + C_sum |out| + 3 |out|)

C_out and C_sum count the additions that a product or a weight passes through before the sum is done, as
`Chains` says. Weights rounded to a half type of unit roundoff w add ``w (sum_j p_j |v_j| + |out|)``; queries
and weights in 24 bits add ``u scale max_d |q_d| sum_d |k_jd|`` to t_j and ``u Sk max_jc p_j |v_jc|`` to the
error of out.

`tolerances` asks for less: that errors carry random signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["FLOAT32", "Chains", "Row", "chains_of", "worst_case"]

FLOAT32 = 2.0**-24  # unit roundoff

_ASIDE = 4096  # keys after which prefill puts its sums aside: ASIDE_KEYS in tiling.hpp
_PAIRS = ("avx512_bf16", "amx")


@dataclass(frozen=True)
class Chains:
    """How many additions, at most, a term goes through.

    Attributes
    ----------
    output : int
        A product of weight and value.
    weights : int
        A weight on its way into the denominator.
    parts : int
        Parts of the keys whose results are merged; 0 where there is only one.
    """

    output: int
    weights: int
    parts: int


@dataclass(frozen=True)
class Row:
    """Some query rows of one KV head, in float64: q (S, D), k (Sk, D), v (Sk, Dv), out (S, Dv), lse (S,)."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    out: np.ndarray
    lse: np.ndarray
    scale: float

    @cached_property
    def scores(self) -> np.ndarray:
        """(S, Sk)."""
        return np.asarray(self.scale * (self.q @ self.k.T))

    @cached_property
    def weights(self) -> np.ndarray:
        """p, (S, Sk)."""
        return np.asarray(np.exp(self.scores - self.lse[:, None]))

    @cached_property
    def values(self) -> np.ndarray:
        """|v|, (Sk, Dv)."""
        return np.asarray(np.abs(self.v))

    @cached_property
    def mass(self) -> np.ndarray:
        """sum_j p_j |v_j|, (S, Dv)."""
        return np.asarray(self.weights @ self.values)

    @cached_property
    def blurred(self) -> tuple[np.ndarray, np.ndarray]:
        """sum_j p_j t_j |v_j| and sum_j p_j t_j in u, without parts and digits; (S, Dv) and (S, 1)."""
        top = self.scores.max(-1, keepdims=True)
        spread = top - self.scores.min(-1, keepdims=True)
        error = (self.q.shape[1] + 5) * abs(self.scale) * (np.abs(self.q) @ np.abs(self.k).T)
        error += 3 * (top - self.scores) + 80 + 4 * spread
        error *= self.weights
        return error @ self.values, error.sum(-1, keepdims=True)

    @cached_property
    def blurred_by_digits(self) -> tuple[np.ndarray, np.ndarray]:
        """The same for what queries of 24 bits add."""
        largest = np.abs(self.q).max(-1, keepdims=True)
        error = self.weights * (abs(self.scale) * largest * np.abs(self.k).sum(-1)[None, :])
        return error @ self.values, error.sum(-1, keepdims=True)


def chains_of(plan: Mapping[str, Any], kv_dtype: str, keys: int, rows: int) -> Chains:
    """Return the chains of a CPU kernel.

    Parameters
    ----------
    plan : mapping
        What `cpu_kernels.explain` returns.
    kv_dtype : str
        "float32", "float16", "bfloat16" or "int8".
    keys : int
        Sk.
    rows : int
        Query rows of a KV head.
    """
    parts = int(plan["splits"]) if plan["splits"] > 1 else 0
    split, tile = min(keys, int(plan["key_split"])), min(keys, int(plan["key_tile"]))
    tiles = -(-split // tile)
    blocked = tile + tiles
    if not plan["decode"]:
        if plan["isa"] in _PAIRS:
            return Chains(split + parts, blocked + parts, parts)  # tiles of sums go on
        if plan["key_split"] >= 2 * _ASIDE:
            near = -(-min(split, _ASIDE + tile) // tile)
            blocked = tile + near + -(-split // _ASIDE)
        return Chains(blocked + parts, blocked + parts, parts)
    few = 10 if plan["lanes"] >= 16 else 8
    goes_on = kv_dtype in ("float16", "bfloat16") and (rows <= few or plan["isa"] == "amx")
    # With more rows a lane adds up every fourth weight of all keys.
    weights = split // 4 + 4 if rows > few and plan["isa"] not in ("amx", "avx512_vnni") else blocked
    return Chains((split if goes_on else blocked) + parts, weights + parts, parts)


def worst_case(
    row: Row,
    chains: Chains,
    storage: float,
    *,
    weights: float = 0.0,
    digits: bool = False,
) -> np.ndarray:
    """Return the largest error that each element of the output can have, (S, Dv), to first order.

    Parameters
    ----------
    row : Row
    chains : Chains
    storage : float
        Unit roundoff of the output's type: 2**-24, 2**-11 or 2**-8.
    weights : float
        Unit roundoff of the softmax weights, where they are rounded on their own.
    digits : bool
        Queries and weights are integers of 24 bits.
    """
    size = np.abs(row.out)
    above, below = row.blurred
    if chains.parts:
        largest = np.abs(row.scores).max(-1, keepdims=True)
        of_parts = chains.parts * (largest + np.log(len(row.k)) + 3)
        above, below = above + of_parts * row.mass, below + of_parts
    error = chains.output * row.mass
    if digits:
        above, below = above + row.blurred_by_digits[0], below + row.blurred_by_digits[1]
        heaviest = (row.weights * row.values.max(-1)[None, :]).max(-1, keepdims=True)
        error = error + len(row.k) * heaviest
    error = FLOAT32 * (above + (below + chains.weights + 3) * size + error)
    error = error + weights * (row.mass + size)
    half_unit = storage * 2.0 ** (np.frexp(size)[1] - 1)
    return np.asarray(half_unit + (1 + storage) * error)
