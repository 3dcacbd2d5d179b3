"""Plans as people read them: a label and a text a line."""

from __future__ import annotations

__all__ = ["kib", "table"]


def kib(size: int) -> str:
    """Return a number of bytes in KiB."""
    return f"{size / 1024:.0f} KiB" if size >= 10 * 1024 else f"{size / 1024:.1f} KiB"


def table(lines: list[tuple[str, str]]) -> str:
    """Return lines of (label, text) below each other."""
    return "\n".join(f"{label:<16} {text}" for label, text in lines)
