"""Which rows there are on a GPU: prefill of about 16 K tokens, decode over caches of many lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..cases import LEVELS, Case

__all__ = ["GpuCase", "all_cases", "select"]

_TOKENS, _HEADS = 16384, 16  # of prefill rows: the same work at all lengths, shapes that others publish
_LENGTHS = (1024, 2048, 4096, 8192, 16384)
_CONTEXTS = (8192, 32768, 131072)


@dataclass(frozen=True, slots=True)
class GpuCase(Case):
    """One row: a case as on the CPU, but int8 keys meet float16 queries, and threads are no matter."""

    @property
    def q_dtype(self) -> str:
        """Of queries and output."""
        return "float16" if self.dtype == "int8" else self.dtype

    @property
    def name(self) -> str:
        """What `--filter` matches, such as ``prefill/float16/causal/B4/H16/D128/S4096``.

        Pages add ``P64``, their tokens.
        """
        heads = self.heads.replace("/", ":")
        parts = [self.kind, self.dtype]
        parts += [self.visibility] * (self.kind == "prefill")
        parts += [f"B{self.batch}", f"H{heads}", f"D{self.head_dim}", f"S{self.k_len}"]
        parts += [f"P{self.page_size}"] * (self.page_size is not None)
        return "/".join(parts)


def _prefill(dtype: str, head_dim: int, length: int, causal: bool, level: str = "default") -> GpuCase:
    return GpuCase(
        "prefill", dtype, _HEADS, _HEADS, length, length, head_dim,
        causal=causal, level=level, batch=max(1, _TOKENS // length),
    )  # fmt: skip


def _decode(
    dtype: str, kv_heads: int, length: int, batch: int, page_size: int | None = None, level: str = "default"
) -> GpuCase:
    return GpuCase(
        "decode", dtype, 32, kv_heads, 1, length, 128,
        level=level, batch=batch, page_size=page_size,
    )  # fmt: skip


def all_cases() -> Iterator[GpuCase]:
    """Yield every case."""
    for head_dim in (64, 128):
        for length in _LENGTHS:
            for causal in (False, True):
                quick = length == 4096 and (causal or head_dim == 128)
                yield _prefill("float16", head_dim, length, causal, "quick" if quick else "default")
    for length in (4096, 16384):
        for causal in (False, True):
            yield _prefill("float16", 256, length, causal)
    for dtype in ("bfloat16", "float32"):
        for head_dim in (64, 128):
            for causal in (False, True):
                yield _prefill(dtype, head_dim, 4096, causal)
            for causal in (False, True):
                yield _prefill(dtype, head_dim, 1024, causal, "full")

    for kv_heads in (8, 32):
        for length in _CONTEXTS:
            for batch in (1, 8):
                quick = kv_heads == 8 and (length, batch) in ((32768, 1), (8192, 8))
                yield _decode("float16", kv_heads, length, batch, level="quick" if quick else "default")
    for length in _CONTEXTS:
        for batch in (1, 8):
            quick = (length, batch) == (32768, 1)
            yield _decode("int8", 8, length, batch, level="quick" if quick else "default")
    for length, batch, page_size in ((32768, 1, 64), (32768, 1, 16), (8192, 8, 64), (32768, 8, 64)):
        quick = (length, batch, page_size) == (32768, 1, 64)
        yield _decode("float16", 8, length, batch, page_size, "quick" if quick else "default")
    for length, batch in ((32768, 1), (32768, 8)):
        yield _decode("int8", 8, length, batch, 64, "full")
        yield _decode("bfloat16", 8, length, batch, level="default" if batch == 1 else "full")


def select(level: str = "default", pattern: str | None = None) -> list[GpuCase]:
    """Return the cases of `level` and of those it contains, by words as `bench.rows.select` takes them."""
    limit = LEVELS.index(level)
    words = (pattern or "").replace(",", " ").split()
    return [
        case
        for case in all_cases()
        if LEVELS.index(case.level) <= limit and all(f"/{word}" in f"/{case.name}" for word in words)
    ]
