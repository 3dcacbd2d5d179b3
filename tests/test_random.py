"""Everything combined at random: seeded problems of all options, sizes, layouts and thread counts at once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from .cases import Generator, Options, Sizes, as_mask, solve
from .conftest import Engine
from .layouts import LAYOUTS, relaid
from .size_cases import HEAD_DIMS
from .tolerances import DTYPES, Expected, Problem

COUNT = 200


def _length(rng: Generator, largest: int) -> int:
    """Short, near a tile's edge, or anything."""
    kind = rng.integers(3)
    if kind == 0:
        return int(rng.integers(1, 18))
    if kind == 1:
        return int(rng.choice([24, 48, 64, 96, 128, 192]) + rng.integers(-1, 2))
    return int(rng.integers(1, largest))


def _sizes(rng: Generator) -> Sizes:
    kv_heads, group = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3, 4, 8]))
    d, v_dim = (int(x) for x in rng.choice(HEAD_DIMS, 2))
    return Sizes(
        int(rng.integers(1, 4)), kv_heads * group, kv_heads, _length(rng, 230), _length(rng, 300), d, v_dim
    )


def _maybe(rng: Generator, chance: float) -> bool:
    return bool(rng.random() < chance)


def draw_options(rng: Generator, n: Sizes) -> Options:
    """Any options, each absent more often than not."""
    options: dict[str, Any] = {}
    if _maybe(rng, 0.5):
        options["causal"] = True
    if _maybe(rng, 0.3):
        left, right = (int(x) for x in rng.integers(-1, n.k_len + 2, 2))
        options["window"] = (left if left >= 0 else None, right)
    if _maybe(rng, 0.3):
        options["q_offset"] = rng.integers(-n.q_len, n.k_len + 1, n.batch)
    if _maybe(rng, 0.4):
        options["kv_lengths"] = rng.integers(0, n.k_len + 1, n.batch)
    if _maybe(rng, 0.4):
        shape = [size if _maybe(rng, 0.6) else 1 for size in n.scores]
        mask = as_mask(rng, rng.standard_normal(shape), np.bool_ if _maybe(rng, 0.5) else np.float32)
        if mask.dtype != np.bool_ and _maybe(rng, 0.5):
            mask[rng.random(shape) < 0.3] = -np.inf
        options["mask"] = mask
    if _maybe(rng, 0.3):
        shape = [n.q_heads] if _maybe(rng, 0.5) else [n.batch, n.q_heads]
        options["alibi_slopes"] = (rng.standard_normal(shape) * 0.2).astype(np.float32)
    if _maybe(rng, 0.3):
        options["softcap"] = float(rng.choice([0.7, 5.0, 40.0]))
    if _maybe(rng, 0.3):
        options["sinks"] = (rng.standard_normal(n.q_heads) * 3).astype(np.float32)
    if _maybe(rng, 0.3):
        options["scale"] = float(rng.choice([0.05, 0.5, 3.0]))
    return options


@lru_cache(maxsize=4)
def draw(seed: int, accumulation: str) -> tuple[Problem, Expected, str]:
    """Return one problem, what to expect of it, and a line that says what it is."""
    rng = np.random.default_rng(seed)
    n = _sizes(rng)
    dtype = ("float32", "float16", "bfloat16")[seed % 3]
    options = draw_options(rng, n)
    sharpness = float(rng.choice([1.0, 1.0, 6.0]))
    q = sharpness * rng.standard_normal((n.batch, n.q_heads, n.q_len, n.head_dim))
    k = rng.standard_normal((n.batch, n.kv_heads, n.k_len, n.head_dim))
    v = rng.standard_normal((n.batch, n.kv_heads, n.k_len, n.v_dim))
    for b, length in enumerate(options.get("kv_lengths", ())):
        k[b, :, length:] = v[b, :, length:] = np.nan
    names = [str(name) for name in rng.choice(list(LAYOUTS), 3)]
    q, k, v = (relaid(x.astype(DTYPES[dtype]), name) for x, name in zip((q, k, v), names, strict=True))
    problem = Problem(q, k, v, options)
    return problem, solve(problem, dtype, accumulation), f"{n} {dtype} {names} {options.keys()}"


@pytest.mark.parametrize("seed", range(COUNT))
def test_random(seed: int, engine: Engine) -> None:
    problem, expected, text = draw(seed, engine.accumulation)
    print(text)  # shown when the test fails
    engine.check(problem, expected, num_threads=1 + seed % 3)
