"""The shared cases: each names one problem that a kernel may get wrong; every backend and ISA answers all.

Sizes sit on purpose around the tiles of the kernels: query blocks of 8, 24, 48 and 192 rows, key tiles of
64, 96 and 128, key groups of 4, 6 and 8, and the 8 to 16 rows where decode hands over to prefill.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .tolerances import DTYPES, Expected, Problem, tolerances

Options = dict[str, Any]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
Generator = np.random.Generator


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes: q (B, Hq, Sq, D), k (B, Hkv, Sk, D), v (B, Hkv, Sk, Dv)."""

    batch: int = 2
    q_heads: int = 4
    kv_heads: int = 2
    q_len: int = 53
    k_len: int = 150
    head_dim: int = 20
    v_dim: int = 24

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """The shape of the scores and of a full mask, (B, Hq, Sq, Sk)."""
        return self.batch, self.q_heads, self.q_len, self.k_len


@dataclass(frozen=True)
class Case:
    """A recipe for one problem: sizes, options drawn for them, what is done to the arrays before rounding."""

    name: str
    sizes: Sizes = Sizes()
    options: Callable[..., Options] = lambda rng, n: {}
    arrays: Callable[..., tuple[np.ndarray, ...]] = lambda rng, n, qkv: qkv

    def problem(self, dtype: str) -> Problem:
        """Draw the arrays, always the same ones, rounded to `dtype`."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        n = self.sizes
        q = rng.standard_normal((n.batch, n.q_heads, n.q_len, n.head_dim))
        k = rng.standard_normal((n.batch, n.kv_heads, n.k_len, n.head_dim))
        v = rng.standard_normal((n.batch, n.kv_heads, n.k_len, n.v_dim))
        options = self.options(rng, n)
        q, k, v = self.arrays(rng, n, (q, k, v))
        with np.errstate(over="ignore", invalid="ignore"):
            q, k, v = (x.astype(DTYPES[dtype]) for x in (q, k, v))
        return Problem(q, k, v, options)


@lru_cache(maxsize=64)
def solved(case: Case, dtype: str, accumulation: str) -> tuple[Problem, Expected]:
    """Return the problem and what to expect; remembered, because every engine asks for it in turn."""
    problem = case.problem(dtype)
    return problem, solve(problem, dtype, accumulation)


def solve(problem: Problem, dtype: str, accumulation: str) -> Expected:
    """Return the oracle's answer with its tolerances."""
    from fastattention.reference import standard

    out, lse = standard.attention(problem.q, problem.k, problem.v, **problem.options)
    return Expected(out, lse, *tolerances(problem, out, lse, dtype, accumulation))


PREFILL = Sizes()
DECODE = Sizes(q_len=3)


def options(**fixed: Any) -> Callable[[Generator, Sizes], Options]:
    """Options that need no drawing; lengths and offsets of a batch may be written as plain sequences."""
    for name in ("kv_lengths", "q_offset"):
        if isinstance(fixed.get(name), (list, tuple)):
            fixed[name] = np.array(fixed[name])
    return lambda rng, n: dict(fixed)


def gain(q: float = 1.0, k: float = 1.0, v: float = 1.0) -> Callable[[Generator, Sizes, Arrays], Arrays]:
    """Arrays multiplied by constants: large logits, constant logits, large values."""
    return lambda rng, n, x: (x[0] * q, x[1] * k, x[2] * v)


def poison(value: float, lengths: tuple[int, int]) -> Callable[[Generator, Sizes, Arrays], Arrays]:
    """Keys and values past each sequence's length overwritten with `value`."""

    def apply(rng: Generator, n: Sizes, x: Arrays) -> Arrays:
        for b, length in enumerate(lengths):
            x[1][b, :, length:] = value
            x[2][b, :, length:] = value
        return x

    return apply


def _band(lo: int, hi: int, fill: float = -np.inf) -> Callable[[Generator, Sizes], Options]:
    """A float mask of `fill` in key columns lo..hi-1: whole key tiles without one visible key."""

    def draw(rng: Generator, n: Sizes) -> Options:
        mask = rng.standard_normal((n.q_len, n.k_len)).astype(np.float32)
        mask[:, lo:hi] = fill
        return {"mask": mask}

    return draw


