"""How far a result may lie from the float64 oracle, and why: the one table of tolerances.

A fixed ``rtol`` is either too loose for easy problems, so that a lost key goes unseen, or too tight for hard
ones, such as logits of 1e4 whose float32 rounding alone moves a weight by a per mille. So the tolerance of
each output element is computed from its own problem: the rounding of the type it is stored in, plus the
first-order effect of rounding every score and every sum in the type of the accumulation.

With u the unit roundoff of the accumulation, p the weights, and D and Sk the lengths of the two sums,

    error of score j  e_j = u * ((4 + sqrt D) * scale * sum_d |q_d k_jd| * softcap' + 8 * (|terms_j| + |s_j|))
    error of the lse  u_float32 * |lse| + sum_j p_j e_j + u * (8 + sqrt Sk)
    error of out      half a unit in the last place of out
                      + sum_j p_j (|v_j| + |out|) e_j + u * (8 + sqrt Sk) * sum_j p_j (|v_j| + |out|)

Kernels that multiply pairs of bfloat16 round each weight to bfloat16, w = 2**-8, as everybody's do; tensor
cores take weights in float16, w = 2**-11. What such errors have in common scales the output, the rest carries
random signs; so out may be further off by

    w * min(|out| + 3 sqrt(sum_j p_j^2 v_j^2), sum_j p_j |v_j|)

Our own such kernels ("pairs") divide by the sum of the rounded weights. Then what errors have in common
vanishes, which makes rows with one large weight all but exact; but each weight's error counts above the line
and below, and at most ``w * (sum_j p_j |v_j| + |out|)`` is left, which is the second term of the minimum.

Kernels that multiply digits of int8 keep q and the weights (times the scale of each value) in 24 bits:
an error counts from the largest element of a row, not from the one at hand. That adds

    to e_j              u * scale * max_d |q_d| * sum_d |k_jd|
    to the error of out u * sqrt Sk * max_jc p_j |v_jc|

Weights of float16 below its smallest number are lost. With h = 2**-25, half that number, that adds

    to the error of out h * max_j p_j * sum_j |v_j|

Below 2**-126 float32 numbers are multiples of 2**-149, so products and sums are off by that at most, each:

    to the error of out (8 + sqrt Sk) * 2**-149

All of this is to first order, for small e_j. With e_j near 1 or beyond (ALiBi's slopes over billions of
positions, say), exp(e_j) moves the weight itself and the sum it is divided by, so that e_j stands for

    e_j * exp(2 e_j)

The book derives these terms in chapter 15, and `budget` has the bound that they are taken from. The square
roots say that rounding errors of a sum carry random signs; 4 and 8 leave room for the exponential, the
hyperbolic tangent and the running rescale. Storage gets exactly half a unit in the last place: a kernel
that truncates to bfloat16 instead of rounding to nearest fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Rounding:
    """Unit roundoffs of a result: of the type that stores it and of the type that accumulates it."""

    storage: float
    accumulation: float
    smallest: float  # half the smallest subnormal number of the storage
    reason: str
    weights: float = 0.0  # of the softmax weights, where they are rounded on their own
    digits: bool = False  # queries and weights are integers
    shared: bool = False  # the denominator sums the weights as they were rounded
    smallest_weight: float = 0.0  # half the smallest number of their type, where weights are rounded


#: (storage type, accumulation type) -> roundings. Nothing else in the tests knows a tolerance.
TOLERANCES = {
    ("float64", "float64"): Rounding(2**-53, 2**-53, 0.0, "the reference, summed in another order"),
    ("float32", "float64"): Rounding(2**-24, 2**-53, 2**-150, "computed in float64, rounded once"),
    ("float16", "float64"): Rounding(
        2**-11, 2**-24, 2**-25, "rounded from float64, perhaps by way of float32"
    ),
    ("bfloat16", "float64"): Rounding(
        2**-8, 2**-24, 2**-134, "rounded from float64, perhaps by way of float32"
    ),
    ("float32", "float32"): Rounding(2**-24, 2**-24, 2**-150, "products, weights and sums in float32"),
    ("float16", "float32"): Rounding(
        2**-11, 2**-24, 2**-25, "widened exactly, computed in float32, rounded once"
    ),
    ("bfloat16", "float32"): Rounding(
        2**-8, 2**-24, 2**-134, "widened exactly, computed in float32, rounded once"
    ),
    ("float16", "half weights"): Rounding(
        2**-11, 2**-24, 2**-25, "products exact, sums in float32, weights rounded to float16", weights=2**-11
    ),
    ("bfloat16", "bfloat16 weights"): Rounding(
        2**-8, 2**-24, 2**-134, "products exact, sums in float32, weights rounded to bfloat16", weights=2**-8
    ),
    ("bfloat16", "pairs"): Rounding(
        2**-8,
        2**-24,
        2**-134,
        "products exact, sums in float32, weights rounded to bfloat16, their sum too",
        weights=2**-8,
        shared=True,
    ),
}

TOLERANCES |= {
    (storage, "digits"): replace(
        TOLERANCES[storage, "float32"], reason="queries and weights in 24 bits", digits=True
    )
    for storage in ("float32", "float16", "bfloat16")
}

# Tensor cores sum products in float32 and cut off where others round, as some of them do after every four.
TOLERANCES |= {
    ("float32", "tensor"): Rounding(
        2**-24, 2**-23, 2**-126, "float32 on CUDA cores, exp2 to 2 units, denormal numbers are 0"
    ),
    ("float16", "tensor"): Rounding(
        2**-11, 2**-22, 2**-25, "products exact, sums cut off, weights rounded to float16",
        weights=2**-11, smallest_weight=2**-25,
    ),
    ("bfloat16", "tensor"): Rounding(
        2**-8, 2**-22, 2**-126, "products exact, sums cut off, weights rounded to bfloat16", weights=2**-8
    ),
    ("float16", "lanes"): Rounding(2**-11, 2**-23, 2**-25, "float32 on CUDA cores, exp2 to 2 units"),
}  # fmt: skip

#: Engines of pairs multiply pairs from this many query rows of a KV head on; below, they are float32's.
PAIRS = 17


def rounding_of(storage: str, accumulation: str, rows: int) -> Rounding:
    """Return the roundings of a result, `rows` being the query rows of a KV head."""
    if accumulation == "pairs" and (storage != "bfloat16" or rows < PAIRS):
        accumulation = "float32"
    if accumulation == "volta":  # whose tensor cores are for prefill
        accumulation = "tensor" if rows >= PAIRS or storage != "float16" else "lanes"
    return TOLERANCES[storage, accumulation]


@dataclass(frozen=True)
class Problem:
    """One call: arrays (B, H, S, D) and the keyword arguments of `fastattention.attention`."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """The oracle's answer in float64, with the tolerance of each element for one accumulation type."""

    out: np.ndarray
    lse: np.ndarray
    out_tolerance: np.ndarray
    lse_tolerance: np.ndarray


