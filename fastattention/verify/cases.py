"""The cases: sizes at which kernels go wrong, each feature by itself, and numbers chosen to do harm.

A case makes its arrays from sizes and a seed, so that a failing one can be made again, and made smaller. Its
group is the feature that it is about; groups go from what every kernel must do to what few can, and the first
group with a failure says what breaks first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .tolerances import DTYPES, Problem

__all__ = ["FEATURES", "Case", "Sizes", "cases"]

#: What a kernel may declare, and what it means.
FEATURES = {
    "cross": "other numbers of queries than keys",
    "value_dim": "values of another dimension than keys",
    "causal": "no key after a query's own position",
    "gqa": "fewer KV heads than query heads",
    "scale": "a factor of the scores other than 1 / sqrt(D)",
    "bool_mask": "a mask of bools, True where a query may see a key",
    "float_mask": "a mask that is added to the scores, with -inf in it",
    "empty_rows": "queries that see no key give 0",
    "window": "keys at most so far before and after a query",
    "kv_lengths": "keys that count, for each sequence; NaN behind them",
    "softcap": "scores bounded by c tanh(s / c)",
    "alibi_slopes": "a bias that grows with distance",
    "sinks": "a logit in the denominator that has no value",
    "q_offset": "the position of the first query",
    "strided": "inputs of any strides, the last axis contiguous",
    "out": "writes into an array that it is given",
    "lse": "returns the log-sum-exp of each query's scores",
}

Make = Callable[["np.random.Generator", "Sizes"], dict[str, Any]]
Change = Callable[["np.random.Generator", Problem], Problem]


def fixed(**options: Any) -> Make:
    """Return the making of options that depend on nothing."""
    return lambda rng, sizes: dict(options)


@dataclass(frozen=True)
class Sizes:
    """Of a problem: q (B, Hq, Sq, D), k (B, Hkv, Sk, D), v (B, Hkv, Sk, Dv)."""

    batch: int = 1
    q_heads: int = 2
    kv_heads: int = 2
    q_len: int = 33
    k_len: int = 33
    head_dim: int = 64
    v_dim: int = 64

    def __str__(self) -> str:
        return (
            f"B {self.batch}, H {self.q_heads}/{self.kv_heads}, Sq {self.q_len}, Sk {self.k_len}, "
            f"D {self.head_dim}/{self.v_dim}"
        )


@dataclass(frozen=True)
class Case:
    """A problem to be made.

    Attributes
    ----------
    name : str
    group : str
        What it is about.
    sizes : Sizes
    needs : frozenset of str
        Features, of `FEATURES`, that a kernel must have declared.
    options : callable
        Takes a generator and sizes; returns the keyword arguments of `fastattention.attention`.
    change : callable
        Takes a generator and the problem of random numbers; returns that with other numbers.
    """

    name: str
    group: str
    sizes: Sizes
    needs: frozenset[str] = frozenset()
    options: Make = lambda rng, sizes: {}
    change: Change = lambda rng, problem: problem

    def having(self, always: Mapping[str, Any], top_left: bool) -> Case:
        """Return the case of a kernel whose calls have these options always."""
        if not always:
            return self
        needs = self.needs
        if always.get("causal") and not top_left and self.sizes.q_len > self.sizes.k_len:
            needs |= {"empty_rows"}
        return replace(self, needs=needs, options=lambda rng, n: self.options(rng, n) | dict(always))

    def make(self, dtype: str, seed: int, sizes: Sizes | None = None) -> Problem:
        """Return the problem in a data type, the same for the same seed.

        Parameters
        ----------
        dtype : str
            "float32", "float16" or "bfloat16": values are rounded to it.
        seed : int
        sizes : Sizes, optional
            Others than the case's own.
        """
        n = sizes or self.sizes
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode()), zlib.crc32(dtype.encode())])
        q = rng.standard_normal((n.batch, n.q_heads, n.q_len, n.head_dim))
        k = rng.standard_normal((n.batch, n.kv_heads, n.k_len, n.head_dim))
        v = rng.standard_normal((n.batch, n.kv_heads, n.k_len, n.v_dim))
        problem = self.change(rng, Problem(q, k, v, self.options(rng, n)))
        with np.errstate(over="ignore", invalid="ignore"):
            q, k, v = (x.astype(DTYPES[dtype]) for x in (problem.q, problem.k, problem.v))
        return Problem(q, k, v, problem.options)


def cases(
    boundaries: Sequence[int] = (),
    head_dims: Callable[[int], bool] = lambda dim: dim <= 256,
    quick: bool = False,
) -> list[Case]:
    """Return all cases, group by group, from what is simple to what is not.

    Parameters
    ----------
    boundaries : sequence of int
        Lengths of key tiles; sizes around them are tried besides the usual ones.
    head_dims : callable
        Whether a kernel takes a head dimension.
    quick : bool
        A quarter of the sizes.
    """
    found = [
        *_plain(),
        *_lengths(boundaries, quick),
        *_cross(quick),
        *_dims(quick),
        *_heads(),
        *_numbers(),
        *_scale(),
        *_causal(boundaries, quick),
        *_windows(),
        *_masks(),
        *_kv_lengths(boundaries),
        *_others(),
        *_denormals(),
    ]
    return [case for case in found if head_dims(case.sizes.head_dim) and head_dims(case.sizes.v_dim)]


def _count(queries: int) -> str:
    return "1 query" if queries == 1 else f"{queries} queries"


def _plain() -> Iterator[Case]:
    yield Case("one head, 16 tokens", "plain", Sizes(1, 1, 1, 16, 16, 64, 64))
    yield Case("one query, one key", "plain", Sizes(1, 1, 1, 1, 1, 64, 64))


def _around(boundaries: Sequence[int], quick: bool) -> list[int]:
    usual = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 193, 256, 257]
    if quick:
        usual = [1, 3, 17, 64, 65, 127, 129]
    found = {n for t in boundaries for n in (t - 1, t, t + 1, 2 * t - 1, 2 * t + 1) if 0 < n <= 2100}
    return sorted(found | set(usual))


def _lengths(boundaries: Sequence[int], quick: bool) -> Iterator[Case]:
    for n in _around(boundaries, quick):
        yield Case(f"{n} tokens", "length", Sizes(q_len=n, k_len=n))


def _cross(quick: bool) -> Iterator[Case]:
    pairs = [(1, 33), (1, 1000), (5, 97), (97, 31), (64, 129), (130, 67), (2, 513), (257, 1)]
    for q_len, k_len in pairs[:: 3 if quick else 1]:
        sizes = Sizes(q_len=q_len, k_len=k_len)
        yield Case(f"{_count(q_len)}, {k_len} keys", "cross", sizes, frozenset({"cross"}))


def _dims(quick: bool) -> Iterator[Case]:
    dims = [1, 2, 3, 5, 8, 16, 20, 24, 32, 33, 40, 63, 65, 72, 80, 96, 100, 127, 128, 129, 160, 192, 255, 256]
    for dim in dims[:: 4 if quick else 1]:
        yield Case(f"D {dim}", "head dimension", Sizes(head_dim=dim, v_dim=dim))
    for dim, v_dim in ((64, 32), (40, 72), (128, 64), (192, 128), (16, 17)):
        sizes = Sizes(head_dim=dim, v_dim=v_dim)
        yield Case(f"D {dim}, Dv {v_dim}", "value dimension", sizes, frozenset({"value_dim"}))


def _heads() -> Iterator[Case]:
    for batch, heads in ((2, 1), (1, 3), (3, 5), (7, 2)):
        yield Case(f"batch {batch}, {heads} heads", "heads", Sizes(batch, heads, heads))
    for heads, kv_heads in ((2, 1), (4, 2), (6, 3), (8, 1), (12, 4)):
        sizes = Sizes(2, heads, kv_heads)
        yield Case(f"{heads} heads on {kv_heads}", "grouped heads", sizes, frozenset({"gqa"}))


def _numbers() -> Iterator[Case]:
    """Yield numbers chosen to do harm, in a problem that every kernel takes."""
    sizes, cross = Sizes(q_len=70, k_len=70), frozenset({"cross"})

    def case(name: str, change: Change, of: Sizes = sizes, needs: frozenset[str] = frozenset()) -> Case:
        return Case(name, "numbers", of, needs, change=change)

    def times(q: float = 1.0, k: float = 1.0, v: float = 1.0) -> Change:
        return lambda rng, p: replace(p, q=q * p.q, k=k * p.k, v=v * p.v)

    def aligned(rng: np.random.Generator, p: Problem, slope: float) -> Problem:
        """Scores are slope * j for every query: the first feature of each key carries it."""
        q, k = np.zeros_like(p.q), p.k.copy()
        q[..., 0] = p.q.shape[3] ** 0.5
        k[..., 0] = slope * np.arange(p.k.shape[2])
        return replace(p, q=q, k=k)

    def one_hot(rng: np.random.Generator, p: Problem) -> Problem:
        """Each query is 40 times a key of its own, which takes all the weight."""
        rows = rng.integers(0, p.k.shape[2], p.q.shape[2])
        heads = np.arange(p.q.shape[1]) * p.k.shape[1] // max(1, p.q.shape[1])
        return replace(p, q=40 * p.k[:, heads][:, :, rows])

    def signs(rng: np.random.Generator, p: Problem) -> Problem:
        """Large values of alternating sign under equal weights: sums cancel."""
        v = 1000.0 * (-1.0) ** np.arange(p.v.shape[2])[:, None] * np.ones_like(p.v)
        return replace(p, q=np.zeros_like(p.q), v=v + p.v)

    def shifted(by: float) -> Change:
        """All scores of a row are far from 0 by the same amount: only a subtracted maximum saves them."""
        return lambda rng, p: replace(
            p,
            q=np.concatenate((np.full_like(p.q[..., :1], p.q.shape[3] ** 0.5), p.q[..., 1:]), -1),
            k=np.concatenate((np.full_like(p.k[..., :1], by), p.k[..., 1:]), -1),
        )

    yield case("queries of 0: the plain average", times(q=0.0))
    yield case("keys of 0", times(k=0.0))
    yield case("values of 0", times(v=0.0))
    yield case("equal keys", lambda rng, p: replace(p, k=np.broadcast_to(p.k[:, :, :1], p.k.shape)))
    yield case("equal values", lambda rng, p: replace(p, v=np.broadcast_to(p.v[:, :, :1], p.v.shape)))
    yield case("large scores", times(q=20.0))
    yield case("huge scores", times(q=100.0, k=10.0))
    yield case("one key takes all", one_hot)
    yield case("all scores near -200", shifted(-200.0))
    yield case("all scores near 200", shifted(200.0))
    yield case("the maximum rises with every key", lambda rng, p: aligned(rng, p, 0.5))
    yield case("the maximum falls with every key", lambda rng, p: aligned(rng, p, -0.5))
    yield case("the maximum leaps", lambda rng, p: aligned(rng, p, 60.0))
    yield case("alternating signs that cancel", signs)
    yield case("tiny values", times(v=2.0**-20))
    yield case("large values", times(v=1000.0))
    yield case("equal weights over many keys", times(q=0.0), Sizes(q_len=20, k_len=1500), cross)


def _scale() -> Iterator[Case]:
    for scale in (0.3, 1.0, 0.0, -0.5):
        yield Case(f"scale {scale:g}", "scale", Sizes(), frozenset({"scale"}), fixed(scale=scale))


def _causal(boundaries: Sequence[int], quick: bool) -> Iterator[Case]:
    causal = {"causal": True}
    for n in _around(boundaries, quick):
        sizes = Sizes(q_len=n, k_len=n)
        yield Case(f"causal, {n} tokens", "causal", sizes, frozenset({"causal"}), lambda rng, n: dict(causal))
    for q_len, k_len in ((1, 40), (5, 97), (64, 129), (33, 513)):
        sizes = Sizes(q_len=q_len, k_len=k_len)
        name = f"causal, {_count(q_len)} at the end of {k_len} keys"
        needs = frozenset({"causal", "cross"})
        yield Case(name, "causal alignment", sizes, needs, lambda rng, n: dict(causal))
    for q_len, k_len in ((40, 7), (130, 64)):
        sizes = Sizes(q_len=q_len, k_len=k_len)
        name = f"causal, {_count(q_len)}, {k_len} keys: the first see none"
        needs = frozenset({"causal", "cross", "empty_rows"})
        yield Case(name, "rows without a key", sizes, needs, lambda rng, n: dict(causal))
    sizes = Sizes(2, 6, 2, 65, 65)
    needs = frozenset({"causal", "gqa"})
    yield Case("causal, grouped heads", "grouped heads", sizes, needs, lambda rng, n: dict(causal))


def _windows() -> Iterator[Case]:
    for window in ((0, 0), (1, 1), (16, 0), (5, 3), (-1, 0), (7, -1), (64, 64), (200, 200)):
        for n in (65, 150):
            yield Case(
                f"window {window}, {n} tokens", "window", Sizes(q_len=n, k_len=n), frozenset({"window"}),
                fixed(window=window),
            )  # fmt: skip
    yield Case(
        "window (9, 9), causal", "window", Sizes(q_len=70, k_len=70), frozenset({"window", "causal"}),
        fixed(window=(9, 9), causal=True),
    )  # fmt: skip


def _masks() -> Iterator[Case]:
    def bools(shape: Callable[[Sizes], tuple[int, ...]], seen: float, sure: bool = True) -> Make:
        def make(rng: np.random.Generator, n: Sizes) -> dict[str, Any]:
            mask = rng.random(shape(n)) < seen
            if sure:
                mask[..., 0] = True  # every query sees a key
            return {"mask": mask}

        return make

    def floats(shape: Callable[[Sizes], tuple[int, ...]], hidden: float) -> Make:
        def make(rng: np.random.Generator, n: Sizes) -> dict[str, Any]:
            mask = rng.standard_normal(shape(n))
            mask[rng.random(shape(n)) < hidden] = -np.inf
            mask[..., 0] = 0.0
            return {"mask": mask.astype(np.float32)}

        return make

    shapes: dict[str, Callable[[Sizes], tuple[int, ...]]] = {
        "for all heads": lambda n: (n.batch, 1, n.q_len, n.k_len),
        "for each head": lambda n: (n.batch, n.q_heads, n.q_len, n.k_len),
        "of keys alone": lambda n: (n.batch, 1, 1, n.k_len),
        "of two axes": lambda n: (n.q_len, n.k_len),
    }
    sizes = Sizes(2, 2, 2, 50, 70)
    for name, shape in shapes.items():
        needs = frozenset({"bool_mask", "cross"})
        yield Case(f"bools {name}", "bool mask", sizes, needs, bools(shape, 0.4))
        needs = frozenset({"float_mask", "cross"})
        yield Case(f"numbers {name}", "float mask", sizes, needs, floats(shape, 0.0))
        yield Case(f"numbers and -inf {name}", "float mask", sizes, needs, floats(shape, 0.6))

    def band(rng: np.random.Generator, n: Sizes) -> dict[str, Any]:
        mask = np.zeros((n.q_len, n.k_len), np.float32)
        mask[:, n.k_len // 4 : n.k_len // 4 * 3] = -np.inf  # whole tiles are hidden
        return {"mask": mask}

    long = Sizes(1, 2, 2, 70, 600)
    yield Case("a band of -inf", "float mask", long, frozenset({"float_mask", "cross"}), band)
    low = {"mask": np.float32(-1e30)}
    yield Case(
        "a mask of -1e30 everywhere", "float mask", Sizes(), frozenset({"float_mask"}),
        lambda rng, n: {"mask": np.broadcast_to(low["mask"], (n.q_len, n.k_len)).copy()},
    )  # fmt: skip

    def some_empty(rng: np.random.Generator, n: Sizes) -> dict[str, Any]:
        mask = rng.random((n.batch, 1, n.q_len, n.k_len)) < 0.5
        mask[:, :, ::3] = False
        return {"mask": mask}

    needs = frozenset({"bool_mask", "empty_rows"})
    yield Case("rows that a mask hides", "rows without a key", Sizes(2), needs, some_empty)
    yield Case(
        "a mask that hides all", "rows without a key", Sizes(), needs,
        lambda rng, n: {"mask": np.zeros((n.q_len, n.k_len), np.bool_)},
    )  # fmt: skip


def _kv_lengths(boundaries: Sequence[int]) -> Iterator[Case]:
    """Yield sequences that end before the arrays do; what lies behind is poison."""

    def poisoned(by: float) -> Change:
        def change(rng: np.random.Generator, p: Problem) -> Problem:
            k, v = p.k.copy(), p.v.copy()
            for b, length in enumerate(p.options["kv_lengths"]):
                k[b, :, length:] = v[b, :, length:] = by
            return replace(p, k=k, v=v)

        return change

    def lengths(*some: int) -> Make:
        return lambda rng, n: {"kv_lengths": np.resize(np.minimum(some, n.k_len), n.batch).astype(np.int32)}

    needs = frozenset({"kv_lengths", "cross"})
    for q_len in (1, 3):
        for poison in (np.nan, np.inf):
            sizes = Sizes(4, 2, 2, q_len, 130)
            yield Case(
                f"{_count(q_len)}, {poison} behind the end", "kv_lengths", sizes, needs,
                lengths(130, 64, 65, 3), poisoned(poison),
            )  # fmt: skip
    for t in boundaries:
        if t <= 1024:
            sizes = Sizes(4, 2, 2, 1, 2 * t)
            yield Case(
                f"ends around {t}", "kv_lengths", sizes, needs, lengths(t - 1, t, t + 1, 2 * t - 1),
                poisoned(np.nan),
            )  # fmt: skip
    yield Case(
        "a sequence without keys", "rows without a key", Sizes(3, 2, 2, 2, 40), needs | {"empty_rows"},
        lengths(40, 0, 7), poisoned(np.nan),
    )  # fmt: skip


def _others() -> Iterator[Case]:
    sizes = Sizes(2, 4, 4, 66, 66)
    for cap in (1.0, 30.0):
        yield Case(
            f"softcap {cap:g}", "softcap", sizes, frozenset({"softcap"}),
            fixed(softcap=cap), lambda rng, p: replace(p, q=4 * p.q),
        )  # fmt: skip
    yield Case(
        "slopes for each head", "alibi_slopes", sizes, frozenset({"alibi_slopes", "causal"}),
        lambda rng, n: {"causal": True, "alibi_slopes": np.float32(2.0) ** -np.arange(1, n.q_heads + 1)},
    )  # fmt: skip
    yield Case(
        "sinks", "sinks", sizes, frozenset({"sinks"}),
        lambda rng, n: {"sinks": np.linspace(-2, 5, n.q_heads).astype(np.float32)},
    )  # fmt: skip
    for offset in (0, 17, -9):
        needs = {"q_offset", "causal", "cross"} | ({"empty_rows"} if offset < 0 else set())
        yield Case(
            f"queries from {offset} on", "q_offset", Sizes(q_len=40, k_len=90), frozenset(needs),
            fixed(q_offset=offset, causal=True),
        )  # fmt: skip


def _denormals() -> Iterator[Case]:
    """Yield numbers below 2^-126, which many processors are told to take for 0."""
    sizes = Sizes(q_len=70, k_len=70)
    small = 2.0**-130
    none: frozenset[str] = frozenset()
    yield Case("denormal values", "denormals", sizes, none, change=lambda rng, p: replace(p, v=small * p.v))
    yield Case("denormal queries", "denormals", sizes, none, change=lambda rng, p: replace(p, q=small * p.q))
