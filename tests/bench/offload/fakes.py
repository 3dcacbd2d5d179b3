"""A machine that is none: rates are set, steps take the time that follows, and what was asked is noted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastattention.bench.offload.cases import ALL_GPU, WAYS, OffloadCase
from fastattention.bench.offload.limits import UNITS
from fastattention.bench.offload.measure import LeftOutError
from fastattention.bench.offload.results import LongRun, Outcome, Row, Run, Sample
from fastattention.bench.offload.targets import judge

#: GB/s; "trip" in µs.
LIMITS = {
    "bus up": 55.0, "bus down": 55.0, "CPU attention": 110.0, "bus up, both at once": 48.0,
    "CPU attention, both at once": 95.0, "host read": 117.0, "GPU copy": 4200.0, "trip": 44.0,
}  # fmt: skip

#: Seconds that a byte of a layer's cache takes, by way.
SECONDS_A_BYTE = {ALL_GPU: 1 / 4e12, "classical": 1 / 54e9, "cooperative": 1 / 105e9, "split": 1 / 118e9}

ENVIRONMENT: dict[str, Any] = {
    "gpu": "NVIDIA Test 200", "gpu_memory_bytes": 141 * 2**30, "cpu": "A Processor", "allowed_cores": 16,
    "host_bytes": 110 * 2**30, "threads": 15, "versions": {"fastattention": "0.1.0"},
}  # fmt: skip


def cache_bytes(case: OffloadCase) -> int:
    return case.layers * case.batch * case.context * 4096


class FakeRunner:
    """Sleeps for nobody: `clock` is what the test's clock is set to."""

    def __init__(self, machine: FakeMachine, case: OffloadCase, way: str) -> None:
        self.machine, self.case, self.way = machine, case, way
        share = {"cooperative": 1.0, "split": 0.66}.get(way, 0.0)
        size = cache_bytes(case)
        self.seconds = SECONDS_A_BYTE[way] * size
        self.outcome = Outcome(
            "ok", placement={WAYS[way]: case.layers}, share=share if way == "split" else None, halves=1,
            threads=15, predicted=1.05 * (self.seconds + 0.004),
        )  # fmt: skip
        self.bytes = [0.0, 0.0, 0.0]
        self.step = (0.0 if way == ALL_GPU else (1 - share) * size, 12e3, share * size)

    def attend(self) -> None:
        self.machine.log.append((self.case.name, self.way, "attend"))
        self.machine.now += self.seconds
        self.bytes = [a + b for a, b in zip(self.bytes, self.step, strict=True)]

    def outputs(self) -> np.ndarray:
        out = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
        return out * np.float32(1 + self.machine.attention_error.get(self.way, 0.0))

    def moved(self) -> tuple[float, float, float]:
        up, down, cpu = self.bytes
        return up, down, cpu

    def rewind(self) -> None:
        self.machine.log.append((self.case.name, self.way, "rewind"))

    def token(self, number: int) -> np.ndarray:
        self.machine.log.append((self.case.name, self.way, f"token {number}"))
        self.machine.now += self.seconds + 0.004
        return np.ones((1, 8), np.float32) * np.float32(1 + self.machine.logits_error.get(self.way, 0.0))


class FakeField:
    def __init__(self, machine: FakeMachine, case: OffloadCase) -> None:
        self.machine, self.case, self.cache_bytes = machine, case, cache_bytes(case)

    @contextmanager
    def open(self, way: str) -> Iterator[FakeRunner]:
        if problem := self.machine.raises.get(way):
            raise problem
        yield FakeRunner(self.machine, self.case, way)

    def peer(self) -> dict[str, Any]:
        return self.machine.peer


