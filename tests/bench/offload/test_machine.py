"""Planner, runtime and decoder together, on CPU memory that plays a device: what a GPU runs, in small."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastattention.bench.offload import hugging_face, machine, measure
from fastattention.bench.offload.cases import WAYS, OffloadCase
from fastattention.bench.offload.limits import Sizes
from fastattention.bench.offload.long_run import run_long
from fastattention.bench.offload.machine import CAPACITY, OffloadMachine
from fastattention.models.offloaded import OffloadedSession
from fastattention.offload.hardware import Hardware, hardware
from fastattention.offload.shapes import ModelShape, model_shape
from fastattention.runtime.cooperative import CooperativeCache
from fastattention.runtime.numpy_device import NumpyDevice

TINY = dataclasses.replace(
    model_shape("llama-3-8b"), name="tiny", layers=3, hidden=32, feed_forward=48, heads=4, kv_heads=2,
    head_dim=16, vocab_size=64, context=4096,
)  # fmt: skip
CASE = OffloadCase("tiny", 3, 200, 1, peer=True)


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "model_shape", lambda name: TINY)


@pytest.fixture
def host() -> Hardware:
    return hardware("h200")


@pytest.fixture
def tiny(host: Hardware) -> Iterator[Callable[..., OffloadMachine]]:
    made: list[tuple[OffloadMachine, NumpyDevice]] = []

    def make(**options: Any) -> OffloadMachine:
        device = NumpyDevice()
        options = {"host_bytes": 2**28, "hardware": host, "probed": Sizes(2, 64, 4, 2, 16)} | options
        made.append((OffloadMachine(device, 1, **options), device))
        return made[-1][0]

    yield make
    for one, device in made:
        one.close()
        assert device.host_bytes == 0, "host memory was not given back"


@pytest.mark.parametrize("batch", [1, 2])
def test_all_ways(batch: int, tiny: Callable[..., OffloadMachine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "ask", lambda case, shape, seed: {"missing": f"no {shape.name}"})
    found = tiny()
    case = dataclasses.replace(CASE, batch=batch)
    assert found.fit(case) == (case, "")
    found.reserve([case])
    row = measure.measure_case(case, found, 1e-9, True)
    assert {name: way.status for name, way in row.ways.items()} == dict.fromkeys(WAYS, "ok")
    assert row.cache_bytes == 3 * batch * 200 * 2 * 16 * 2 * 2
    token = 2 * 16 * 2 * 2 * batch  # bytes of a token's keys and values in a layer
    for name, way in row.ways.items():
        assert way.placement == {WAYS[name]: 3}
        assert way.threads == 1, "as the machine was asked"
        assert len(way.attention) == len(way.tokens) == 3
        assert (way.attention_error is None) == (name == "all-GPU")
        assert way.predicted is not None
        assert way.predicted > 0
    # The second step after 200 tokens and one: the cache as it lies there, and the step's own row.
    assert row.ways["classical"].up == 3 * 201 * token
    assert row.ways["classical"].cpu == row.ways["all-GPU"].up == 0
    assert row.ways["cooperative"].cpu == 3 * 202 * token
    split = row.ways["split"]
    assert split.share is not None
    # Whole keys, and the step's own row: a measured share may be so small that they count.
    assert split.cpu == pytest.approx(split.share * 3 * 201 * token, abs=3 * 1.5 * token)
    assert split.cpu + split.up == pytest.approx(3 * 202 * token, rel=0.05)
    assert row.peer == {"missing": "no tiny"}
    assert found.environment()["device"] == "numpy"
    assert found.hardware()["name"] == hardware("h200").name


def test_a_fault_of_the_runtime_is_found(
    tiny: Callable[..., OffloadMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is filled with other rows when it lies in host memory gives other outputs."""
    fill = CooperativeCache.fill_random

    def other(self: CooperativeCache, length: int, seed: int = 0) -> None:
        fill(self, length, seed + ("host" in self._placement_of_test))

    monkeypatch.setattr(CooperativeCache, "fill_random", other)
    make = CooperativeCache.from_plan.__func__  # type: ignore[attr-defined]

    def from_plan(cls: Any, plan: Any, device: Any, **options: Any) -> CooperativeCache:
        cache: CooperativeCache = make(cls, plan, device, **options)
        cache._placement_of_test = plan.placement  # type: ignore[attr-defined]
        return cache

    monkeypatch.setattr(CooperativeCache, "from_plan", classmethod(from_plan))
    found = tiny()
    found.reserve([CASE])
    with pytest.raises(
        measure.WrongOutputError, match=r"tiny/L3/S200/B1: cooperative: attention deviates from all-GPU"
    ):
        measure.measure_case(CASE, found, 1e-9, False)


