"""What is wrong is not timed, and who takes turns with ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastattention
from fastattention.bench import measure, peers, results
from fastattention.bench.calls import make_out, our_call
from fastattention.bench.cases import Case
from fastattention.bench.data import Data, make_data
from fastattention.bench.plan import explain
from fastattention.bench.run import Effort, measure_case

CASE = Case("prefill", "float32", q_heads=4, kv_heads=2, q_len=24, k_len=40, head_dim=16, causal=True)


def right(case: Case, data: Data) -> np.ndarray:
    out = make_out(case, data)
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
    ("seconds", "budget", "maximum", "calls"),
    [
        (0.125, 1.0, 1000, 8),
        (0.375, 1.0, 1000, 3),  # 1.125 is nearer than 0.75
        (0.375, 0.875, 1000, 2),
        (5.0, 1.0, 1000, 1),  # far over the budget: once
        (1.0, 0.0, 1000, 1),
        (0.125, 60.0, 20, 20),
    ],
)
def test_time_call_keeps_to_its_budget(
    seconds: float, budget: float, maximum: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def call() -> None:
        clock[0] += seconds

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    assert measure.time_call(call, budget, maximum) == [seconds] * calls


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")
def test_pinned_restores_affinity() -> None:
    before = os.sched_getaffinity(0)
    with measure.pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == 1
        assert all(os.sched_getaffinity(int(t.name)) == set(cores) for t in Path("/proc/self/task").iterdir())
    assert os.sched_getaffinity(0) == before


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


def measured(*ways: Callable[[Case, Data], np.ndarray]) -> tuple[results.PeerResult, list[int]]:
    """Return what a benchmark of three rounds says of a peer, and how often each way was called."""
    peer = FakePeer(*ways)
    run = results.Run("", {"isa": fastattention.get_isa()}, {})
    measure_case(CASE, run, [peer], Effort(rounds=3, budget=0.003, peer_budget=0.0))
    (row,) = run.rows
    assert len(row.rounds) == len(row.limits) - 1 == 3
    return row.peers["Fake"], peer.calls


def test_fastest_right_way_is_timed() -> None:
    result, calls = measured(slow, wrong, right, raising, unsupported)
    assert (result.status, result.detail) == ("ok", "way 2")
    assert result.error is not None
    assert result.error <= measure.TOLERANCE["float32"]
    assert [len(times) for times in result.rounds] == [1, 1, 1]
    assert calls[1] == 1  # checked once, never timed
    assert calls[0] == 1  # so much slower that one call told


@pytest.mark.skipif(len(measure.process_cores()) < 2, reason="this process has one core")
def test_two_threads_take_turns_with_one() -> None:
    run = results.Run("", {"isa": fastattention.get_isa()}, {})
    case = replace(CASE, threads=2)
    measure_case(case, run, [FakePeer(right)], Effort(rounds=3, budget=0.003, peer_budget=0.0))
    (row,) = run.rows
    assert [len(row.rounds), len(row.alone)] == [3, 3]
    assert row.speedup == pytest.approx(
        np.median([np.median(a) / np.median(r) for a, r in zip(row.alone, row.rounds, strict=True)])
    )
    assert list(row.peers) == ["Fake"]


def test_a_forced_row_says_whose_kernels_ran_and_leaves_the_peers_out() -> None:
    run = results.Run("", {"isa": fastattention.get_isa()}, {})
    before = fastattention.get_isa()
    peer = FakePeer(right)
    effort = Effort(rounds=2, budget=0.001, peer_budget=0.0)
    measure_case(replace(CASE, isa="baseline"), run, [peer], effort)
    measure_case(CASE, run, [peer], effort)
    forced, usual = run.rows
    assert (forced.isa, forced.limit_name, forced.peers) == ("baseline", "baseline mul+add", {})
    assert peer.calls[0] > 0
    assert usual.isa == explain(CASE, before).isa
    assert usual.peers["Fake"].status == "ok"
    assert fastattention.get_isa() == before


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, True),
        ({"page_size": 8}, False),
        ({"dtype": "int8"}, False),
        ({"isa": "avx2"}, False),
        ({"batch": 2}, True),
    ],
)
def test_what_other_libraries_are_asked(changes: dict[str, object], asked: bool) -> None:
    assert peers.comparable(replace(CASE, **changes)) is asked  # type: ignore[arg-type]


def test_way_with_a_slow_start_is_timed() -> None:
    started: list[bool] = []

    def late(case: Case, data: Data) -> np.ndarray:
        time.sleep(0.005 if started else 0.015)  # the other way's 0.01 lies between
        started.append(True)
        return right(case, data)

    result, calls = measured(slow, late)
    assert result.detail == "way 1"
    assert calls == [2, 1 + 1 + 3]  # each checked and tried; the rounds


def test_peer_that_fails_between_rounds_is_reported() -> None:
    calls: list[bool] = []

    def tired(case: Case, data: Data) -> np.ndarray:
        calls.append(True)
        if len(calls) > 2:
            raise RuntimeError("enough")
        return right(case, data)

    result, _ = measured(tired)
    assert (result.status, result.detail) == ("failed", "way 0: RuntimeError: enough")
    assert result.rounds == []


@pytest.mark.parametrize("bad", [wrong, not_a_number])
def test_wrong_peer_is_reported_not_timed(bad: Callable[[Case, Data], np.ndarray]) -> None:
    result, calls = measured(bad, unsupported)
    assert result.status == "failed"
    assert "way 0: error" in result.detail
    assert "no grouped heads" in result.detail
    assert result.rounds == []
    assert calls == [1, 1]


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
        Case("prefill", "float32", 4, 4, 40, 40, 32, v_dim=16),
        Case("decode", "float32", 8, 2, 1, 64, 64, batch=3),
        Case("decode", "float32", 8, 8, 4, 64, 64, batch=2),
    ],
    ids=lambda case: case.name,
)
def test_installed_peers_agree(name: str, case: Case) -> None:
    found, absent = peers.load([name])
    if absent:
        pytest.skip(absent[name])
    data = make_data(case)
    result, way = peers.choose(found[0], case, data, measure.expected_rows(case, data))
    assert (way is not None) == (result.status == "ok")
    if (name, case.dtype) == ("onnxruntime", "bfloat16"):
        assert result.status == "unsupported"
    else:
        assert (result.status, result.detail) == ("ok", result.detail)
