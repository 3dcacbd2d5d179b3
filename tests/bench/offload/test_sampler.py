"""Memory over time: points, peaks, and what happens when there are too many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from fastattention.bench.offload.sampler import Sampler, limited, memory_of
from fastattention.runtime.device import open_device


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_samples_have_phase_tokens_and_order() -> None:
    figures = iter(range(10**9))

    def look() -> tuple[int, int, int, int]:
        n = next(figures)
        return n, 2 * n, 3 * n, 1000 - n if n < 1000 else 0

    with Sampler(look, interval=0.001) as sampler:
        sampler.phase = "prefill"
        wait_for(lambda: len(sampler.samples) > 3)
        sampler.phase, sampler.tokens = "decode", 7
    samples = sampler.samples
    assert samples[0].phase == ""
    assert samples[2].phase == "prefill"
    assert samples[-1].phase == "decode"
    assert samples[-1].tokens == 7
    assert [sample.pool_used for sample in samples] == list(range(len(samples)))
    assert all(a.seconds <= b.seconds for a, b in pairwise(samples))
    last = len(samples) - 1
    assert sampler.peaks == {"pool_used": last, "pool_total": 2 * last, "gpu_used": 3 * last, "host": 1000}


def test_too_many_points_are_thinned_and_peaks_stay() -> None:
    figures = iter([0, 99, *[1] * 10**6])
    with Sampler(lambda: (next(figures), 0, 0, 0), interval=1e-5, most=16) as sampler:
        wait_for(lambda: sampler._interval >= 8e-5)
    assert len(sampler.samples) <= 16
    assert sampler.peaks["pool_used"] == 99
    assert 99 not in [sample.pool_used for sample in sampler.samples]


def test_what_looking_raises_reaches_the_caller() -> None:
    main = threading.current_thread()

    def look() -> tuple[int, int, int, int]:
        if threading.current_thread() is not main:
            raise OSError("no /proc")
        return 0, 0, 0, 0

    sampler = Sampler(look, interval=1e-4)
    with pytest.raises(OSError, match="no /proc"), sampler:
        wait_for(lambda: sampler._problem is not None)


def test_an_error_of_the_run_is_not_hidden() -> None:
    with pytest.raises(KeyboardInterrupt), Sampler(lambda: (0, 0, 0, 0), interval=1e-4):
        raise KeyboardInterrupt


def test_host_memory_is_this_process() -> None:
    look = memory_of(open_device("numpy"))
    pool, held, used, host = look()
    assert pool == held == used == 0
    assert host > 2**20


class FakePool:
    """Holds a limit, and what was asked of it."""

    def __init__(self) -> None:
        self.limit, self.freed = 7, 0

    def used_bytes(self) -> int:
        return 10

    def total_bytes(self) -> int:
        return 20

    def get_limit(self) -> int:
        return self.limit

    def set_limit(self, size: int) -> None:
        self.limit = size

    def free_all_blocks(self) -> None:
        self.freed += 1


def fake_gpu(pool: FakePool) -> Any:
    cuda = SimpleNamespace(
        Device=lambda number: nullcontext(), runtime=SimpleNamespace(memGetInfo=lambda: (60, 100))
    )
    xp = SimpleNamespace(get_default_memory_pool=lambda: pool, cuda=cuda)
    return SimpleNamespace(name="cuda:0", number=0, xp=xp, wait=lambda: None)


def test_gpu_memory_is_the_pool_s_and_the_device_s() -> None:
    assert memory_of(fake_gpu(FakePool()))()[:3] == (10, 20, 40)


def test_the_pool_is_held_to_a_limit_that_is_lifted_again() -> None:
    pool = FakePool()
    seen = []

    def run() -> None:
        with limited(fake_gpu(pool), 32):
            seen.append((pool.limit, pool.freed))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == [(32, 1)]
    assert pool.limit == 7
    with limited(open_device("numpy"), 32):
        pass
