"""Host memory for a KV cache that a GPU copies from: large pages, near the GPU, registered with CUDA.

CuPy's own pinned memory comes in powers of two: 33 GB would take 64. So memory comes from the system, as
anonymous mappings in pages of 2 MiB where it has such (registering them takes a third of the time), bound to
the NUMA node that the GPU hangs on, touched by several threads, and registered at last.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .available import available_bytes

__all__ = ["HostMemory", "numa_node_of_gpu"]

_PAGE = 4096
_HUGE = 2 << 20
_MBIND = {"x86_64": 237, "aarch64": 235}  # the system call's number
_MPOL_PREFERRED = 1

#: Takes an address and a size; CUDA's hostRegister takes flags besides.
Register = Callable[[int, int], None]


def numa_node_of_gpu(bus_id: str, system: Path = Path("/sys")) -> int | None:
    """Return the NUMA node that a GPU hangs on; None where there is one node only, or nobody knows.

    Parameters
    ----------
    bus_id : str
        PCI address, as CUDA writes it: "0000:3B:00.0".
    system : Path
        Where the kernel's view of the machine is mounted.
    """
    nodes = list((system / "devices/system/node").glob("node[0-9]*"))
    if len(nodes) < 2:
        return None
    # CUDA may write the domain with eight digits where the kernel has four.
    domain, _, rest = bus_id.lower().partition(":")
    path = system / "bus/pci/devices" / f"{domain[-4:]}:{rest}" / "numa_node"
    try:
        node = int(path.read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


class HostMemory:
    """A block of zeros.

    Parameters
    ----------
    nbytes : int
        At least 1.
    register : (callable, callable), optional
        Called with (address, bytes) when the memory is there, and with the address before it goes.
    node : int, optional
        NUMA node that the memory is to lie on, where that has room; on x86-64 and Arm.
    threads : int, optional
        That touch it; by default one a core, 16 at most.

    Raises
    ------
    MemoryError
        There is no room, or it cannot be registered. Nothing is held.

    Notes
    -----
    More is refused than the system has available: it would grant a mapping of any size, and end the process
    when that is touched.
    """

    def __init__(
        self,
        nbytes: int,
        *,
        register: tuple[Register, Callable[[int], None]] | None = None,
        node: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._registered: Callable[[int], None] | None = None
        size = -(-nbytes // _HUGE) * _HUGE if nbytes >= _HUGE else -(-nbytes // _PAGE) * _PAGE
        left = available_bytes()
        if size > left:
            raise MemoryError(f"host memory: {size:,} bytes are needed, {left:,} are available")
        try:
            self._map = mmap.mmap(-1, size)
        except OSError as error:
            raise MemoryError(f"host memory: no room for {size:,} bytes: {error}") from error
        try:
            if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
                self._map.madvise(mmap.MADV_HUGEPAGE)
            self._bytes: NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)
            self.address = int(self._bytes.ctypes.data)
            if node is not None and platform.machine() in _MBIND:
                _prefer(self.address, size, node)
            _touch(self._bytes, threads)
            if register is not None:
                try:
                    register[0](self.address, size)
                except Exception as error:  # CuPy's CUDARuntimeError, a RuntimeError of its own
                    raise MemoryError(f"host memory: {size:,} bytes cannot be registered: {error}") from error
                self._registered = register[1]
        except BaseException:
            self.free()
            raise

    def array(self, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> NDArray[Any]:
        """Return an array over the memory, from a byte on.

        Raises
        ------
        ValueError
            It does not fit, or the memory was given back.
        """
        if self._bytes is None:
            raise ValueError("host memory: given back already")
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if offset < 0 or offset + count > self._bytes.size:
            raise ValueError(f"host memory: {shape} {kind} at {offset} does not fit {self._bytes.size} bytes")
        array: NDArray[Any] = self._bytes[offset : offset + count].view(kind).reshape(shape)
        return array

    def free(self) -> None:
        """Give the memory back. Its pages go with the last array over it, which nothing may copy from.

        What taking back the registration raises comes through; nothing is given back then, and one may try
        again.
        """
        if self._registered is not None:
            # Memory that is still registered must stay: CUDA would go on copying from and to its pages.
            self._registered(self.address)
            self._registered = None
        self._bytes = None  # the mapping goes with the last array over it
        self._map = None  # type: ignore[assignment]


def _prefer(address: int, nbytes: int, node: int) -> None:
    """Ask for pages on a NUMA node. The kernel may refuse; memory anywhere is better than none."""
    words = (ctypes.c_ulong * (node // 64 + 1))()
    words[node // 64] = 1 << (node % 64)
    libc = ctypes.CDLL(None, use_errno=True)
    # The number of bits is one more than the highest, by an old habit of the kernel's.
    libc.syscall(
        ctypes.c_long(_MBIND[platform.machine()]), ctypes.c_void_p(address), ctypes.c_ulong(nbytes),
        ctypes.c_int(_MPOL_PREFERRED), words, ctypes.c_ulong(64 * len(words) + 1), ctypes.c_uint(0),
    )  # fmt: skip


def _touch(memory: NDArray[np.uint8], threads: int | None) -> None:
    """Let pages be there: the first who writes to one waits for it to be cleared."""
    workers = max(1, min(threads or min(16, len(os.sched_getaffinity(0))), memory.size // (64 << 20)))
    share = -(-memory.size // workers // _HUGE) * _HUGE

    def write(worker: int) -> None:
        memory[worker * share : (worker + 1) * share : _PAGE] = 0

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, range(workers)))
