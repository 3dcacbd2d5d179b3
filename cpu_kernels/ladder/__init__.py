"""The ladder: attention kernels from three loops upwards, one idea a step, to be read and timed.

README.md in this directory lists the steps; ``fastattention bench --ladder`` times them. Nobody's attention
runs here: `fastattention.attention` calls the library's own kernels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .. import ISAS, available_isas
from ._ladder import ffi, lib

__all__ = ["MAX_HEAD_DIM", "STEPS", "Step", "attention", "available", "closest_isa"]

#: The largest head_dim that the steps have room for.
MAX_HEAD_DIM = 256

_COMPILED = ("baseline", "avx2", "avx512")


class Step(NamedTuple):
    """A step: its number, the name of its file without the ending, and its idea in a few words."""

    number: int
    name: str
    idea: str


def _text(pointer: Any) -> str:
    return str(ffi.string(pointer).decode())


#: All steps, from the bottom up.
STEPS: tuple[Step, ...] = tuple(
    Step(number, _text(lib.ladder_name(number)), _text(lib.ladder_idea(number)))
    for number in range(lib.ladder_steps())
)


def available() -> tuple[str, ...]:
    """Return the instruction sets that the steps are compiled for and this machine can run, slowest first."""
    return tuple(isa for isa in available_isas() if isa in _COMPILED)


def closest_isa(isa: str) -> str:
    """Return the newest available instruction set of the ladder that is `isa` or older.

    The library has kernels for more instruction sets than the steps are compiled for: products of 16-bit
    numbers, which the ladder leaves alone.
    """
    if isa not in ISAS:
        raise ValueError(f"isa: expected one of {', '.join(ISAS)}, got {isa!r}")
    return [name for name in available() if ISAS.index(name) <= ISAS.index(isa)][-1]


def attention(
    step: int,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    *,
    causal: bool = False,
    isa: str | None = None,
    num_threads: int = 1,
) -> None:
    """Fill `out` with the attention of q, k and v, computed by one step.

    Parameters
    ----------
    step : int
        Number of one of `STEPS`.
    q, out : ndarray
        float32 (H, Sq, D), C-contiguous. `out` must not overlap the inputs.
    k, v : ndarray
        float32 (H, Sk, D), C-contiguous. D is a multiple of 16, at most `MAX_HEAD_DIM`; no size is 0.
    causal : bool
        Query i sees the keys j <= i + Sk - Sq. Sq must then be at most Sk, so that every query sees a key.
    isa : str, optional
        One of `available`; the newest by default.
    num_threads : int
        At least 1. Steps before ``threads`` use one.

    Raises
    ------
    TypeError, ValueError
        Before any work, naming the argument and what was expected.
    """
    if not 0 <= step < len(STEPS):
        raise ValueError(f"step: expected 0 to {len(STEPS) - 1}, got {step}")
    _check(q, k, v, out, causal)
    usable = available()
    if isa is None:
        isa = usable[-1]
    if isa not in usable:
        raise ValueError(f"isa: expected one of {', '.join(usable)}, got {isa!r}")
    if num_threads < 1:
        raise ValueError(f"num_threads: expected 1 or more, got {num_threads}")
    scores = np.empty(k.shape[1], dtype=np.float32)

    def pointer(array: np.ndarray) -> Any:
        return ffi.cast("float *", array.__array_interface__["data"][0])

    problem = ffi.new("ladder_problem *")
    problem.heads, problem.queries, problem.head_dim = q.shape
    problem.keys = k.shape[1]
    problem.q, problem.k, problem.v, problem.out = map(pointer, (q, k, v, out))
    problem.scores = pointer(scores)
    problem.scale = 1 / math.sqrt(q.shape[2])
    problem.causal, problem.threads = causal, num_threads
    if lib.ladder_attention(step, ISAS.index(isa), problem):
        raise ValueError(f"isa: this build has no ladder for {isa}")


def _check(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, causal: bool) -> None:
    for name, array in (("q", q), ("k", k), ("v", v), ("out", out)):
        if array.dtype != np.float32:
            raise TypeError(f"{name}: expected float32, got {array.dtype}")
        if array.ndim != 3 or 0 in array.shape or not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: expected a C-contiguous array (H, S, D) that is not empty, "
                f"got shape {array.shape}, strides {array.strides}"
            )
    heads, queries, head_dim = q.shape
    if head_dim % 16 or head_dim > MAX_HEAD_DIM:
        raise ValueError(f"q: expected head_dim a multiple of 16, at most {MAX_HEAD_DIM}, got {head_dim}")
    for name, array, shape in (
        ("k", k, (heads, k.shape[1], head_dim)),
        ("v", v, k.shape),
        ("out", out, q.shape),
    ):
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected an array that can be written to")
    if any(np.may_share_memory(out, array) for array in (q, k, v)):
        raise ValueError("out: expected memory of its own, got an overlap with q, k or v")
    if causal and queries > k.shape[1]:
        raise ValueError(
            f"causal: expected no more queries than keys, got {queries} queries and {k.shape[1]} keys"
        )
