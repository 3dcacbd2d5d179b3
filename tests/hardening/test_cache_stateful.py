"""Any sequence of operations on a cache, good and bad, against plain lists of rows.

Hypothesis draws the cache, what is done to it, and what is done wrongly; after each step the cache holds what
the lists hold, and every page has one owner. FASTATTENTION_HARDENING=deep tries many more of them.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from fastattention.reference import paged
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastattention import KVCache
from fastattention.cache_contiguous import Contiguous
from fastattention.cache_paged import Paged

from ..conftest import check
from ..tolerances import DTYPES
from .oracle import KEPT, expected, meant, query_dtypes, rounded

DEEP = os.environ.get("FASTATTENTION_HARDENING") == "deep"
MOST = 150  # tokens of a sequence: a contiguous cache grows twice until there
SEEDS = st.integers(0, 2**32 - 1)

Row = tuple[np.ndarray, ...]  # of one token in all KV heads: a plane, or integers and scales


@dataclass
class Twin:
    """A cache, and the lists that say what it must hold."""

    cache: KVCache
    keys: list[list[Row]]
    values: list[list[Row]]

    def lengths(self) -> list[int]:
        return [len(rows) for rows in self.keys]


def everything(cache: KVCache) -> tuple[Any, ...]:
    """Return all that can be seen of a cache."""
    planes = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    table = cache.block_table
    return (
        cache.lengths.tolist(),
        cache.pages_in_use,
        None if table is None else table.tolist(),
        [None if plane is None else plane.tobytes() for plane in planes],
    )


def stacked(rows: list[Row], empty: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Return a sequence's rows plane by plane, each (Hkv, S, ...)."""
    if not rows:
        return empty
    return tuple(np.stack(plane, axis=1) for plane in zip(*rows, strict=True))


def refuse_memory(*_: Any) -> np.ndarray:
    raise MemoryError("no room")