def _rows_hidden(value: Any) -> Callable[[Generator, Sizes], Options]:
    """Every third query of a full mask sees nothing, the first and the last one included."""

    def draw(rng: Generator, n: Sizes) -> Options:
        if value is False:
            mask = rng.random(n.scores) < 0.7
        else:
            mask = rng.standard_normal(n.scores).astype(np.float32)
        mask[:, :, ::3] = value
        mask[:, :, -1] = value
        return {"mask": mask}

    return draw


def _one_hot(rng: Generator, n: Sizes) -> Options:
    keys = rng.integers(0, n.k_len, (n.batch, n.q_heads, n.q_len))
    return {"mask": np.arange(n.k_len) == keys[..., None]}


def as_mask(rng: Generator, normal: np.ndarray, kind: type) -> np.ndarray:
    """Normal draws -> a bool mask hiding a third, or a float mask; the layout in memory stays."""
    if kind is np.bool_:
        return np.asarray(normal < 0.43)
    return normal.astype(kind)


def _first_keys_far_below(rng: Generator, n: Sizes, x: Arrays) -> Arrays:
    """Logits of -1e4 up to the middle of a tile, then ordinary ones: a stale maximum would blur these."""
    q, k, v = x
    q, k[:, :, :110] = np.abs(q), np.abs(k[:, :, :110]) * -2000.0
    return q, k, v


def _poisoned_mask(rng: Generator, n: Sizes) -> Options:
    mask = rng.standard_normal(n.scores).astype(np.float32)
    mask[0, ..., 17:] = np.nan
    mask[1, ..., 131:] = np.inf
    return {"mask": mask, "kv_lengths": np.array([17, 131])}


def _everything(rng: Generator, n: Sizes) -> Options:
    return {
        "causal": True,
        "window": (40, None),
        "softcap": 3.0,
        "alibi_slopes": np.linspace(0.01, 0.4, n.q_heads, dtype=np.float32),
        "mask": rng.standard_normal((n.q_len, n.k_len)).astype(np.float32),
        "sinks": rng.standard_normal(n.q_heads).astype(np.float32),
        "kv_lengths": np.array([61, 150]),
        "q_offset": np.array([30, 97]),
        "scale": 0.4,
    }


