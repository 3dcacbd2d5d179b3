"""Which rows there are, and which of them a run takes."""

from __future__ import annotations

from collections.abc import Iterator

from .cases import LEVELS, Case

__all__ = ["all_cases", "select"]

_LONG = 4096  # keys of a usual prefill row
_CACHES = (8192, 32768, 65536)  # keys of decode rows

#: Decode rows that belong to the default set: dtype, KV heads, keys. The others only to the full one.
_USUAL_CACHES = {
    *((dtype, 32, 8192) for dtype in ("float32", "bfloat16", "float16", "int8")),
    *((dtype, 8, 32768) for dtype in ("float32", "bfloat16", "float16", "int8")),
    *((dtype, 8, 8192) for dtype in ("float32", "float16")),
    *((dtype, 4, 65536) for dtype in ("float32", "int8")),
}


def _prefill(
    dtype: str,
    head_dim: int,
    length: int = _LONG,
    *,
    heads: tuple[int, int] = (8, 8),
    visibility: str = "full",
    mask: str | None = None,
    threads: int = 1,
    level: str = "default",
    v_dim: int | None = None,
    isa: str | None = None,
) -> Case:
    return Case(
        "prefill",
        dtype,
        q_heads=heads[0],
        kv_heads=heads[1],
        q_len=length,
        k_len=length,
        head_dim=head_dim,
        causal=visibility in ("causal", "window"),
        window=(1024, 0) if visibility == "window" else None,
        mask=mask,
        threads=threads,
        level=level,
        v_dim=v_dim,
        isa=isa,
    )


def _decode(
    dtype: str,
    kv_heads: int,
    length: int,
    *,
    queries: int = 1,
    batch: int = 1,
    page_size: int | None = None,
    threads: int = 1,
    level: str = "default",
) -> Case:
    return Case(
        "decode",
        dtype,
        q_heads=32,
        kv_heads=kv_heads,
        q_len=queries,
        k_len=length,
        head_dim=128,
        batch=batch,
        page_size=page_size,
        threads=threads,
        level=level,
    )


def _prefill_rows() -> Iterator[Case]:
    for visibility in ("full", "causal", "window"):
        for head_dim in (64, 128):
            quick = head_dim == 128 and visibility != "window"
            yield _prefill("float32", head_dim, visibility=visibility, level="quick" if quick else "default")
    for visibility in ("full", "causal"):
        for head_dim in (64, 128):
            level = "default" if head_dim == 128 else "full"
            yield _prefill("float32", head_dim, 1024, visibility=visibility, level=level)

    # bfloat16 by the run's instruction set, and by the dot product that machines without tiles would use.
    for isa in (None, "avx512_bf16"):
        for visibility in ("full", "causal"):
            for head_dim in (64, 128):
                yield _prefill("bfloat16", head_dim, visibility=visibility, isa=isa)
    for visibility in ("full", "causal"):
        for head_dim in (64, 128):
            level = "full" if (visibility, head_dim) == ("causal", 64) else "default"
            yield _prefill("float16", head_dim, visibility=visibility, level=level)

    for head_dim, v_dim in ((80, None), (96, None), (256, None), (128, 64), (192, 128), (64, 128)):
        level = "full" if (head_dim, v_dim) == (64, 128) else "default"
        yield _prefill("float32", head_dim, v_dim=v_dim, level=level)
    for kv_heads in (8, 32):
        yield _prefill("float32", 128, 2048, heads=(32, kv_heads), visibility="causal")
    for mask in ("bool", "float32"):
        yield _prefill("float32", 128, 1024, mask=mask)
        yield _prefill("float32", 128, 4096, mask=mask, level="full")
    for visibility in ("causal", "window"):
        yield _prefill("float32", 128, 16384, visibility=visibility, level="full")


def _decode_rows() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16", "float16", "int8"):
        for kv_heads in (32, 8, 4):
            for length in _CACHES:
                level = "default" if (dtype, kv_heads, length) in _USUAL_CACHES else "full"
                if (dtype, kv_heads, length) == ("float32", 32, 8192):
                    level = "quick"
                yield _decode(dtype, kv_heads, length, level=level)
    for dtype in ("float32", "bfloat16", "float16", "int8"):
        for kv_heads in (32, 8, 4):
            level = "default" if kv_heads == 8 and dtype != "float16" else "full"
            yield _decode(dtype, kv_heads, 8192, batch=8, level=level)
    for dtype in ("float32", "bfloat16"):
        for kv_heads in (32, 8):
            for queries in (2, 4, 8, 16):
                level = "default" if queries in (4, 16) else "full"
                yield _decode(dtype, kv_heads, 8192, queries=queries, level=level)
    for dtype in ("float32", "float16"):
        for page_size in (64, 16):
            yield _decode(dtype, 8, 32768, page_size=page_size)


def _thread_rows(threads: int) -> Iterator[Case]:
    yield _prefill("float32", 128, threads=threads)
    yield _prefill("float32", 128, visibility="causal", threads=threads, level="quick")
    for visibility in ("full", "causal"):
        yield _prefill("bfloat16", 128, visibility=visibility, threads=threads, level="full")
    yield _decode("float32", 32, 8192, threads=threads, level="quick")
    yield _decode("float32", 8, 32768, threads=threads)
    for dtype in ("bfloat16", "float16", "int8"):
        yield _decode(dtype, 8, 32768, threads=threads, level="full")


def _memory_rows(threads: int) -> Iterator[Case]:
    for count in (1, threads) if threads > 1 else (1,):
        yield Case("memory", "float32", 8, 8, 131072, 131072, 128, causal=True, threads=count)


def all_cases(threads: int) -> Iterator[Case]:
    """Yield every case: the one-thread rows, then, if `threads` is more, the rows on that many threads."""
    yield from _prefill_rows()
    yield from _decode_rows()
    if threads > 1:
        yield from _thread_rows(threads)
    yield from _memory_rows(threads)


def select(threads: int, level: str = "default", pattern: str | None = None) -> list[Case]:
    """Return the cases of `level` and of those it contains whose name has a part for each word of `pattern`.

    Parts of a name are separated by slashes, words by spaces or commas; a part begins with its word:
    ``"decode float16"``, ``"causal D128"``.
    """
    limit = LEVELS.index(level)
    words = (pattern or "").replace(",", " ").split()
    return [
        case
        for case in all_cases(threads)
        if LEVELS.index(case.level) <= limit and all(f"/{word}" in f"/{case.name}" for word in words)
    ]