def test_fewer_layers_where_host_memory_is_short(tiny: Callable[..., OffloadMachine]) -> None:
    layer = machine.host_bytes(CASE) // 3
    found = tiny(host_bytes=5 * layer // 2)
    fewer, why = found.fit(CASE)
    assert fewer == dataclasses.replace(CASE, layers=2)
    assert "2 of 3 layers take part: tiny/L2/S200/B1" in why
    with pytest.raises(measure.LeftOutError, match="of host memory are free"):
        tiny(host_bytes=layer).fit(CASE)


def test_foretold_from_what_a_row_finds(tiny: Callable[..., OffloadMachine], host: Hardware) -> None:
    """Half the rates, twice the time: what the machine had at first does not count."""
    found = tiny(hardware=host.replace(latency=0.0, queue=0.0))
    big = dataclasses.replace(CASE, context=2**18)
    limits = {"bus up": 50.0, "CPU attention": 100.0}
    limits |= {"bus up, both at once": 40.0, "CPU attention, both at once": 80.0}
    seconds = []
    for factor in (1.0, 0.5):
        found.foretell_from({name: factor * rate for name, rate in limits.items()})
        assert found.hardware()["host_bandwidth"] == pytest.approx(factor * 120e9)
        seconds.append([found.plan(big, TINY, way)[1] for way in ("classical", "cooperative", "split")])
    assert np.divide(*seconds[::-1]) == pytest.approx(2.0, rel=0.1)


def test_the_caches_of_all_ways_lie_in_one_allocation(tiny: Callable[..., OffloadMachine]) -> None:
    found = tiny()
    found.reserve([CASE])
    device = found._device
    held = device.host_bytes
    with found.open(CASE) as field:
        for way in ("classical", "cooperative", "split"):
            with field.open(way):
                # Beside them: the logits of a session, (B, vocabulary) in float32.
                assert device.host_bytes == held + 4 * TINY.vocab_size
    assert device.host_bytes == held


def test_all_gpu_is_left_out_where_it_does_not_fit(tiny: Callable[..., OffloadMachine]) -> None:
    found = tiny()
    found.reserve([CASE])
    found._device._bytes = 2**20
    row = measure.measure_case(CASE, found, 1e-9, False)
    assert row.ways["all-GPU"].status == "left out"
    assert "of the GPU's memory are free" in row.ways["all-GPU"].detail
    assert row.compared_with == "classical"
    assert row.ways["split"].attention_error is not None


def test_tokens_are_the_same_for_all_ways(tiny: Callable[..., OffloadMachine]) -> None:
    found = tiny()
    found.reserve([CASE])
    logits = []
    with found.open(CASE) as field:
        for way in WAYS:
            with field.open(way) as runner:
                first = runner.token(3)
                runner.token(4)
                runner.rewind()
                np.testing.assert_array_equal(first, runner.token(3))
                logits.append(first)
    for other in logits[1:]:
        assert measure.deviation(logits[0], other) < measure.LOGITS_TOLERANCE
    assert np.abs(logits[0]).max() > 0.01


def test_the_long_run(host: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU holds the weights and some of the cache: other layers go to host memory."""
    device = NumpyDevice()
    shape = dataclasses.replace(TINY, layers=6)
    context = 1000
    cache = 4 * 2 * 16 * context  # bytes of a layer
    limit = _limit_that_holds(shape, host, context, 3 * cache)
    taken: list[int] = []
    forward = OffloadedSession.forward

    def note(self: OffloadedSession, tokens: Any, progress: Any = None) -> Any:
        logits = forward(self, tokens, progress)
        taken.append(self.position)
        return logits

    monkeypatch.setattr(OffloadedSession, "forward", note)
    told: list[str] = []
    steps: list[tuple[int, int]] = []
    small = dataclasses.replace(host, gpu_reserved=0)
    run = run_long(
        device, shape, small, context=context, steps=4, gpu_limit=limit, threads=1, say=told.append,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert 0 < run.largest_without < context
    assert str(run.largest_without) in run.refused.replace(",", "")
    assert told[0].startswith("without cooperation: ")
    assert told[1:] == ["weights", "cache and prefill", "decode"]
    assert steps[-1] == (context, context)
    assert len(steps) == -(-context // run.plan["chunk"])
    assert {"gpu"} < set(run.plan["placement"])
    assert len(run.tokens) == 4
    assert taken == [context, *range(context + 1, context + 5)]
    assert run.prefill > 0
    assert run.predicted_prefill is not None
    assert run.predicted_token is not None
    assert run.samples[-1].tokens == context + 4
    assert run.peaks["host"] > 0
    assert device.host_bytes == 0


def _limit_that_holds(shape: ModelShape, host: Hardware, context: int, cache: int) -> int:
    """Return bytes for weights, buffers and some of the cache, found by asking the planner."""
    from fastattention.bench.offload.plans import plan_freely

    small = dataclasses.replace(host, gpu_reserved=0)
    low = cache
    for _ in range(64):
        try:
            plan, _, _ = plan_freely(
                shape,
                dataclasses.replace(small, gpu_memory=low),
                context=context + 4,
                dtype="float16",
                threads=1,
            )
        except ValueError:
            low = int(1.1 * low)
            continue
        if "gpu" in plan.placement:
            return low
        low = int(1.1 * low)
    raise AssertionError("no limit found")


def test_the_long_run_needs_a_reason(host: Hardware) -> None:
    with pytest.raises(ValueError, match="fit on the GPU without cooperation"):
        run_long(NumpyDevice(), TINY, host, context=64, steps=2, gpu_limit=2**36, threads=1)


def test_capacity_is_enough_for_all_steps() -> None:
    assert CAPACITY >= 3 + measure._MOST
