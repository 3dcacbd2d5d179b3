"""Memory that could be taken: of the system, and within the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastattention.runtime.available import available_bytes

KIB = 1024


def machine(root: Path, cgroup: str | None, available: str = "MemAvailable:   400 kB\n") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 1000 kB\n" + available)
    if cgroup is not None:
        (root / "proc/self/cgroup").write_text(cgroup)
    return root


def group(folder: Path, limit: str, usage: int, stat: str = "anon 0", version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else _FIRST
    for name, text in zip((*names, "memory.stat"), (limit, str(usage * KIB), stat), strict=True):
        (folder / name).write_text(f"{text}\n")


_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_what_the_system_has(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path / "a", None)) == 400 * KIB
    with pytest.raises(RuntimeError, match="does not say"):
        available_bytes(machine(tmp_path / "b", None, ""))
    assert available_bytes() > 1 << 20


def test_the_least_of_all_groups_counts(tmp_path: Path) -> None:
    """Of a group and those that it lies in, whichever leaves least."""
    root = machine(tmp_path, "0::/a/b\n")
    mount = root / "sys/fs/cgroup"
    group(mount / "a/b", "max", 10)
    assert available_bytes(root) == 400 * KIB
    group(mount / "a", str(300 * KIB), 100)
    assert available_bytes(root) == 200 * KIB
    group(mount / "a/b", str(150 * KIB), 20)
    assert available_bytes(root) == 130 * KIB
    group(mount / "a/b", str(15 * KIB), 20)
    assert available_bytes(root) == 0
    group(mount / "a/b", str(5000 * KIB), 20)
    group(mount / "a", str(5000 * KIB), 20)
    assert available_bytes(root) == 400 * KIB


def test_pages_of_files_are_there_to_take(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    stat = f"anon 7\ninactive_file {30 * KIB}\nactive_file {20 * KIB}\nshmem {9 * KIB}"
    group(root / "sys/fs/cgroup", str(300 * KIB), 100, stat)
    assert available_bytes(root) == 250 * KIB


def test_the_first_version_and_a_container_that_sees_the_hosts_path(tmp_path: Path) -> None:
    root = machine(tmp_path, "11:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/docker/x\n")
    stat = f"inactive_file 1\ntotal_inactive_file {30 * KIB}\ntotal_active_file 0"
    group(root / "sys/fs/cgroup/memory", str(300 * KIB), 100, stat, version=1)
    group(root / "sys/fs/cgroup/cpu,cpuacct/docker/x", "1", 1, version=1)
    assert available_bytes(root) == 230 * KIB
    group(root / "sys/fs/cgroup/memory/docker/x", str(130 * KIB), 100, stat, version=1)
    assert available_bytes(root) == 60 * KIB
    group(root / "sys/fs/cgroup/memory/docker/x", str(2**63 - 4096), 100, stat, version=1)
    assert available_bytes(root) == 230 * KIB
