"""One allocation for the caches of all ways: what lies where, and what is given back."""

from __future__ import annotations

import numpy as np
import pytest

from fastattention.bench.offload.arena import Arena
from fastattention.runtime.device import open_device


def test_arrays_lie_apart_and_are_used_again() -> None:
    device = open_device("numpy")
    arena = Arena(device, 8 * 2**20)
    lent = arena.lend(device)
    assert arena.nbytes == 8 * 2**20
    taken = device.host_bytes
    a = lent.host_array((1024, 1024), np.float16)  # 2 MiB, exactly one step
    b = lent.host_array((3,), np.float32)
    a[...], b[...] = 1, 2
    assert not np.shares_memory(a, b)
    assert b.ctypes.data - a.ctypes.data == 2**21
    assert (a == 1).all()
    assert device.host_bytes == taken, "nothing more was asked of the device"
    first = a.ctypes.data
    lent.free_host(a)
    with pytest.raises(RuntimeError, match="1 arrays of the arena"):
        arena.close()
    c = lent.host_array((16,), np.uint8)
    assert c.ctypes.data > b.ctypes.data, "b is in use still"
    lent.free_host(b)
    lent.free_host(c)
    assert lent.host_array((16,), np.uint8).ctypes.data == first
    assert lent.name == "numpy"


def test_what_does_not_fit_is_asked_of_the_device() -> None:
    device = open_device("numpy")
    arena = Arena(device, 2**20)
    lent = arena.lend(device)
    before = device.host_bytes
    big = lent.host_array((2**21,), np.uint8)
    empty = lent.host_array((0, 4), np.uint8)
    assert device.host_bytes == before + 2**21
    lent.free_host(big)
    lent.free_host(empty)
    assert device.host_bytes == before
    arena.close()
    assert device.host_bytes == 0
    arena.close()
    none = Arena(device, 0)
    lent = none.lend(device)
    lent.free_host(lent.host_array((4,), np.uint8))
    none.close()
    assert device.host_bytes == 0


def test_what_is_lent_counts_as_memory_there_is() -> None:
    """A plan for caches as large as the arena fits, however little the system has left beside it."""
    device = open_device("numpy")
    device.host_memory = lambda: 100  # type: ignore[method-assign]
    arena = Arena(device, 2**22)
    lent = arena.lend(device)
    assert lent.host_memory() == 2**22 + 100
    part = lent.host_array((2**21,), np.uint8)
    assert lent.host_memory() == 2**21 + 100
    lent.free_host(part)
    assert lent.host_memory() == 2**22 + 100
    arena.close()
    assert lent.host_memory() == 100