class Error(NamedTuple):
    """The largest error, in units of the tolerance, and where it is."""

    tolerances: float
    place: tuple[int, ...]
    actual: float
    expected: float


def error_in_tolerances(actual: np.ndarray, expected: np.ndarray, tolerance: np.ndarray) -> Error:
    """Return the largest error of `actual` in units of `tolerance`, with its place.

    Infinities must agree exactly, and a NaN anywhere counts as an infinite error: no expected value is NaN.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {actual.shape}, expected {expected.shape}")
    if expected.size == 0:
        return Error(0.0, (), 0.0, 0.0)
    wide = actual.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(wide - expected) / tolerance
    error[wide == expected] = 0.0
    error[~np.isfinite(wide) & (wide != expected)] = np.inf
    error[np.isnan(error)] = np.inf
    place = np.unravel_index(int(np.argmax(error)), error.shape)
    return Error(
        float(error[place]), tuple(int(i) for i in place), float(wide[place]), float(expected[place])
    )


def tolerances(
    problem: Problem,
    out: np.ndarray,
    lse: np.ndarray,
    storage: str,
    accumulation: str,
    q_len: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tolerance of every element of `out` and of `lse`; see the top of this file.

    `q_len` is the longest of the packed sequences that `problem` is one of.
    """
    group = problem.q.shape[1] // max(problem.k.shape[1], 1)
    rounding = rounding_of(storage, accumulation, group * (q_len or problem.q.shape[2]))
    u = rounding.accumulation
    weights, score_error = _weights_and_score_errors(problem, lse, rounding.digits)
    keys = problem.k.shape[2]
    values = np.abs(_finite(_per_query_head(problem, problem.v)))
    sum_error = u * (8 + np.sqrt(keys))
    size = np.abs(out)
    errors = score_error * u
    blurred = weights * errors * np.exp(2 * np.minimum(errors, 300))  # that is enough, and finite
    lse_error = blurred.sum(-1) + u * _sink_error(problem, lse)
    arithmetic = blurred @ values + lse_error[..., None] * size + sum_error * (weights @ values + size)
    if u > 2**-30:  # sums in float32
        arithmetic = arithmetic + (8 + np.sqrt(keys)) * 2.0**-149
    if rounding.digits:
        largest = (weights * values.max(-1, initial=0.0)[:, :, None, :]).max(-1, initial=0.0)[..., None]
        arithmetic = arithmetic + u * np.sqrt(keys) * largest
    if rounding.weights:
        spread = np.sqrt(weights**2 @ values**2)
        most = weights @ values + (size if rounding.shared else 0.0)
        arithmetic = arithmetic + rounding.weights * np.minimum(size + 3 * spread, most)
    if rounding.smallest_weight:
        heaviest = weights.max(-1, initial=0.0)[..., None]
        arithmetic = arithmetic + rounding.smallest_weight * heaviest * values.sum(2)[:, :, None, :]
    # What is rounded may have got past a power of two, from where units are twice as large.
    half_unit = np.where(size > 0, rounding.storage * 2.0 ** (np.frexp(size + arithmetic)[1] - 1), 0.0)
    half_unit = np.maximum(half_unit, rounding.smallest)
    out_tolerance = half_unit + (1 + rounding.storage) * arithmetic
    stored_lse = max(2**-24, u) * np.where(np.isfinite(lse), np.abs(lse), 0.0)
    return out_tolerance, stored_lse + lse_error + sum_error