class FakeMachine:
    """What a test may set: errors by way, what raises, what the peer says, how many layers fit."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[tuple[str, ...]] = []
        self.attention_error: dict[str, float] = {}
        self.logits_error: dict[str, float] = {}
        self.raises: dict[str, Exception] = {}
        self.peer: dict[str, Any] = {
            "tokens": [1.2, 1.3, 1.25], "cache": "DynamicCache(offloading=True)",
            "versions": {"PyTorch": "2.11.0", "transformers": "5.17.0"},
        }  # fmt: skip
        self.layers_that_fit = 1000
        self.foretold_from: list[dict[str, float]] = []
        self.closed = False

    def environment(self) -> dict[str, Any]:
        return ENVIRONMENT

    def hardware(self) -> dict[str, Any]:
        return {"name": "test", "bus": 55e9}

    def limits(self, seconds: float, *names: str) -> dict[str, float]:
        self.log.append(("limits", *names))
        return {name: LIMITS[name] for name in names or UNITS}

    def foretell_from(self, limits: dict[str, float]) -> None:
        self.foretold_from.append(limits)

    def fit(self, case: OffloadCase) -> tuple[OffloadCase, str]:
        held = self.layers_that_fit
        if held >= case.layers:
            return case, ""
        if held < 2:
            raise LeftOutError("a layer takes 1.0 GiB, 0.5 GiB of host memory are free")
        return dataclasses.replace(case, layers=held), f"so {held} of {case.layers} layers take part"

    def reserve(self, cases: list[OffloadCase]) -> float:
        self.log.append(("reserve", *(case.name for case in cases)))
        return 1.5

    @contextmanager
    def open(self, case: OffloadCase) -> Iterator[FakeField]:
        yield FakeField(self, case)

    def long(
        self, threads: int | None, say: Callable[[str], None], progress: Callable[[int, int], None]
    ) -> LongRun:
        say("weights")
        for done in range(0, 262145, 4096):
            progress(done, 262144)
        return a_long_run()

    def close(self) -> None:
        self.closed = True


def a_long_run() -> LongRun:
    """Return a long run as it might be."""
    samples = [
        Sample(
            0.1 * n,
            "prefill" if n < 800 else "decode",
            327 * n,
            10**7 * n,
            2 * 10**7 * n,
            3 * 10**7 * n,
            10**9,
        )
        for n in range(900)
    ]
    return LongRun(
        "llama-3-8b", 262144, 32 * 2**30, "262176 tokens do not fit; 118784 do", 118784,
        plan={"placement": ["gpu"] * 12 + ["host"] * 20}, prefill=80.0, tokens=[0.4, 0.2, 0.21, 0.19],
        predicted_prefill=84.0, predicted_token=0.22,
        peaks={"pool_used": 30 * 2**30, "pool_total": 31 * 2**30, "gpu_used": 33 * 2**30, "host": 25 * 2**30},
        samples=samples,
    )  # fmt: skip


def a_row(case: OffloadCase = OffloadCase("llama-3-8b", 8, 131072, 1, peer=True), **speeds: float) -> Row:  # noqa: B008
    """Return a row as it might be; `speeds` gives the GB/s of ways."""
    machine = FakeMachine()
    row = Row(case, cache_bytes(case), limits={"bus up": [55.0, 55.0], "CPU attention": [110.0, 110.0]})
    for way in WAYS:
        runner = FakeRunner(machine, case, way)
        seconds = cache_bytes(case) / (1e9 * speeds[way]) if way in speeds else runner.seconds
        runner.outcome.attention = [seconds, 1.1 * seconds, 0.9 * seconds]
        runner.outcome.tokens = [seconds + 0.001, 1.1 * seconds, 0.9 * seconds]
        runner.outcome.predicted = 1.1 * (seconds + 0.001)
        runner.outcome.up, runner.outcome.down, runner.outcome.cpu = runner.step
        row.ways[way] = runner.outcome
    row.peer = machine.peer
    return row


def a_run() -> Run:
    """Return a whole run as it might be, judged."""
    run = Run(
        "2026-11-23T07:00:00+00:00", ENVIRONMENT, {"level": "default"}, {"name": "test"},
        {name: [value, 1.01 * value] for name, value in LIMITS.items()}, [a_row()], {"x/L2/S1/B1": "no room"},
        a_long_run(),
    )  # fmt: skip
    run.goals.extend(judge(run))
    return run