def _features() -> Iterator[Case]:
    yield Case("plain")

    for name, offset in {
        "default": None,
        "zero": 0,
        "negative": -5,
        "positive": 41,
        "beyond the keys": 1000,
        "far before the keys": -1000,
        "per batch": [-3, 97],
        "per batch, int32": np.array([12, -40], dtype=np.int32),
    }.items():
        yield Case(f"causal, q_offset {name}", options=options(causal=True, q_offset=offset))
    yield Case("q_offset without causal or window", options=options(q_offset=-7))

    for window in [
        (0, 0),
        (3, None),
        (None, 3),
        (5, 2),
        (-1, 0),
        (70, -1),
        (None, None),
        (129, 40),
        (0, 500),
        (2**40, 7),
        (0, 2**62),
    ]:
        yield Case(f"window {window}", options=options(window=window))
        yield Case(f"causal, window {window}", options=options(window=window, causal=True))
    yield Case("window from the top left", options=options(window=(16, 3), q_offset=0))
    yield Case("window that sees no key", options=options(window=(2, 2), q_offset=10_000))
    yield Case("window that only the last queries see", options=options(window=(2, 2), q_offset=-52))
    yield Case("window per batch", options=options(window=(9, 4), q_offset=[120, -20]))

    for lengths in [(0, 150), (1, 149), (64, 65), (128, 127), (0, 0), (96, 97), (150, 150)]:
        yield Case(f"kv_lengths {lengths}", options=options(kv_lengths=lengths))
        yield Case(f"causal, kv_lengths {lengths}", options=options(kv_lengths=lengths, causal=True))
    for value in (np.nan, np.inf, -np.inf, 1e30, -6e4):
        lengths = (17, 131)
        yield Case(f"tail of {value}", options=options(kv_lengths=lengths), arrays=poison(value, lengths))
        yield Case(
            f"tail of {value}, everything else before it",
            options=lambda rng, n: _everything(rng, n) | {"kv_lengths": np.array([17, 131])},
            arrays=poison(value, lengths),
        )
    yield Case("no key, all poison", options=options(kv_lengths=[0, 0]), arrays=poison(np.nan, (0, 0)))
    yield Case("mask poisoned past the keys", options=_poisoned_mask)
    yield Case(
        "causal from the top left past kv_lengths",
        options=options(causal=True, q_offset=0, kv_lengths=[2, 40]),
    )

    yield Case("bool mask hides rows", options=_rows_hidden(False))
    yield Case("-inf mask hides rows", options=_rows_hidden(-np.inf))
    yield Case("hidden rows with sinks", options=lambda r, n: _rows_hidden(False)(r, n) | sinks(1.0)(r, n))
    yield Case("-inf rows with softcap", options=lambda r, n: _rows_hidden(-np.inf)(r, n) | {"softcap": 2.0})
    yield Case("all hidden by a bool mask", options=options(mask=np.zeros((1, 1), dtype=np.bool_)))
    yield Case("all hidden by a float mask", options=options(mask=np.full((1, 1), -np.inf, dtype=np.float32)))
    for lo, hi in [(0, 64), (0, 96), (0, 128), (0, 149), (1, 150), (64, 128), (96, 150), (8, 12), (149, 150)]:
        yield Case(f"-inf in columns {lo} to {hi}", options=_band(lo, hi))
    lowest = float(np.finfo(np.float32).min)
    yield Case("lowest float32 in columns 0 to 128", options=_band(0, 128, lowest))
    yield Case("lowest float32 in columns 3 to 150", options=_band(3, 150, lowest))
    yield Case("-1e4 in columns 0 to 140", options=_band(0, 140, -1e4))
    hidden = np.zeros((1, 1), dtype=np.bool_)
    yield Case("NaN values, all hidden", options=options(mask=hidden), arrays=gain(v=np.nan))
    yield Case(
        "NaN values, all hidden, sinks",
        options=options(mask=hidden, sinks=np.zeros(4, np.float32)),
        arrays=gain(v=np.nan),
    )
    yield Case("one key a query", options=_one_hot)
    yield Case(
        "NaN keys behind a bool mask",
        options=options(mask=np.arange(150) % 7 != 2),
        arrays=lambda rng, n, x: (x[0], np.where(np.arange(150)[:, None] % 7 == 2, np.nan, x[1]), x[2]),
    )
    yield Case(
        "infinite keys behind causal",
        options=options(causal=True, q_offset=97 - 53),
        arrays=lambda rng, n, x: (x[0], np.where(np.arange(150)[:, None] > 97, np.inf, x[1]), x[2]),
    )

    yield Case("large logits", arrays=gain(q=40.0, k=40.0))
    yield Case("large logits, causal", options=options(causal=True), arrays=gain(q=100.0, k=20.0))
    yield Case("logits of 1e4 by scale", options=options(scale=1000.0))
    yield Case("large negative logits", arrays=lambda r, n, x: (np.abs(x[0]) * -40, np.abs(x[1]) * 40, x[2]))
    yield Case("large positive logits", arrays=lambda r, n, x: (np.abs(x[0]) * 40, np.abs(x[1]) * 40, x[2]))
    yield Case(
        "logits that grow with the key",
        arrays=lambda r, n, x: (np.abs(x[0]), np.ones_like(x[1]) * np.arange(n.k_len)[:, None] / 8, x[2]),
    )
    yield Case(
        "logits that fall with the key",
        arrays=lambda r, n, x: (np.abs(x[0]), np.ones_like(x[1]) * np.arange(n.k_len)[:, None] / -8, x[2]),
    )
    yield Case("first keys far below the others", arrays=_first_keys_far_below)
    yield Case("constant logits", arrays=gain(q=0.0))
    yield Case("constant arrays", arrays=lambda r, n, x: tuple(np.full_like(a, 0.7) for a in x))
    yield Case("large values", arrays=gain(v=10_000.0))
    yield Case("tiny values", arrays=gain(v=1e-6))
    yield Case("scale 0", options=options(scale=0.0))
    yield Case("negative scale", options=options(scale=-0.3))

    for low, high in [(0.01, 0.5), (-0.3, 0.2), (4.0, 30.0)]:
        slopes = np.linspace(low, high, 4, dtype=np.float32)
        yield Case(f"ALiBi {low} to {high}", options=options(alibi_slopes=slopes))
        yield Case(f"causal, ALiBi {low} to {high}", options=options(alibi_slopes=slopes, causal=True))
    slopes = np.linspace(-0.1, 0.3, 8, dtype=np.float32).reshape(2, 4)
    yield Case("ALiBi per batch", options=options(alibi_slopes=slopes))
    yield Case(
        "ALiBi per batch, offsets", options=options(alibi_slopes=slopes, q_offset=[-9, 300], window=(400, 5))
    )
    for offset in (2**31, -(2**31)):
        yield Case(f"ALiBi, position {offset}", options=options(alibi_slopes=slopes * 1e-8, q_offset=offset))
    yield Case("ALiBi, kv_lengths", options=options(alibi_slopes=slopes, kv_lengths=[33, 148]))

    for cap in (0.001, 0.5, 2.0, 30.0, 1000.0):
        yield Case(f"softcap {cap}", options=options(softcap=cap))
        yield Case(
            f"softcap {cap}, large logits", options=options(softcap=cap, causal=True), arrays=gain(q=900.0)
        )
    yield Case(
        "softcap below mask and ALiBi",
        options=lambda r, n: _band(0, 70)(r, n) | {"softcap": 1.5, "alibi_slopes": slopes},
    )

    for level in (0.0, 5.0, -5.0, 60.0, 1e4, -1e4, -np.inf):
        yield Case(f"sinks about {level}", options=sinks(level))
    yield Case(
        "sinks of both signs", options=options(sinks=np.array([-np.inf, 30.0, -30.0, 0.0], np.float32))
    )
    yield Case(
        "sinks, causal from -20", options=lambda r, n: sinks(2.0)(r, n) | {"causal": True, "q_offset": -20}
    )
    yield Case("sinks, large logits", options=sinks(100.0), arrays=gain(q=100.0))
    yield Case("everything", options=_everything)


