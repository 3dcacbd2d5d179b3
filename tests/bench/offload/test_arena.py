"""One allocation for the caches of all ways: what lies where, and what is given back."""

from __future__ import annotations

import numpy as np
import pytest

from fastattention.bench.offload.arena import Arena
from fastattention.runtime.device import open_device


def test_arrays_lie_apart_and_are_used_again() -> None:
    device = open_device("numpy")
    arena = Arena(device, 8 * 2**20)
    assert arena.nbytes == 8 * 2**20
    taken = device.host_bytes
    a = arena.host_array((1024, 1024), np.float16)  # 2 MiB, exactly one step
    b = arena.host_array((3,), np.float32)
    a[...], b[...] = 1, 2
    assert not np.shares_memory(a, b)
    assert b.ctypes.data - a.ctypes.data == 2**21
    assert (a == 1).all()
    assert device.host_bytes == taken, "nothing more was asked of the device"
    first = a.ctypes.data
    arena.free_host(a)
    with pytest.raises(RuntimeError, match="1 arrays of the arena"):
        arena.close()
    c = arena.host_array((16,), np.uint8)
    assert c.ctypes.data > b.ctypes.data, "b is in use still"
    arena.free_host(b)
    arena.free_host(c)
    assert arena.host_array((16,), np.uint8).ctypes.data == first
    assert arena.name == "numpy"


def test_what_does_not_fit_is_asked_of_the_device() -> None:
    device = open_device("numpy")
    arena = Arena(device, 2**20)
    before = device.host_bytes
    big = arena.host_array((2**21,), np.uint8)
    empty = arena.host_array((0, 4), np.uint8)
    assert device.host_bytes == before + 2**21
    arena.free_host(big)
    arena.free_host(empty)
    assert device.host_bytes == before
    arena.close()
    assert device.host_bytes == 0
    arena.close()
    none = Arena(device, 0)
    none.free_host(none.host_array((4,), np.uint8))
    none.close()
    assert device.host_bytes == 0
