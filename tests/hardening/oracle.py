"""What attention over a cache's rows must give: the rows as they are kept, and the float64 specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from fastattention.reference import quantize

import fastattention

from ..cases import solve
from ..conftest import Engine
from ..tolerances import DTYPES, Expected, Problem

#: How a cache may keep rows.
KEPT = ("float32", "float16", "bfloat16", "int8")


def rounded(x: np.ndarray, kept: str) -> tuple[np.ndarray, ...]:
    """Return rows (..., D) as a cache keeps them: one plane, or of int8 the integers and their scales."""
    if kept == "int8":
        return quantize.quantize(x)
    return (x.astype(DTYPES[kept]),)


def meant(planes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the rows that such planes stand for."""
    return quantize.dequantize(*planes) if len(planes) == 2 else planes[0]


def query_dtypes(kept: str) -> tuple[str, ...]:
    """Return the types of queries that a cache takes."""
    return ("float32", "float16", "bfloat16") if kept == "int8" else tuple({"float32": 0, kept: 0})


def dtype_name(x: np.ndarray) -> str:
    """Return the name of a dtype as the table of tolerances has it."""
    return "bfloat16" if x.dtype == ml_dtypes.bfloat16 else x.dtype.name


def denormals_lost(answer: Expected, v: np.ndarray) -> Expected:
    """Allow for denormal numbers, which count as 0: a weight, its product with a scale of int8, a sum."""
    values = np.abs(v.astype(np.float64))
    largest = values.max(initial=0.0, where=np.isfinite(values))
    return replace(answer, out_tolerance=answer.out_tolerance + 2.0**-126 * (1 + v.shape[2] * largest))


def expected(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, kept: str, options: dict[str, Any], isa: str | None = None
) -> Expected:
    """Return the answer and its tolerances for the kernels of an instruction set.

    Parameters
    ----------
    q, k, v : ndarray
        (B, Hq, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv); k and v as `meant` returns them.
    kept : str
        How k and v were kept.
    options : dict
        Of `fastattention.attention`.
    isa : str, optional
        The instruction set; default `fastattention.get_isa`.
    """
    engine = Engine("cpu", isa or fastattention.get_isa())
    accumulation = engine.accumulation
    if kept == "int8":
        accumulation = engine.accumulation_of_int8(q.shape[1] // k.shape[1] * q.shape[2])
    answer = solve(Problem(q, k, v, options), dtype_name(q), accumulation)
    return denormals_lost(answer, v)