def sinks(level: float) -> Callable[[Generator, Sizes], Options]:
    return lambda rng, n: {"sinks": (level + rng.standard_normal(n.q_heads)).astype(np.float32)}


def twice(cases: Iterator[Case]) -> tuple[Case, ...]:
    """Each case once with many queries and once with few, which take other paths through the kernels."""
    few = []
    many = list(cases)
    for case in many:
        sizes = replace(case.sizes, q_len=DECODE.q_len)
        few.append(replace(case, name=f"{case.name}; few queries", sizes=sizes))
    return tuple(many + few)


def _functions() -> Iterator[Case]:
    """exp and tanh alone: with one product a score no sum hides their error."""
    sizes = replace(PREFILL, head_dim=1, v_dim=2)
    for k in (0.05, 0.3, 1.0, 4.0):
        yield Case(f"exp of scores about {k}", sizes, options(scale=1.0), gain(k=k))
        yield Case(
            f"exp of positive scores about {k}",
            sizes,
            options(scale=1.0),
            lambda r, n, x, k=k: (np.abs(x[0]), np.abs(x[1]) * k, x[2]),
        )
        yield Case(f"tanh of scores about {k}", sizes, options(scale=1.0, softcap=1.0), gain(k=k))
        yield Case(
            f"tanh of scores about {k}, one key",
            sizes,
            lambda r, n: _one_hot(r, n) | {"softcap": 1.0},
            gain(k=k),
        )


FEATURES = twice(_features()) + twice(_functions())
