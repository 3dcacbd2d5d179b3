"""Ctrl-C at any line of a change to a cache: it holds what it held or was to hold, and loses no page.

Python may raise KeyboardInterrupt between any two instructions. Here it does so at each line in turn that
the change runs through, in the library's own files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import fastattention
from fastattention import KVCache

from .test_cache_stateful import everything

OWN = str(Path(fastattention.__file__).parent)
B, H, D = 3, 2, 4


def interrupted(call: Callable[[], None], line: int) -> bool:
    """Raise KeyboardInterrupt at the `line`-th line that a call runs through; False where it has fewer."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((B, H, count, D)).astype(np.float32)


def filled(dtype: str, page_size: int | None) -> KVCache:
    """Return a cache with pages that were given back, and others that nobody had yet."""
    cache = KVCache(B, H, D, dtype=dtype, max_length=200, page_size=page_size)
    cache.append(rows(0, 40), rows(1, 40), np.array([40, 9, 20]))
    cache.free(2)
    cache.append(rows(2, 7), rows(3, 7), np.array([0, 7, 0]))
    return cache


CHANGES: dict[str, Callable[[KVCache], None]] = {
    "append, ragged": lambda c: c.append(rows(4, 30), rows(5, 30), np.array([30, 1, 25])),
    "append one": lambda c: c.append(rows(6, 1), rows(7, 1)),
    "append, growing": lambda c: c.append(rows(8, 150), rows(9, 150)),
    "truncate": lambda c: c.truncate(12),
    "free": lambda c: c.free(0),
    "reserve": lambda c: c.reserve(190),
}


def content(cache: KVCache) -> list[Any]:
    """Return each sequence's rows, wherever they lie, through attention of the reference."""
    q = np.ones((B, H, 2, D), np.float32)
    out, lse = cache.attend(q, return_lse=True, backend="reference")
    return [cache.lengths.tolist(), out.tobytes(), lse.tobytes()]


@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("change", CHANGES)
def test_at_any_line(change: str, dtype: str, page_size: int | None) -> None:
    before, after = filled(dtype, page_size), filled(dtype, page_size)
    CHANGES[change](after)
    allowed = content(before), content(after)
    fresh = KVCache(B, H, D, dtype=dtype, max_length=200, page_size=page_size)
    fresh.append(rows(10, 200), rows(11, 200))
    full = content(fresh)
    line = 0
    while True:
        line += 1
        cache = filled(dtype, page_size)
        if not interrupted(lambda cache=cache: CHANGES[change](cache), line):
            assert everything(cache) == everything(after)
            break
        assert content(cache) in allowed, f"at line {line}"
        if page_size is not None:
            table = cache.block_table
            assert table is not None
            owned = table[table >= 0].tolist()
            assert len(set(owned)) == len(owned), f"at line {line}: a page has two owners"
        # It goes on as if nothing had been: to the end of its pool, and back.
        cache.reset()
        assert cache.pages_in_use in (0, None), f"at line {line}: pages are lost"
        cache.append(rows(10, 200), rows(11, 200))
        assert content(cache) == full
    assert line > 5
