"""The probes, on CPU memory that plays a device: every byte counted, every rate from the clock."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from fastattention.bench.offload import limits
from fastattention.bench.offload.limits import UNITS, HostLimits, Sizes, sizes
from fastattention.runtime.numpy_device import NumpyDevice

SMALL = Sizes(3, 64, 4, 2, 32)


class CountingDevice(NumpyDevice):
    """Notes what is copied and called."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[int] = []
        self.handed: list[int] = []
        self.calls = 0

    def copy(self, stream: Any, to: Any, source: Any) -> None:
        super().copy(stream, to, source)
        self.copied.append(source.nbytes)

    def hand(self, to: Any, source: Any) -> None:
        super().hand(to, source)
        self.handed.append(source.nbytes)

    def call(self, stream: Any, call: Any) -> None:
        super().call(stream, call)
        self.calls += 1


@pytest.fixture
def device() -> CountingDevice:
    return CountingDevice()


def test_all_limits(device: CountingDevice) -> None:
    probes = HostLimits(device, SMALL, 2)
    found = probes.measure(0.01)
    assert list(found) == list(UNITS)
    assert all(value > 0 for value in found.values())
    assert probes.threads == 2
    probes.close()
    assert device.host_bytes == 0
    probes.close()


def test_only_what_is_asked_for(device: CountingDevice) -> None:
    probes = HostLimits(device, SMALL, 1)
    device.copied.clear()
    assert list(probes.measure(0.001, "CPU attention", "trip")) == ["CPU attention", "trip"]
    assert device.calls > 0
    assert not device.copied
    assert set(device.handed) == {2 * (4 + 2 * 2) * 32, 2 * 4 * 32}, "of a trip"
    assert list(probes.measure(0.001, "bus up, both at once")) == ["bus up, both at once"]
    probes.close()


def test_rates_are_bytes_over_time(device: CountingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that a wait moves by a second, a gigabyte a second is what one wait's copies hold."""
    probes = HostLimits(device, SMALL, 1)
    now = 0.0
    wait = device.wait

    def slow_wait() -> None:
        nonlocal now
        now += 1.0
        wait()

    monkeypatch.setattr(device, "wait", slow_wait)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    layer = SMALL.layer_bytes
    assert layer == 2 * 2 * 64 * 32 * 2
    assert probes.measure(2.5, "bus up")["bus up"] == pytest.approx(1e-9 * limits._QUEUED * layer)
    assert probes.measure(2.5, "bus down")["bus down"] == pytest.approx(1e-9 * limits._QUEUED * layer)
    assert probes.measure(2.5, "GPU copy")["GPU copy"] == pytest.approx(2e-9 * limits._WITHIN * layer)
    probes.close()


def test_a_trip_is_what_trips_take_beyond_the_pause(
    device: CountingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = HostLimits(device, SMALL, 1)
    now = 0.0

    def slow(call: Any, seconds: float) -> Any:
        def timed(*arguments: Any) -> None:
            nonlocal now
            now += seconds
            call(*arguments)

        return timed

    monkeypatch.setattr(time, "sleep", slow(lambda seconds: None, 7.0))
    monkeypatch.setattr(device, "hand", slow(device.hand, 2e-6))
    monkeypatch.setattr(device, "call", slow(device.call, 3e-6))
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert probes.measure(1e-3, "trip")["trip"] == pytest.approx(7.0)  # two hands and a call
    probes.close()


def test_copies_take_turns_through_all_layers(device: CountingDevice) -> None:
    probes = HostLimits(device, SMALL, 1)
    host = probes._host
    host[...] = np.arange(3, dtype=np.float16).reshape(3, 1, 1, 1, 1)
    seen = []
    copy = device.copy
    device.copy = lambda stream, to, source: (seen.append(float(source.flat[0])), copy(stream, to, source))  # type: ignore[method-assign]
    probes.measure(1e-6, "bus up")
    assert set(seen) == {0.0, 1.0, 2.0}
    probes.close()


def test_cpu_attention_reads_all_layers_and_leaves_no_team(
    device: CountingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = HostLimits(device, SMALL, 1)
    host = probes._host
    attend, callers = limits.attention, []

    def note(q: Any, k: Any, v: Any, **options: Any) -> Any:
        assert np.shares_memory(k, host)
        assert np.shares_memory(v, host)
        assert k.nbytes + v.nbytes == host.nbytes
        assert options["num_threads"] == 1
        callers.append(threading.current_thread())
        return attend(q, k, v, **options)

    monkeypatch.setattr(limits, "attention", note)
    probes.measure(1e-4, "CPU attention")
    assert callers
    assert not any(caller.is_alive() for caller in callers), "OpenMP keeps its team while the thread lives"
    probes.close()


def test_a_fault_beside_the_cpu_is_raised(device: CountingDevice) -> None:
    probes = HostLimits(device, SMALL, 2)

    def broken(number: int) -> int:
        raise RuntimeError("the bus is gone")

    probes._up = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the bus is gone"):
        probes.measure(0.01, "CPU attention, both at once")
    probes.close()


def test_contents_are_random_and_stay_so(device: CountingDevice) -> None:
    probes = HostLimits(device, SMALL, 1)
    probes.measure(0.001)
    values = probes._host.astype(np.float32)
    assert 0.9 < values.std() < 1.1
    probes.close()


@pytest.mark.parametrize(("l3", "layers"), [(0, 8), (32 * 2**20, 8), (300 * 2**20, 10)])
def test_more_than_the_l3_is_read(l3: int, layers: int) -> None:
    found = sizes(l3)
    assert found.layers == layers
    assert found.nbytes >= 4 * l3
    assert found.layer_bytes == 134217728
