"""One browser for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .browser import HTML, Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium with the network off."""
    assert (HTML / "index.html").exists(), "the book is not built: make docs"
    chromium = Browser()
    yield chromium
    chromium.close()
