"""Sweeps of sizes: lengths around every tile edge, head dimensions, groups of heads, crowds, empty axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .cases import Case, Sizes, gain, options, sinks


def _lengths() -> Iterator[Case]:
    """Query and key lengths on, before and after every tile edge, and primes; both directions of Sq != Sk."""
    query = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 47, 48, 49, 53, 71, 72, 73, 95, 96, 97, 101]
    query += [143, 144, 145, 191, 192, 193, 211, 241]
    key = [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        11,
        12,
        13,
        16,
        17,
        31,
        32,
        33,
        63,
        64,
        65,
        67,
        95,
        96,
        97,
        127,
        128,
        129,
        131,
    ]
    key += [191, 192, 193, 255, 256, 257, 263, 383, 384, 385]
    count = max(len(query), len(key))
    for i in range(count):
        sizes = Sizes(1, 2, 1, query[i % len(query)], key[i % len(key)], 12, 9)
        yield Case(f"Sq {sizes.q_len}, Sk {sizes.k_len}", sizes, options(causal=bool(i % 3 == 0)))
        sizes = Sizes(1, 1, 1, query[-1 - i % len(query)], key[i % len(key)], 10, 17)
        yield Case(
            f"Sq {sizes.q_len}, Sk {sizes.k_len}, crossed", sizes, options(causal=bool(i % 2), q_offset=0)
        )
    for rows in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17):
        for keys in (1, 5, 64, 130):
            yield Case(
                f"{rows} queries, {keys} keys", Sizes(1, 1, 1, rows, keys, 16, 16), options(causal=True)
            )


HEAD_DIMS = (
    1,
    2,
    3,
    5,
    7,
    8,
    15,
    16,
    17,
    31,
    33,
    40,
    63,
    64,
    65,
    80,
    96,
    100,
    127,
    128,
    129,
    160,
    192,
    200,
    255,
    256,
)


def _head_dims() -> Iterator[Case]:
    """Every head size with itself and with another one for the values; few and many queries."""
    for i, d in enumerate(HEAD_DIMS):
        other = HEAD_DIMS[(i * 7 + 11) % len(HEAD_DIMS)]
        for q_len, k_len in ((19, 70), (2, 37), (50, 9)):
            for v_dim in (d, other):
                sizes = Sizes(1, 2, 1, q_len, k_len, d, v_dim)
                yield Case(f"D {d}, Dv {v_dim}, Sq {q_len}", sizes, options(causal=v_dim == d))


def _heads() -> Iterator[Case]:
    """Groups of query heads on one KV head, batches, and empty axes."""
    for q_heads, kv_heads in [
        (1, 1),
        (5, 5),
        (2, 1),
        (4, 2),
        (3, 1),
        (6, 2),
        (4, 1),
        (8, 1),
        (8, 4),
        (16, 1),
        (17, 1),
    ]:
        for q_len in (1, 2, 5, 20):
            sizes = Sizes(2, q_heads, kv_heads, q_len, 67, 16, 20)
            yield Case(f"{q_heads} query heads, {kv_heads} KV heads, Sq {q_len}", sizes, options(causal=True))
    for batch in (1, 3, 7):
        yield Case(f"batch {batch}", Sizes(batch, 2, 2, 9, 33, 8, 8))
    yield Case("batch 0", Sizes(batch=0))
    yield Case("no heads", Sizes(q_heads=0, kv_heads=0))
    yield Case("no query", Sizes(q_len=0))
    yield Case("no key", Sizes(k_len=0))
    yield Case("no key, causal", Sizes(k_len=0), options(causal=True))
    yield Case("no key, sinks", Sizes(k_len=0), sinks(1.0))
    yield Case("neither query nor key", Sizes(q_len=0, k_len=0))


def _crowds() -> Iterator[Case]:
    """So many heads that kernels give one thread several blocks of queries at a time."""
    sizes = Sizes(4, 16, 16, 200, 110, 8, 12)
    grouped = Sizes(4, 32, 16, 145, 99, 9, 7)
    yield Case("many heads", sizes)
    yield Case("many heads, causal", sizes, options(causal=True))
    yield Case("many heads, window from the top left", sizes, options(window=(30, 5), q_offset=-20))
    yield Case("many heads, ragged", sizes, options(kv_lengths=[0, 1, 97, 110], causal=True))
    yield Case("many groups", grouped, options(causal=True), gain(q=8.0))
    slopes = np.linspace(-0.1, 0.3, 4 * 32, dtype=np.float32).reshape(4, 32)
    yield Case(
        "many groups, everything",
        grouped,
        lambda rng, n: {
            "mask": rng.standard_normal((n.q_heads, n.q_len, n.k_len)).astype(np.float32),
            "alibi_slopes": slopes,
            "softcap": 4.0,
            "window": (60, 3),
            **sinks(1.0)(rng, n),
        },
    )


LENGTHS = tuple(_lengths())
CROWDS = tuple(_crowds())
DIMS = tuple(_head_dims())
HEADS = tuple(_heads())
