"""What is wrong is not timed, and the limits are real."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastattention.cpu_kernels import available_isas

import fastattention
from fastattention.bench import measure, peers
from fastattention.bench.cases import Case, Data, make_data
from fastattention.bench.limits import arithmetic_limit, probe, probe_arithmetic, probe_read
from fastattention.bench.run import our_call

CASE = Case("prefill", "float32", q_heads=4, kv_heads=2, q_len=24, k_len=40, head_dim=16, causal=True)


def right(case: Case, data: Data) -> np.ndarray:
    out = np.full_like(data.q, np.nan)
    our_call(case, data, out)()
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("window", "mask"), [(None, None), ((5, 0), None), (None, "bool"), (None, "float32")]
)
def test_kernels_pass_the_check(dtype: str, window: tuple[int, int] | None, mask: str | None) -> None:
    case = Case("prefill", dtype, 4, 2, 24, 40, 16, causal=True, window=window, mask=mask)
    data = make_data(case)
    assert measure.error(measure.expected_rows(case, data), right(case, data)) <= measure.TOLERANCE[dtype]


@pytest.mark.parametrize("damage", ["scale", "nan", "last row", "shape"])
def test_check_finds_wrong_output(damage: str) -> None:
    data = make_data(CASE)
    expected = measure.expected_rows(CASE, data)
    out = right(CASE, data)
    if damage == "scale":
        out *= 1.001
    elif damage == "nan":
        out[0, 0, 0, 3] = np.nan
    elif damage == "last row":
        out[0, -1, -1] += 0.01
    else:
        out = out[:, :, :-1]
    assert not measure.error(expected, out) <= measure.TOLERANCE["float32"]


def test_tolerance_tells_bfloat16_from_float32() -> None:
    half = Case("prefill", "bfloat16", 4, 2, 24, 40, 16, causal=True)
    data = make_data(half)
    wide = Data(*(array.astype(np.float32) for array in (data.q, data.k, data.v, data.kv)), mask=None)
    expected = measure.expected_rows(CASE, wide)
    assert measure.error(expected, right(half, data)) > measure.TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("seconds", "budget", "minimum", "calls"),
    [
        (0.125, 3.0, 5, 10),  # steady: stops once that can be told, at ten
        (0.1, 0.25, 5, 5),  # over the budget, but not by much: the minimum
        (1.0, 0.25, 5, 3),  # far over the budget: three
        (1.0, 0.25, 2, 2),
        (0.001, 60.0, 5, 2000),  # the maximum
    ],
)
def test_time_call_keeps_to_its_budget(
    seconds: float, budget: float, minimum: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def call() -> None:
        clock[0] += seconds

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    times = measure.time_call(call, budget=budget, minimum=minimum)
    assert len(times) == calls
    assert times == pytest.approx([seconds] * calls)


def test_time_call_stops_early_only_when_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(durations: list[float]) -> int:
        clock = [0.0]
        left = iter(durations)

        def call() -> None:
            clock[0] += next(left)

        monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
        return len(measure.time_call(call, budget=9.0))

    assert count([0.125] * 200) == 24  # a third of the budget is always used
    assert count([0.05, 0.15] * 100) == 90


def test_timing_summary() -> None:
    timing = measure.Timing([3.0, 1.0, 2.0, 4.0, 100.0], 0.0)
    assert timing.median == 3.0
    low, high = timing.spread
    assert 1.0 <= low < 3.0 < high <= 100.0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")
def test_pinned_restores_affinity() -> None:
    before = os.sched_getaffinity(0)
    with measure.pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == 1
        assert all(os.sched_getaffinity(int(t.name)) == set(cores) for t in Path("/proc/self/task").iterdir())
    assert os.sched_getaffinity(0) == before


def test_limits_are_positive_and_ordered() -> None:
    limits = {isa: probe_arithmetic(1, isa, seconds=0.02) for isa in available_isas()}
    for isa, found in limits.items():
        assert found.fma_gflops > 0.1, isa
        assert found.bf16_dot_gflops >= 0
        assert found.int8_dot_gops >= 0
    name, value = arithmetic_limit(limits["baseline"], "bfloat16")
    assert (name, value) == ("baseline mul+add", limits["baseline"].fma_gflops)


def test_probe_of_a_missing_isa_is_not_invented() -> None:
    with pytest.raises(ValueError, match="avx1024"):
        probe_arithmetic(1, "avx1024")


@pytest.mark.parametrize("threads", [1, 2])
def test_read_probe(threads: int) -> None:
    buffer = np.ones(1 << 20, dtype=np.float32)
    assert 0.01 < probe_read(buffer, threads, repeats=1) < 1e5
    assert probe_read(buffer[1:1001], threads, repeats=1) > 0  # not aligned to a line
    assert probe_read(buffer[:8], threads, repeats=1) == 0  # less than a line for each


def test_probe_chooses_by_kind() -> None:
    decode = Case("decode", "float32", 4, 2, 1, 4096, 64)
    name, value, arithmetic = probe(decode, make_data(decode).kv, fastattention.get_isa())
    assert name == "read"
    assert value > 0
    assert arithmetic is None


class FakePeer:
    """A library made of functions from data to output."""

    name = "Fake"
    version = "1"

    def __init__(self, *ways: Callable[[Case, Data], np.ndarray]) -> None:
        self.ways = ways
        self.calls = [0] * len(ways)

    def variants(self, case: Case, data: Data) -> list[Callable[[], peers.Variant]]:
        def maker(number: int) -> Callable[[], peers.Variant]:
            def make() -> peers.Variant:
                out: list[np.ndarray] = []

                def call() -> None:
                    self.calls[number] += 1
                    out[:] = [self.ways[number](case, data)]

                return peers.Variant(f"way {number}", call, lambda: out[0])

            return make

        return [maker(number) for number in range(len(self.ways))]


def slow(case: Case, data: Data) -> np.ndarray:
    time.sleep(0.01)
    return right(case, data)


def wrong(case: Case, data: Data) -> np.ndarray:
    return 2 * right(case, data)


def not_a_number(case: Case, data: Data) -> np.ndarray:
    return np.nan * right(case, data)


def raising(case: Case, data: Data) -> np.ndarray:
    raise RuntimeError("no such kernel\nand a trace")


def unsupported(case: Case, data: Data) -> np.ndarray:
    raise peers.UnsupportedError("no grouped heads")


def measured(*ways: Callable[[Case, Data], np.ndarray]) -> tuple[peers.PeerResult, FakePeer]:
    data = make_data(CASE)
    peer = FakePeer(*ways)
    return peers.measure(peer, CASE, data, measure.expected_rows(CASE, data), budget=0.01), peer


def test_fastest_right_way_is_timed() -> None:
    result, peer = measured(slow, wrong, right, raising, unsupported)
    assert (result.status, result.detail) == ("ok", "way 2")
    assert result.timing is not None
    assert result.timing.error <= measure.TOLERANCE["float32"]
    assert peer.calls[1] == 1  # checked once, never timed


@pytest.mark.parametrize("bad", [wrong, not_a_number])
def test_wrong_peer_is_reported_not_timed(bad: Callable[[Case, Data], np.ndarray]) -> None:
    result, peer = measured(bad, unsupported)
    assert result.status == "failed"
    assert "way 0: error" in result.detail
    assert "no grouped heads" in result.detail
    assert result.timing is None
    assert peer.calls == [1, 1]


def test_raising_peer_is_reported_in_one_line() -> None:
    result, _ = measured(raising)
    assert (result.status, result.detail) == ("failed", "RuntimeError: no such kernel")


def test_peer_without_the_case() -> None:
    result, _ = measured(unsupported)
    assert (result.status, result.detail) == ("unsupported", "no grouped heads")


def test_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    for name in peers.NAMES:
        monkeypatch.setattr(f"fastattention.bench.{peers.NAMES[name]}.import_any", missing)
    found, absent = peers.load(peers.NAMES)
    assert found == []
    assert set(absent) == set(peers.NAMES)
    assert "torch" in absent["pytorch"]


@pytest.mark.peers
@pytest.mark.parametrize("name", peers.NAMES)
@pytest.mark.parametrize(
    "case",
    [
        Case("prefill", "float32", 4, 4, 40, 40, 16),
        Case("prefill", "float32", 4, 4, 40, 40, 16, causal=True),
        Case("prefill", "float32", 4, 2, 40, 40, 16, causal=True, window=(7, 0)),
        Case("prefill", "float32", 4, 4, 40, 40, 16, mask="bool"),
        Case("prefill", "float32", 4, 4, 40, 40, 16, mask="float32"),
        Case("decode", "float32", 8, 2, 1, 64, 64),
        Case("decode", "float16", 8, 2, 1, 64, 64),
        Case("prefill", "bfloat16", 4, 4, 40, 40, 32, causal=True),
    ],
    ids=lambda case: case.name,
)
def test_installed_peers_agree(name: str, case: Case) -> None:
    found, absent = peers.load([name])
    if absent:
        pytest.skip(absent[name])
    data = make_data(case)
    result = peers.measure(found[0], case, data, measure.expected_rows(case, data), budget=0)
    if (name, case.dtype) == ("onnxruntime", "bfloat16"):
        assert result.status == "unsupported"
    else:
        assert (result.status, result.detail) == ("ok", result.detail)
