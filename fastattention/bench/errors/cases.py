"""The cases: few and many query rows, by dtype and number of keys, of numbers of several kinds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...reference.quantize import quantize

__all__ = ["DTYPES", "HEAD_DIM", "KINDS", "LENGTHS", "SHAPES", "Arrays", "ErrorCase", "select"]

LENGTHS = (1, 16, 128, 1024, 8192, 32768, 131072)
HEAD_DIM = 128
_QUICK = (1, 16, 128, 1024)
_SAMPLED = 256  # query rows that are compared, of up to 1,024 keys; fewer of more

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.float32),  # of queries and output
}

#: What the numbers are like, and what they try.
KINDS = {
    "normal": "standard normal",
    "large": "queries of 20 times that: a few weights are all that counts",
    "cancel": "keys near zero, values of alternating sign: the output is small beside what is added up",
    "equal": "equal keys, positive values: all weights are the same, each sum grows from key to key",
}

#: Query heads of a KV head, queries of a head; the KV heads are as many as keep float64 cheap.
SHAPES = {
    "decode": (1, 1),
    "group": (16, 1),
    "chunk": (1, 64),
    "prefill": (8, 384),
}


@dataclass(frozen=True)
class Arrays:
    """q (1, Hq, Sq, D), k and v (1, Hkv, Sk, D); with int8, scales (1, Hkv, Sk)."""

    q: NDArray[np.generic]
    k: NDArray[np.generic]
    v: NDArray[np.generic]
    k_scales: NDArray[np.float32] | None = None
    v_scales: NDArray[np.float32] | None = None

    def head(self, kv_head: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return keys and values (Sk, D) of a KV head as they are meant, in float64, exactly."""
        k, v = (x[0, kv_head].astype(np.float64) for x in (self.k, self.v))
        if self.k_scales is not None and self.v_scales is not None:
            k *= self.k_scales[0, kv_head, :, None].astype(np.float64)
            v *= self.v_scales[0, kv_head, :, None].astype(np.float64)
        return k, v


@dataclass(frozen=True)
class ErrorCase:
    """One problem.

    Attributes
    ----------
    shape : str
        Of `SHAPES`. "decode": a query for each KV head; "group": 16 query heads that share one; "chunk": 64
        queries; "prefill": so many rows that no row's keys are split among threads.
    dtype : str
        Of `DTYPES`: "int8" is an int8 cache, with queries and output in float32.
    kind : str
        Of `KINDS`.
    keys : int
    """

    shape: str
    dtype: str
    kind: str
    keys: int

    @property
    def name(self) -> str:
        """What `--filter` looks at."""
        return f"{self.shape}/{self.dtype}/{self.kind}/S{self.keys}"

    @property
    def kv_heads(self) -> int:
        """Hkv: independent problems, of which short ones need more to be told from chance."""
        most = {"decode": 64, "group": 16, "chunk": 4, "prefill": 8}[self.shape]
        least = {"decode": 2, "group": 1, "chunk": 1, "prefill": 1}[self.shape]
        return most if self.keys <= 1024 else max(least, most * 1024 // self.keys)

    @property
    def q_heads(self) -> int:
        """Hq."""
        group, _ = SHAPES[self.shape]
        return self.kv_heads * group

    @property
    def q_len(self) -> int:
        """Sq."""
        return SHAPES[self.shape][1]

    @property
    def rows(self) -> int:
        """Query rows of a KV head."""
        return self.q_heads // self.kv_heads * self.q_len

    def sampled(self) -> NDArray[np.int64]:
        """Return which rows of a KV head are compared."""
        most = max(1, (_SAMPLED if self.keys <= 1024 else 64) // self.kv_heads)
        return np.unique(np.linspace(0, self.rows - 1, min(self.rows, most)).astype(np.int64))

    def arrays(self) -> Arrays:
        """Draw the arrays, always the same ones, and round them."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        q = rng.standard_normal((1, self.q_heads, self.q_len, HEAD_DIM), np.float32)
        k, v = rng.standard_normal((2, 1, self.kv_heads, self.keys, HEAD_DIM), np.float32)
        if self.kind == "large":
            q *= 20
        elif self.kind == "cancel":
            k *= np.float32(0.1)
            v = (np.abs(v) + np.float32(0.5)) * np.where(np.arange(self.keys) % 2, 1, -1)[:, None]
        elif self.kind == "equal":
            k[:] = k[:, :, :1]
            v = rng.uniform(0.5, 1.5, v.shape)
        if self.dtype == "int8":
            (k, k_scales), (v, v_scales) = quantize(k), quantize(v.astype(np.float32))
            return Arrays(q, k, v, k_scales, v_scales)
        q, k, v = (x.astype(DTYPES[self.dtype]) for x in (q, k, v))
        return Arrays(q, k, v)


def select(quick: bool, pattern: str | None) -> list[ErrorCase]:
    """Return the cases that have a part for every word."""
    words = (pattern or "").replace(",", " ").split()
    cases = [
        ErrorCase(shape, dtype, kind, keys)
        for dtype in DTYPES
        for shape in SHAPES
        for kind in KINDS
        for keys in (_QUICK if quick else LENGTHS)
    ]
    return [case for case in cases if all(f"/{word}/" in f"/{case.name}/" for word in words)]
