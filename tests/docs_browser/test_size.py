"""The built book is small enough to be handed round."""

from __future__ import annotations

from .browser import HTML

MEGABYTES = 30


def test_book_is_small() -> None:
    size = sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file())
    assert 1e6 < size < MEGABYTES * 1e6
