"""No two streams touch the same memory unless one waits for the other: vector clocks over everything queued.

`NumpyDevice` computes array operations at once, so a stream that forgets to wait for *them* goes unnoticed
there. Here each operation is noted with the memory it touches, and with what its stream has waited for.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattention.runtime.cooperative import WAYS
from fastattention.runtime.numpy_device import NumpyDevice

from .test_cooperative import make, rows, take


@dataclass
class Access:
    array: np.ndarray
    stream: int
    time: int
    writes: bool
    what: str


class RaceDevice(NumpyDevice):
    """Notes who touches what, and complains of two that do not know of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.clocks: dict[int, Counter[int]] = {}
        self.accesses: list[Access] = []  # holds the arrays, so that no memory comes twice
        self.current: list[Any] = []
        self.races: list[str] = []

    def clock(self, stream: Any) -> Counter[int]:
        return self.clocks.setdefault(id(stream), Counter())

    def note(self, stream: Any, what: str, reads: list[Any], writes: list[Any]) -> None:
        own, clock = id(stream), self.clock(stream)
        clock[own] += 1
        new = [Access(x, own, clock[own], False, what) for x in reads if x is not None and x.size]
        new += [Access(x, own, clock[own], True, what) for x in writes if x is not None and x.size]
        for access in new:
            for before in self.accesses:
                if before.stream == own or before.time <= clock[before.stream]:
                    continue
                if (access.writes or before.writes) and np.shares_memory(access.array, before.array):
                    self.races.append(f"{what} beside {before.what}")
        self.accesses += new

    def compute(self, what: str, reads: list[Any], writes: list[Any]) -> None:
        if self.current:
            self.note(self.current[-1], what, reads, writes)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        self.current.append(stream)
        try:
            with super().use(stream):
                yield
        finally:
            self.current.pop()

    def record(self, stream: Any) -> Any:
        return super().record(stream), self.clock(stream).copy()

    def wait_event(self, stream: Any, event: Any) -> None:
        super().wait_event(stream, event[0])
        clock = self.clock(stream)
        for other, time in event[1].items():
            clock[other] = max(clock[other], time)

    def copy(self, stream: Any, to: Any, source: Any) -> None:
        self.note(stream, "copy", [source], [to])
        super().copy(stream, to, source)

    def call(self, stream: Any, call: Any) -> None:
        q, planes, out, lse, new_k, new_v, _ = call._arrays
        first, length, new = call._step.first, call._step.length, q.shape[2]
        held = [plane[:, :, first : length - new] for plane in planes]
        written = [plane[:, :, length - new : length] for plane in planes]
        self.note(stream, "the CPU's step", [q, new_k, new_v, *held], [out, lse, *written])
        super().call(stream, call)

    def merge(self, outs: list[Any], lses: list[Any], out: Any, lse: Any) -> None:
        self.compute("merge", [*outs, *lses], [out, lse])
        super().merge(outs, lses, out, lse)

    def hand(self, to: Any, source: Any) -> None:
        self.compute("hand", [source], [to])
        super().hand(to, source)

    def append(self, rows: Any, k: Any, v: Any) -> None:
        first = rows.length
        super().append(rows, k, v)
        self.compute("append", [k, v], [plane[:, :, first : rows.length] for plane in rows.planes])

    def attend(self, rows: Any, q: Any, out: Any, lse: Any, *, causal: bool) -> None:
        super().attend(rows, q, out, lse, causal=causal)
        self.compute("attend", [q, *rows.held], [out, lse])

    def wait(self) -> None:
        super().wait()
        self.accesses.clear()  # whatever comes, comes behind all of it
        self.clocks.clear()


@pytest.fixture
def device() -> RaceDevice:
    return RaceDevice()


def run(device: RaceDevice, placement: Any, **options: Any) -> list[str]:
    cache = make(device, placement, **options)
    attend = cache.attend

    def read_at_once(layer: int, qkv: Any, out: Any, part: int = 0) -> None:
        attend(layer, qkv, out, part)
        device.compute("the decoder", [out], [])

    cache.attend = read_at_once
    for n, count in enumerate([7, 7, 1, 1, 5, 1]):
        take(cache, device, rows(n, len(placement), options.get("batch", 2), count, np.float32))
    cache.close()
    return device.races


@pytest.mark.parametrize("placement", [*((way,) * 4 for way in WAYS), (*WAYS, *reversed(WAYS))], ids="-".join)
@pytest.mark.parametrize("slots", [1, 3])
def test_no_races(device, placement, slots):
    assert run(device, placement, share=0.5, slots=slots) == []


def test_no_races_between_halves(device):
    assert run(device, ("host", "gpu", "host"), halves=2) == []


def waits(device: RaceDevice, forgotten: tuple[str, int] | None) -> set[tuple[str, int]]:
    """Leave out the waits of one line of the runtime, in a run of all ways; return the lines with any."""
    lines: set[tuple[str, int]] = set()
    wait_event = RaceDevice.wait_event

    def forgetful(stream: Any, event: Any) -> None:
        caller = inspect.currentframe().f_back
        line = Path(caller.f_code.co_filename).name, caller.f_lineno
        lines.add(line)
        if line != forgotten:
            wait_event(device, stream, event)

    device.wait_event = forgetful
    run(device, ("split", "upload", "host", "split"), share=0.5, slots=1)
    return lines


def test_a_line_that_forgets_to_wait_shows(device):
    lines = waits(device, None)
    assert not device.races
    assert len(lines) >= 6
    for line in sorted(lines):
        device.clocks.clear()
        device.races.clear()
        waits(device, line)
        assert device.races, f"nothing shows that {line} waits"
        device.accesses.clear()
