"""Host memory: where it comes from, that it is registered, and that nothing of it is kept after a fault."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest

from fastattention.runtime import host_memory
from fastattention.runtime.host_memory import HostMemory, numa_node_of_gpu


class Registry:
    """What CUDA's registration would keep."""

    def __init__(self, fail: bool = False) -> None:
        self.held: dict[int, int] = {}
        self.fail = fail

    def add(self, address: int, nbytes: int) -> None:
        if self.fail:
            raise RuntimeError("cudaErrorMemoryAllocation")
        self.held[address] = nbytes

    def remove(self, address: int) -> None:
        del self.held[address]


@pytest.mark.parametrize("nbytes", [1, 5000, 3 << 20, 200 << 20])
def test_zeros_that_are_registered(nbytes):
    registry = Registry()
    memory = HostMemory(nbytes, register=(registry.add, registry.remove), threads=3)
    assert registry.held.keys() == {memory.address}
    assert memory.address % 4096 == 0
    array = memory.array((nbytes,), np.uint8)
    assert registry.held[memory.address] >= nbytes
    assert not array.any()
    array[-1] = 7
    assert memory.array((1,), np.uint8, nbytes - 1)[0] == 7
    memory.free()
    memory.free()
    assert not registry.held
    with pytest.raises(ValueError, match="given back already"):
        memory.array((1,), np.uint8)


def test_arrays_within_it():
    memory = HostMemory(4096)
    first, second = memory.array((2, 8), np.float16), memory.array((4,), np.float32, 32)
    first[...] = 1
    assert not second.any()
    with pytest.raises(ValueError, match="does not fit 4096 bytes"):
        memory.array((1025,), np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        memory.array((1,), np.float32, -4)
    memory.free()


def mapped() -> int:
    """Bytes of address space that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def test_what_cannot_be_registered_is_given_back():
    registry = Registry(fail=True)
    before = mapped()
    for _ in range(4):
        with pytest.raises(MemoryError, match="67,108,864 bytes cannot be registered: cudaError"):
            HostMemory(64 << 20, register=(registry.add, registry.remove))
    assert mapped() < before + (64 << 20)


def test_more_than_there_is(monkeypatch):
    with pytest.raises(MemoryError, match=r"bytes are needed, [\d,]+ are available"):
        HostMemory(1 << 50)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1 << 60)
    with pytest.raises(MemoryError, match="no room for"):
        HostMemory(1 << 55)


def test_what_stays_registered_stays():
    """CUDA would go on copying to pages that are somebody else's by then."""
    registry = Registry()
    memory = HostMemory(4096, register=(registry.add, registry.remove))
    held = registry.held.copy()
    registry.held.clear()
    with pytest.raises(KeyError):
        memory.free()
    assert not memory.array((4096,), np.uint8).any()
    registry.held |= held
    memory.free()
    assert not registry.held
    with pytest.raises(ValueError, match="given back already"):
        memory.array((1,), np.uint8)


def tree(root: Path, nodes: int, node: str | None) -> Path:
    for n in range(nodes):
        (root / f"devices/system/node/node{n}").mkdir(parents=True)
    device = root / "bus/pci/devices/0000:3b:00.0"
    device.mkdir(parents=True)
    if node is not None:
        (device / "numa_node").write_text(node)
    return root


@pytest.mark.parametrize(
    ("nodes", "node", "found"),
    [(1, "0\n", None), (2, "1\n", 1), (2, "-1\n", None), (2, None, None), (4, "x", None)],
)
def test_the_node_of_a_gpu(tmp_path, nodes, node, found):
    system = tree(tmp_path, nodes, node)
    assert numa_node_of_gpu("0000:3B:00.0", system) == found
    assert numa_node_of_gpu("00000000:3B:00.0", system) == found
    assert numa_node_of_gpu("0000:99:00.0", system) is None


def test_pages_are_asked_for_on_a_node(monkeypatch):
    """The system call goes out with the node's bit set, and memory is there whatever the answer."""
    seen: list[tuple[int, ...]] = []

    class Libc:
        @staticmethod
        def syscall(*arguments: ctypes._SimpleCData[int]) -> int:
            number, _, size, policy, mask, bits, _ = arguments
            seen.append((number.value, size.value, policy.value, list(mask), bits.value))
            return -1

    monkeypatch.setattr(host_memory.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda *_, **__: Libc)
    HostMemory(8192, node=65).free()
    assert seen == [(237, 8192, 1, [0, 2], 129)]
    monkeypatch.setattr(host_memory.platform, "machine", lambda: "riscv64")  # nobody knows the number
    HostMemory(8192, node=65).free()
    assert len(seen) == 1
