"""Bytes that a kernel carries between host memory and the device: all of them, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastattention.runtime.device import Device, open_device

from ..conftest import Engine

pytestmark = pytest.mark.gpu

#: Off all multiples of 16 and of a block's share; the last takes more than one round of a grid.
SIZES = (1, 2, 15, 16, 17, 4095, 4096, 12289, 5 * 2**20 + 3)
MARGIN = 64


@pytest.fixture
def device(gpu_engine: Engine) -> Device:
    return open_device("cuda")


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("shift", [0, 1, 16])
@pytest.mark.parametrize("up", [False, True])
def test_bytes_arrive(device: Any, nbytes: int, shift: int, up: bool) -> None:
    rng = np.random.default_rng(nbytes)
    sent = rng.integers(0, 256, nbytes, np.uint8)
    size = nbytes + shift + MARGIN
    here = device.host_array((size,), np.uint8)
    try:
        here[...] = 77
        there = device.xp.full(size, 77, np.uint8)
        seen = device.mapped(here)
        own = slice(shift, shift + nbytes)
        if up:
            here[own] = sent
            device.wait()
            device.hand(there[own], seen[own])
        else:
            there[own] = device.array(sent)
            device.hand(seen[own], there[own])
        device.wait()
        got = there.get() if up else here
        np.testing.assert_array_equal(got[own], sent)
        np.testing.assert_array_equal(np.delete(got, np.arange(size)[own]), 77)
    finally:
        device.free_host(here)


def test_a_part_that_is_mapped_is_that_part(device: Any) -> None:
    here = device.host_array((4, 6), np.float32)
    try:
        here[...] = np.arange(24, dtype=np.float32).reshape(4, 6)
        np.testing.assert_array_equal(device.mapped(here[2:]).get(), here[2:])
    finally:
        device.free_host(here)
