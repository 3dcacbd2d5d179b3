"""Few queries on long caches: the keys are split over threads and the parts merged."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import Case, Options, Sizes, gain, options, poison, solved
from .conftest import Engine

DTYPES = ("float32", "float16", "bfloat16")
THREADS = (1, 2, 3, 5)


def _long(q_len: int, k_len: int, batch: int = 1, q_heads: int = 2, kv_heads: int = 1, d: int = 16) -> Sizes:
    return Sizes(batch, q_heads, kv_heads, q_len, k_len, d, d)


def _lengths() -> list[Case]:
    """Cache lengths around every power of two where a split may end, and primes."""
    lengths = [1, 2, 63, 64, 65, 127, 129, 191, 193, 255, 256, 257, 383, 385, 509, 511, 512, 513, 767, 769]
    lengths += [1021, 1023, 1024, 1025, 1537, 2047, 2048, 2049, 3001]
    cases = [Case(f"1 query, {n} keys", _long(1, n)) for n in lengths]
    cases += [
        Case(f"{q} queries, {n} keys", _long(q, n), options(causal=True))
        for q, n in zip(range(2, 18), [700, 1300, 513, 2100] * 4, strict=True)
    ]
    cases += [
        Case(
            f"{heads} heads on {kv_heads}, {q} queries",
            _long(q, 1100, 2, heads, kv_heads, 20),
            options(causal=True),
        )
        for heads, kv_heads in [(1, 1), (4, 1), (8, 2), (3, 1), (16, 1), (7, 1)]
        for q in (1, 2, 4)
    ]
    cases += [
        Case(f"head_dim {d}, long", Sizes(1, 2, 1, 1, 600, d, v_dim))
        for d, v_dim in [
            (1, 3),
            (7, 64),
            (33, 5),
            (64, 64),
            (80, 96),
            (128, 128),
            (100, 17),
            (192, 128),
            (256, 256),
        ]
    ]
    return cases


def _one_split_only(first: int, last: int) -> Case:
    """All the weight, or every visible key, in one part of the cache."""
    return Case(
        f"only keys {first} to {last}",
        _long(2, 1500),
        lambda rng, n: {"mask": (np.arange(n.k_len) >= first) & (np.arange(n.k_len) < last)},
    )


def _features() -> list[Case]:
    n = _long(1, 1400, batch=3, q_heads=4, kv_heads=2)
    few = _long(4, 1400, batch=3, q_heads=4, kv_heads=2)
    lengths = (0, 1, 1400)
    odd = np.array([1023, 513, 700])
    slopes = np.linspace(0.001, 0.3, 4, dtype=np.float32)
    sinks = np.array([-np.inf, 2.0, 9.0, -3.0], np.float32)

    def everything(rng: np.random.Generator, n: Sizes) -> Options:
        mask = rng.standard_normal(n.scores).astype(np.float32)
        mask[rng.random(n.scores) < 0.4] = -np.inf
        return {
            "causal": True,
            "window": (650, None),
            "mask": mask,
            "softcap": 5.0,
            "alibi_slopes": slopes,
            "sinks": sinks,
            "kv_lengths": odd,
        }

    def poisoned(value: float) -> Case:
        def draw(rng: np.random.Generator, n: Sizes, x: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
            for b, length in enumerate(odd):
                x[1][b, :, length:] = x[2][b, :, length:] = value
            return x

        return Case(f"long tail of {value}", n, options(kv_lengths=odd), draw)

    return [
        Case("ragged with an empty one", n, options(kv_lengths=lengths)),
        Case("ragged with an empty one, causal", few, options(kv_lengths=lengths, causal=True)),
        Case("window of 300 in a long cache", few, options(window=(300, 0))),
        Case("window of 1 in a long cache", n, options(window=(0, 0))),
        Case("window far in the middle", few, options(window=(40, 40), q_offset=[700, 511, 1023])),
        Case("window beyond the end", n, options(window=(5, 5), q_offset=5000)),
        Case("softcap, long", n, options(softcap=0.8)),
        Case("ALiBi, long", few, options(alibi_slopes=slopes)),
        Case("sinks, long", n, options(sinks=sinks)),
        Case("sinks, ragged", n, options(sinks=sinks, kv_lengths=lengths)),
        Case("large logits, long", few, options(causal=True), gain(q=200.0)),
        Case("everything, one query", n, everything),
        Case("everything, four queries", few, everything),
        poisoned(np.nan),
        poisoned(np.inf),
        poisoned(3e4),
        Case("two ends", _long(1, 1100, 2), options(kv_lengths=[513, 1100]), poison(np.nan, (513, 1100))),
        *(
            _one_split_only(a, b)
            for a, b in [(0, 1), (1499, 1500), (0, 256), (256, 512), (511, 513), (700, 1400)]
        ),
    ]


def _rows() -> list[Case]:
    """Every number of query rows a KV head at which another kernel, or another shape of one, takes over."""

    def everything(rng: np.random.Generator, n: Sizes) -> Options:
        mask = rng.standard_normal(n.scores).astype(np.float32)
        mask[rng.random(n.scores) < 0.3] = -np.inf
        return {
            "window": (90, 3),
            "mask": mask,
            "softcap": 3.0,
            "alibi_slopes": np.linspace(-0.1, 0.2, n.q_heads, dtype=np.float32),
            "sinks": np.linspace(-2.0, 3.0, n.q_heads, dtype=np.float32),
        }

    def allowed(rng: np.random.Generator, n: Sizes) -> Options:
        return {"mask": rng.random(n.scores) < 0.5}

    draws = (options(causal=True), options(), everything, allowed, options(window=(20, 0)))
    dims = [
        (128, 128),
        (64, 64),
        (1, 1),
        (40, 72),
        (256, 33),
        (16, 16),
        (7, 130),
        (33, 255),
        (80, 80),
        (96, 2),
    ]
    keys = (173, 64, 131, 16, 257, 5, 90)
    rows = [*range(1, 21), 24, 28, 29, 32, 33, 36, 40, 43, 44, 45, 48, 49, 64]
    cases = []
    for i, count in enumerate(rows):
        for j in range(3):
            group = (1, count, 2 if count % 2 == 0 else 1)[j]
            d, v_dim = dims[(i + 3 * j) % len(dims)]
            sizes = Sizes(2, 2 * group, 2, count // group, keys[(i + 2 * j) % len(keys)], d, v_dim)
            name = (
                f"{count} rows, {group} heads, {sizes.k_len} keys, D {d}, Dv {v_dim}, {(i + j) % len(draws)}"
            )
            cases.append(Case(name, sizes, draws[(i + j) % len(draws)]))
    cases.append(
        Case("12 rows, large logits", Sizes(1, 6, 1, 2, 300, 64, 64), options(causal=True), gain(q=200.0))
    )
    lengths = (17, 90)
    cases.append(
        Case(
            "20 rows, ragged, poisoned",
            Sizes(2, 10, 1, 2, 90, 48, 40),
            options(kv_lengths=lengths, causal=True),
            poison(np.nan, lengths),
        )
    )
    return cases


LENGTHS = _lengths()
ROWS = _rows()
FEATURES = _features()


@pytest.mark.parametrize(
    ("case", "dtype", "threads"),
    [
        pytest.param(case, DTYPES[i % 3], THREADS[i % 4], id=f"{case.name}, {DTYPES[i % 3]}")
        for i, case in enumerate(LENGTHS)
    ],
)
def test_lengths(case: Case, dtype: str, threads: int, engine: Engine) -> None:
    engine.check(*solved(case, dtype, engine.accumulation), num_threads=threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_rows(case: Case, dtype: str, engine: Engine) -> None:
    engine.check(*solved(case, dtype, engine.accumulation), num_threads=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FEATURES, ids=lambda case: case.name)
def test_features(case: Case, dtype: str, engine: Engine) -> None:
    for threads in (1, 3):
        engine.check(*solved(case, dtype, engine.accumulation), num_threads=threads)