class CacheAgainstLists(RuleBasedStateMachine):
    """One cache at first; copies of it go their own ways."""

    @initialize(
        kept=st.sampled_from(KEPT),
        page_size=st.sampled_from([None, 8, 16]),
        share=st.sampled_from([None, 0.3, 0.7]),
        sizes=st.tuples(*[st.integers(1, n) for n in (3, 2, 3, 17, 17)]),
    )
    def make(
        self, kept: str, page_size: int | None, share: float | None, sizes: tuple[int, int, int, int, int]
    ) -> None:
        self.batch, self.kv_heads, self.group, self.head_dim, self.v_dim = sizes
        self.kept = kept
        max_pages = None
        if page_size is not None and share is not None:
            max_pages = max(1, int(share * self.batch * paged.pages_needed(MOST, page_size)))
        cache = KVCache(
            self.batch, self.kv_heads, self.head_dim, dtype=DTYPES.get(kept, kept), v_dim=self.v_dim,
            max_length=MOST, page_size=page_size, max_pages=max_pages,
        )  # fmt: skip
        self.twins = [Twin(cache, *([[] for _ in range(self.batch)] for _ in range(2)))]
        self.at = 0

    @property
    def twin(self) -> Twin:
        return self.twins[self.at]

    def rows(self, count: int, seed: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Draw new keys and values; some rows are 0, some large, and in some layouts axes are swapped."""
        rng = np.random.default_rng(seed)
        made = []
        for dim in (self.head_dim, self.v_dim):
            x = rng.standard_normal((self.batch, self.kv_heads, count, dim))
            x *= rng.choice([0.0, 1.0, 1.0, 1.0, 30.0], (*x.shape[:3], 1))
            x = x.astype(DTYPES[dtype])
            made.append(np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) if seed % 2 else x)
        return made[0], made[1]

    def incoming(self, seed: int) -> str:
        choices = ("float32", "float16", "bfloat16") if self.kept == "int8" else ("float32", self.kept)
        return choices[seed % len(choices)]

    def why_not(self, counts: list[int]) -> str | None:
        """Return what must be said where the cache cannot take so many more; None where it can."""
        new = [a + b for a, b in zip(self.twin.lengths(), counts, strict=True)]
        if max(new) > MOST:
            return "k: appending would make the longest sequence"
        cache = self.twin.cache
        if cache.page_size is not None and cache.max_pages is not None:
            owned = [paged.pages_needed(n, cache.page_size) for n in new]
            if sum(owned) > cache.max_pages:
                return "k: .* more pages are needed"
        return None

    def note(self, k: np.ndarray, v: np.ndarray, counts: list[int]) -> None:
        """Let the lists take the first `counts` rows of each sequence."""
        for x, lists in ((k, self.twin.keys), (v, self.twin.values)):
            for b, n in enumerate(counts):
                planes = rounded(x[b, :, :n].astype(np.float32), self.kept)
                lists[b].extend(tuple(plane[:, i] for plane in planes) for i in range(n))

    @rule(
        width=st.one_of(st.just(1), st.integers(0, 20), st.integers(0, MOST + 1)),
        ragged=st.booleans(), seed=SEEDS, starved=st.booleans(),
    )  # fmt: skip
    def append(self, width: int, ragged: bool, seed: int, starved: bool) -> None:
        """Append; where `starved`, with no memory to grow into."""
        counts = [width] * self.batch
        if ragged:
            counts = np.random.default_rng(seed).integers(0, width + 1, self.batch).tolist()
        k, v = self.rows(width, seed, self.incoming(seed))
        lengths = np.array(counts) if ragged else None
        if ragged:  # what nobody takes is not read
            for b, n in enumerate(counts):
                k[b, :, n:] = v[b, :, n:] = np.nan
        cache, before = self.twin.cache, everything(self.twin.cache)
        if (message := self.why_not(counts)) is not None:
            with pytest.raises(ValueError, match=message):
                cache.append(k, v, lengths)
            assert everything(cache) == before
            return
        if starved:
            room = Contiguous if cache.page_size is None else Paged
            with mock.patch.object(room, "_zeros", staticmethod(refuse_memory)):
                try:
                    cache.append(k, v, lengths)
                except MemoryError:
                    assert everything(cache) == before
                    return
        else:
            cache.append(k, v, lengths)
        self.note(k, v, counts)

    @rule(seed=SEEDS, wrong=st.sampled_from(["shape", "dtype", "list", "counts", "width", "nan"]))
    def append_wrongly(self, seed: int, wrong: str) -> None:
        k, v = self.rows(3, seed, "float32")
        lengths: Any = None
        error: tuple[type[Exception], str] = (ValueError, "k: expected shape")
        if wrong == "shape":
            k = k[:, :, :, :-1] if seed % 2 else k[:, :-1]
        elif wrong == "dtype":
            v, error = v.astype(np.float64), (TypeError, "v: expected .* got float64")
        elif wrong == "list":
            k, error = k.tolist(), (TypeError, "k: expected an array")
        elif wrong == "counts":
            lengths = np.full(self.batch, 4 if seed % 2 else -1)
            error = (ValueError, "lengths: expected 0 to S = 3")
        elif wrong == "width":
            v, error = v[:, :, :2], (ValueError, "v: expected as many tokens as k")
        elif self.kept == "int8":
            v[-1, -1, -1, -1] = np.nan if seed % 2 else np.inf
            error = (ValueError, "v: expected finite numbers")
            if self.why_not([3] * self.batch):
                error = (ValueError, "[kv]: ")
        else:
            return
        before = everything(self.twin.cache)
        with pytest.raises(error[0], match=error[1]):
            self.twin.cache.append(k, v, lengths)
        assert everything(self.twin.cache) == before

    @rule(number=st.integers(-1, 3))
    def free(self, number: int) -> None:
        if 0 <= number < self.batch:
            self.twin.cache.free(number)
            self.twin.keys[number], self.twin.values[number] = [], []
            return
        before = everything(self.twin.cache)
        with pytest.raises(ValueError, match="sequence: expected 0 to"):
            self.twin.cache.free(number)
        assert everything(self.twin.cache) == before

    @rule(length=st.integers(-1, MOST + 5))
    def truncate(self, length: int) -> None:
        if length < 0:
            before = everything(self.twin.cache)
            with pytest.raises(ValueError, match="length: expected at least 0"):
                self.twin.cache.truncate(length)
            assert everything(self.twin.cache) == before
            return
        self.twin.cache.truncate(length)
        for lists in (self.twin.keys, self.twin.values):
            lists[:] = [rows[:length] for rows in lists]

    @rule()
    def reset(self) -> None:
        self.twin.cache.reset()
        for lists in (self.twin.keys, self.twin.values):
            lists[:] = [[] for _ in lists]

    @rule(length=st.integers(-1, MOST + 1), starved=st.booleans())
    def reserve(self, length: int, starved: bool) -> None:
        """Room changes nothing that can be seen, whether it is there or not."""
        cache, before = self.twin.cache, everything(self.twin.cache)
        room = Contiguous if cache.page_size is None else Paged
        zeros = refuse_memory if starved else room._zeros
        with mock.patch.object(room, "_zeros", staticmethod(zeros)):
            if not 0 <= length <= MOST:
                with pytest.raises(ValueError, match="length: expected 0 to max_length"):
                    cache.reserve(length)
            else:
                try:
                    cache.reserve(length)
                except MemoryError:
                    assert starved
                except ValueError:
                    size, most = cache.page_size, cache.max_pages
                    assert size is not None
                    assert most is not None
                    pages = [paged.pages_needed(max(n, length), size) for n in self.twin.lengths()]
                    assert sum(pages) > most
        assert everything(cache) == before

    @precondition(lambda self: len(self.twins) < 3)
    @rule()
    def fork(self) -> None:
        """A deep copy shares nothing: what is done to one is not seen in the other."""
        twin = self.twin
        copied = [[list(rows) for rows in lists] for lists in (twin.keys, twin.values)]
        self.twins.append(Twin(copy.deepcopy(twin.cache), *copied))

    @precondition(lambda self: len(self.twins) > 1)
    @rule()
    def go_on_with_another(self) -> None:
        self.at = (self.at + 1) % len(self.twins)

    @rule(
        seed=SEEDS, q_len=st.one_of(st.just(1), st.integers(0, 24)), causal=st.booleans(),
        window=st.one_of(st.none(), st.tuples(st.integers(0, 90), st.integers(0, 9))),
        threads=st.integers(1, 3),
    )  # fmt: skip
    def attend(
        self, seed: int, q_len: int, causal: bool, window: tuple[int, int] | None, threads: int
    ) -> None:
        dtypes = query_dtypes(self.kept)
        dtype = dtypes[seed % len(dtypes)]
        shape = (self.batch, self.group * self.kv_heads, q_len, self.head_dim)
        q = np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])
        lengths, longest = self.twin.lengths(), max(self.twin.lengths())
        padded = []
        for lists, dim in ((self.twin.keys, self.head_dim), (self.twin.values, self.v_dim)):
            x = np.zeros((self.batch, self.kv_heads, longest, dim))
            for b, rows in enumerate(lists):
                if rows:
                    x[b, :, : lengths[b]] = meant(stacked(rows, ()))
            padded.append(x)
        options = {"causal": causal, "window": window}
        out, lse = self.twin.cache.attend(q, **options, return_lse=True, num_threads=threads)
        wanted = expected(q, *padded, self.kept, {**options, "kv_lengths": np.array(lengths)})
        check(out, lse, wanted)

    @rule(seed=SEEDS)
    def attend_wrongly(self, seed: int) -> None:
        before = everything(self.twin.cache)
        q = np.zeros((self.batch, self.kv_heads, 1, self.head_dim + 1), np.float32)
        with pytest.raises(ValueError, match="q: expected shape"):
            self.twin.cache.attend(q)
        out = np.full((self.batch, self.kv_heads, 1, self.v_dim), 7, np.float32)
        with pytest.raises((ValueError, TypeError)):
            self.twin.cache.attend(q[..., :-1], out=out, softcap=-1.0 if seed % 2 else "3")
        assert (out == 7).all()
        assert everything(self.twin.cache) == before

    @invariant()
    def caches_hold_the_lists(self) -> None:
        for twin in getattr(self, "twins", ()):
            assert twin.cache.lengths.tolist() == twin.lengths()
            if twin.cache.page_size is not None:
                self.check_pages(twin)
            planes = (twin.cache.keys, twin.cache.key_scales), (twin.cache.values, twin.cache.value_scales)
            for lists, held in zip((twin.keys, twin.values), planes, strict=True):
                present = [plane for plane in held if plane is not None]
                for b, rows in enumerate(lists):
                    if not rows:
                        continue
                    for plane, wanted in zip(present, stacked(rows, ()), strict=True):
                        np.testing.assert_array_equal(self.rows_of(twin.cache, plane, b), wanted)

    @staticmethod
    def rows_of(cache: KVCache, plane: np.ndarray, b: int) -> np.ndarray:
        length, table = int(cache.lengths[b]), cache.block_table
        return plane[b, :, :length] if table is None else paged.gather(plane, table[b], length)

    @staticmethod
    def check_pages(twin: Twin) -> None:
        """Each page has one owner, each sequence what it needs, and the pool counts right."""
        cache, table = twin.cache, twin.cache.block_table
        assert cache.page_size is not None
        assert cache.max_pages is not None
        assert cache.pages_in_use is not None
        assert table is not None
        needed = [paged.pages_needed(n, cache.page_size) for n in twin.lengths()]
        owned = table[table >= 0].tolist()
        assert (table >= 0).sum(axis=1).tolist() == needed
        assert len(set(owned)) == len(owned) == cache.pages_in_use
        assert 0 <= cache.pages_in_use <= cache.max_pages

    def teardown(self) -> None:
        """All pages come back, and each can be taken once more."""
        for twin in getattr(self, "twins", ()):
            for b in range(self.batch):
                twin.cache.free(b)
            size, most = twin.cache.page_size, twin.cache.max_pages
            if size is None or most is None:
                continue
            assert twin.cache.pages_in_use == 0
            room = most
            counts = []
            for _ in range(self.batch):
                counts.append(min(MOST, room * size))
                room -= paged.pages_needed(counts[-1], size)
            k, v = self.rows(max(counts), 1, "float32")
            twin.cache.append(k, v, np.array(counts))
            table = twin.cache.block_table
            assert table is not None
            assert sorted(table[table >= 0].tolist()) == list(range(most - room))


TestCacheAgainstLists = CacheAgainstLists.TestCase
TestCacheAgainstLists.settings = settings(
    max_examples=5000 if DEEP else 200,
    stateful_step_count=60 if DEEP else 30,
    deadline=None,
    derandomize=not DEEP,
    database=None,
)
