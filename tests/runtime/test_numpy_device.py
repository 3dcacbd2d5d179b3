"""The device that CPU memory plays: things happen in the order that was asked for, no earlier than asked."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from fastattention.runtime.device import open_device, pitched
from fastattention.runtime.numpy_device import NumpyDevice


def test_late_means_when_somebody_waits():
    device = NumpyDevice("late")
    one, two = device.stream(), device.stream()
    to, source = np.zeros((1, 1, 4)), np.ones((1, 1, 4))
    device.copy(one, to, source)
    assert to.sum() == 0
    event = device.record(one)
    device.copy(one, to, 2 * source)
    device.wait_event(two, event)
    with device.use(two):
        assert to.sum() == 4  # what was waited for has happened, no more
    device.wait()
    assert to.sum() == 8


def test_early_means_at_once():
    device = NumpyDevice()
    to = np.zeros((1, 1, 4))
    device.copy(device.stream(), to, np.ones((1, 1, 4)))
    assert to.sum() == 4


def test_a_stream_in_use_holds_nothing_up():
    device = NumpyDevice("late")
    stream, other = device.stream(), device.stream()
    to = np.zeros((1, 1, 4))
    with device.use(stream):
        device.copy(other, to, np.ones((1, 1, 4)))
        device.wait_event(stream, device.record(other))
        assert to.sum() == 4


def test_now_and_then_in_order():
    device = NumpyDevice(Random(1))
    seen: list[int] = []

    class Call:
        function = argument = 0

        def __init__(self, number: int) -> None:
            self.number = number

        def run(self) -> None:
            seen.append(self.number)

    streams = [device.stream() for _ in range(3)]
    for number in range(60):
        device.call(streams[number % 3], Call(number))
    device.wait()
    assert sorted(seen) == list(range(60))
    assert seen != list(range(60))
    for n in range(3):
        own = [number for number in seen if number % 3 == n]
        assert own == sorted(own)


def test_what_a_copy_engine_takes():
    planes = np.zeros((3, 2, 10, 4), np.float16)
    assert pitched(planes) == (80, 80, 6)
    assert pitched(planes[:, :, 2:5]) == (80, 24, 6)
    assert pitched(planes[1:2, :, 2:5]) == (80, 24, 2)
    assert pitched(np.zeros((3, 2, 10))[:, :, 1:2]) == (80, 8, 6)
    assert pitched(planes[:, :1, :3]) == (160, 24, 3)
    for bad in (planes[:, :, :, ::2], planes[:, :, ::2], np.zeros((3, 4, 5))[:, :2]):
        with pytest.raises(ValueError, match="a copy of"):
            pitched(bad)


def test_devices_by_name():
    assert open_device("numpy").name == "numpy"
    with pytest.raises(ValueError, match="device: expected"):
        open_device("cpu")
    with pytest.raises(ValueError, match="device: expected"):
        open_device("npu")