def independent_attention(problem: Problem, lse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the output that follows from `lse` by this file's own reading, and each row's sum of weights.

    The sum, sink included, is 1 where `lse` is right, and 0 where a query sees no key.
    """
    weights, _ = _weights_and_score_errors(problem, lse)
    total = weights.sum(-1)
    if (sinks := problem.options.get("sinks")) is not None:
        share = np.exp(
            np.asarray(sinks, dtype=np.float64)[None, :, None] - np.where(np.isfinite(lse), lse, np.inf)
        )
        total = total + share
    return np.asarray(weights @ _finite(_per_query_head(problem, problem.v))), total


def _weights_and_score_errors(
    problem: Problem, lse: np.ndarray, digits: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax weights given the lse, and the scores' errors in units of roundoff; both (B, Hq, Sq, Sk)."""
    options = problem.options
    q = problem.q.astype(np.float64)
    k = _finite(_per_query_head(problem, problem.k))
    head_dim = q.shape[3]
    given = options.get("scale")
    scale = head_dim**-0.5 if given is None else given
    scores = scale * (q @ k.swapaxes(-1, -2))
    rounding = (4 + head_dim**0.5) * abs(scale) * (np.abs(q) @ np.abs(k).swapaxes(-1, -2))
    softcap = options.get("softcap")
    if digits:
        largest = np.abs(q).max(-1, initial=0.0)[..., None]
        rounding += abs(scale) * largest * np.abs(k).sum(-1)[:, :, None, :]
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
        rounding *= 1 - (scores / softcap) ** 2
    rounding += 8 * np.abs(scores)

    distance, seen = _distance_and_visibility(problem)
    hidden = ~np.broadcast_to(seen[:, None], scores.shape)
    if (slopes := options.get("alibi_slopes")) is not None:
        slopes = np.asarray(slopes, dtype=np.float64)
        slopes = slopes[None] if slopes.ndim == 1 else slopes
        bias = slopes[:, :, None, None] * distance[:, None]
        scores, rounding = scores + bias, rounding + 8 * np.abs(bias)
    if (mask := options.get("mask")) is not None:
        mask = np.asarray(mask)
        if mask.dtype == np.bool_:
            hidden = hidden | ~mask
        else:
            bias = mask.astype(np.float64)
            hidden = hidden | (bias == -np.inf)
            finite = np.where(np.isfinite(bias), bias, 0.0)
            scores, rounding = scores + finite, rounding + 8 * np.abs(finite)
    safe_lse = np.where(np.isfinite(lse), lse, np.inf)[..., None]
    with np.errstate(over="ignore"):
        weights = np.where(hidden, 0.0, np.exp(np.minimum(np.where(hidden, -np.inf, scores) - safe_lse, 1.0)))
    return weights, rounding


def _sink_error(problem: Problem, lse: np.ndarray) -> np.ndarray:
    """Error of the sink's part of the denominator, in units of roundoff; (B, Hq, Sq)."""
    if (sinks := problem.options.get("sinks")) is None:
        return np.zeros(lse.shape)
    sinks = np.asarray(sinks, dtype=np.float64)[None, :, None]
    safe = np.where(np.isfinite(sinks), sinks, 0.0)
    weight = np.exp(np.minimum(sinks - np.where(np.isfinite(lse), lse, np.inf), 1.0))
    return np.asarray(8 * np.abs(safe) * weight)


def _distance_and_visibility(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """j - p_i and whether position alone lets query i see key j; both (B, Sq, Sk)."""
    options = problem.options
    batch, _, q_len, _ = problem.q.shape
    k_len = problem.k.shape[2]
    lengths = _per_batch(options.get("kv_lengths"), batch, k_len)
    offsets = _per_batch(options.get("q_offset"), batch, lengths - q_len)
    query = (offsets[:, None] + np.arange(q_len))[:, :, None]
    key = np.arange(k_len)[None, None, :]
    distance = key - query
    seen = np.broadcast_to(key < lengths[:, None, None], distance.shape)
    if options.get("causal"):
        seen = seen & (distance <= 0)
    left, right = options.get("window") or (None, None)
    if left is not None and left >= 0:
        seen = seen & (distance >= -left)
    if right is not None and right >= 0:
        seen = seen & (distance <= right)
    return distance.astype(np.float64), seen


def _per_batch(given: Any, batch: int, default: Any) -> np.ndarray:
    return np.broadcast_to(np.asarray(default if given is None else given, dtype=np.int64), (batch,))


def _per_query_head(problem: Problem, x: np.ndarray) -> np.ndarray:
    """(B, Hkv, S, D) -> float64 (B, Hq, S, D): query head h reads head h // (Hq // Hkv)."""
    group = problem.q.shape[1] // max(x.shape[1], 1)
    return np.repeat(x.astype(np.float64), group, axis=1)


def _finite(x: np.ndarray) -> np.ndarray:
    """Poisoned keys are hidden ones, which must not blow up the sums of their neighbours here."""
    return np.where(np.abs(x) < 1e20, x, 0.0)
