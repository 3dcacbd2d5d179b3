"""What a cooperative cache has moved, in words: bytes, and bytes a second."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["traffic"]


def _bytes(size: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} bytes"


def traffic(numbers: Mapping[str, float]) -> str:
    """Return a line: what went up and down, and what the CPU's attention read, each with its rate.

    Parameters
    ----------
    numbers : mapping
        Of `CooperativeCache.statistics`. Rates over the bus are means over the steps' time, the CPU's is one
        over the time that it attended.

    Examples
    --------
    >>> traffic({"seconds": 2.0, "up_bytes": 1e10, "down_bytes": 3e6, "cpu_bytes": 5e9, "cpu_seconds": 0.05})
    'up 10.00 GB (5.0 GB/s), down 3.00 MB (0.0 GB/s), CPU attention 5.00 GB (100.0 GB/s)'
    >>> traffic({"seconds": 0.0, "up_bytes": 0, "down_bytes": 0, "cpu_bytes": 0, "cpu_seconds": 0.0})
    'nothing over the bus'
    """
    seconds, parts = numbers["seconds"], []
    for name in ("up", "down"):
        size = numbers[f"{name}_bytes"]
        if size:
            parts.append(
                f"{name} {_bytes(size)}" + (f" ({size / seconds / 1e9:.1f} GB/s)" if seconds else "")
            )
    if numbers["cpu_bytes"]:
        speed = numbers["cpu_bytes"] / numbers["cpu_seconds"] / 1e9 if numbers["cpu_seconds"] else 0.0
        parts.append(f"CPU attention {_bytes(numbers['cpu_bytes'])} ({speed:.1f} GB/s)")
    return ", ".join(parts) or "nothing over the bus"
