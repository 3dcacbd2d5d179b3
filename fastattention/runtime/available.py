"""How much host memory there is to take: what the system has, and what a container's limit leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_bytes"]


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of memory that could be taken without swapping, and without the kernel's ending us.

    The least of what the system has available and what each control group leaves that this process is in:
    its limit less what is in use, pages of files not counted, which the kernel drops when memory is short.
    Both versions of control groups are read.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.

    Raises
    ------
    RuntimeError
        The system does not say what it has.
    """
    meminfo = root / "proc/meminfo"
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, *_left(root), 1 << 62)
    raise RuntimeError(f"{meminfo} does not say what memory is available")


def _left(root: Path) -> Iterator[int]:
    """Yield what each limited control group leaves."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names, top = ("memory.max", "memory.current"), mount
        elif "memory" in controllers.split(","):
            names, top = ("memory.limit_in_bytes", "memory.usage_in_bytes"), mount / "memory"
        else:
            continue
        # In a container the path may be the host's, of which only the group's own folder is mounted, as top.
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            found = _left_in(folder, *names)
            if found is not None:
                yield found
            if folder == top:
                break


def _left_in(folder: Path, limit_name: str, usage_name: str) -> int | None:
    """Return what a group's limit leaves; None where there is no such group, or no limit."""
    try:
        limit = (folder / limit_name).read_text().strip()
        usage = int((folder / usage_name).read_text())
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in pairs}
    except OSError:
        return None
    if limit == "max":
        return None
    # Version 1 counts a group's own pages by these names, and those of the groups within by "total_...".
    files = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
    return max(0, int(limit) - max(0, usage - files))
