"""A machine that drifts while it is measured changes no percentage and no ratio."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest

from fastattention.bench import measure, results, rounds
from fastattention.bench.cases import Case

CASE = Case("prefill", "float32", 8, 8, 4096, 4096, 128)
PERCENT, RATIO = 80.0, 2.0  # what is true of the fake kernel and of the fake peer
USEFUL = 8 * 10**8
LENGTH = 3.0  # seconds a measurement takes, about


class Machine:
    """A clock, and a limit in GFLOP/s that depends on it."""

    def __init__(self, speed: Callable[[float], float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = 0.0
        self.speed = speed
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.clock)
        monkeypatch.setattr(rounds.time, "sleep", self.wait)

    def wait(self, seconds: float) -> None:
        self.clock += seconds

    def work(self, amount: float) -> None:
        """Do `amount` 1e9 operations at the limit."""
        while amount > 1e-12:
            step = min(1e-3, amount / self.speed(self.clock))
            amount -= step * self.speed(self.clock)
            self.clock += step

    def probe(self) -> float:
        begin = self.clock
        amount = 0.03 * self.speed(begin)
        self.work(amount)
        return amount / (self.clock - begin)

    def ours(self) -> None:
        self.work(USEFUL * 1e-9 * 100 / PERCENT)

    def peer(self) -> None:
        self.work(USEFUL * 1e-9 * 100 / PERCENT * RATIO)

    def row(self, count: int = 5) -> results.Row:
        seen = rounds.take_turns(
            self.probe, self.ours, {"Peer": self.peer}, count=count, budget=1.5, peer_budget=1.0
        )
        peers = {"Peer": results.PeerResult("ok", "way", 0.0, seen.peers["Peer"])}
        return results.Row(CASE, USEFUL, 0.0, seen.ours, "FMA", seen.limits, None, peers)


def steady(t: float) -> float:
    return 100.0


def hump(t: float) -> float:
    return 100 + 80 * math.sin(math.pi * t / LENGTH) ** 2


def slowing(t: float) -> float:
    return max(160 - 80 * t / LENGTH, 40)


def burst(t: float) -> float:
    return 50.0 if 1.1 < t < 1.4 else 100.0  # a neighbour, for a part of a round


@pytest.mark.parametrize("speed", [steady, hump, slowing, burst])
def test_drift_changes_no_figure(speed: Callable[[float], float], monkeypatch: pytest.MonkeyPatch) -> None:
    row = Machine(speed, monkeypatch).row()
    assert row.percent == pytest.approx(PERCENT, abs=3)
    assert row.peer_percent("Peer") == pytest.approx(PERCENT / RATIO, abs=3)
    # Ours comes first in every round: what the machine loses within a round, the peer pays for.
    assert row.ratio("Peer") == pytest.approx(RATIO, rel=0.08)
    low, high = row.percent_range
    assert low <= row.percent <= high
    if speed is steady:
        assert high - low < 1
    if speed is burst:
        assert high - low > 5


def test_before_and_after_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(hump, monkeypatch)
    before = machine.probe()
    times = measure.time_call(machine.ours, LENGTH - 0.06)
    after = machine.probe()
    assert after == pytest.approx(before, rel=0.05)  # and nothing seems to have moved
    percent = 100 * USEFUL * 1e-9 / statistics.median(times) / ((before + after) / 2)
    assert percent > PERCENT + 20


def test_one_after_the_other_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(slowing, monkeypatch)
    ours, theirs = (
        statistics.median(measure.time_call(call, LENGTH / 2)) for call in (machine.ours, machine.peer)
    )
    assert theirs / ours > 1.2 * RATIO


def test_everybody_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(steady, monkeypatch)
    events: list[str] = []

    def noted(name: str, seconds: float, result: float = 0.0) -> Callable[[], float]:
        def call() -> float:
            events.append(name)
            machine.clock += seconds
            return result

        return call

    monkeypatch.setattr(rounds.time, "sleep", lambda seconds: events.append(f"wait {seconds}"))
    seen = rounds.take_turns(
        noted("probe", 0.03, 7.0),
        noted("ours", 0.25),
        {"a": noted("a", 0.4), "b": noted("b", 0.125)},
        count=2,
        budget=1.0,  # 0.5 a round
        peer_budget=0.5,
        pause=0.5,
    )
    one = ["probe", "ours", "ours", "a", "wait 0.5", "b", "b", "wait 0.5"]
    assert events == [*one, *one, "probe"]
    assert seen.limits == [7.0] * 3
    assert seen.ours == [pytest.approx([0.25] * 2)] * 2
    assert seen.peers == {"a": [pytest.approx([0.4])] * 2, "b": [pytest.approx([0.125] * 2)] * 2}


def test_a_peer_that_raises_later_is_out() -> None:
    calls = {"bad": 0, "good": 0}

    def bad() -> None:
        calls["bad"] += 1
        if calls["bad"] == 2:
            raise MemoryError("no room")

    def good() -> None:
        calls["good"] += 1

    def nothing() -> None:
        pass

    peers = {"bad": bad, "good": good}
    seen = rounds.take_turns(lambda: 1.0, nothing, peers, count=4, budget=0, peer_budget=0)
    assert calls == {"bad": 2, "good": 4}
    assert set(seen.peers) == {"good"}
    assert str(seen.raised["bad"]) == "no room"
    assert len(seen.ours) == len(seen.peers["good"]) == 4


def test_our_error_is_not_hidden() -> None:
    def broken() -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        rounds.take_turns(lambda: 1.0, broken, {}, count=2, budget=0, peer_budget=0)


def test_percents_and_ratios_are_of_the_same_round() -> None:
    ours = [[1.0, 1.0, 9.0], [2.0]]
    assert rounds.percents(50.0, ours, [100.0, 100.0, 50.0]) == pytest.approx([50, 100 * 25 / 75])
    assert rounds.ratios(ours, [[3.0], [1.0]]) == [3.0, 0.5]
    with pytest.raises(ValueError, match=r"zip\(\)"):
        rounds.percents(50.0, ours, [100.0, 100.0])  # a probe is missing


def test_a_slow_peer_has_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def taking(seconds: float) -> Callable[[], object]:
        def call() -> object:
            clock[0] += seconds
            return None

        return call

    peers = {"slow": taking(5.0), "quick": taking(0.1)}
    seen = rounds.take_turns(lambda: 1.0, taking(0.1), peers, count=3, budget=1.0, peer_budget=1.0)
    assert [len(turns) for turns in seen.peers.values()] == [1, 3]
    assert len(seen.ours) == 3
    assert rounds.ratios(seen.ours, seen.peers["slow"]) == pytest.approx([50.0])
    seen = rounds.take_turns(
        lambda: 1.0, taking(0.1), peers, count=3, budget=0.9, peer_budget=0.3, every={"slow"}
    )
    assert [len(turns) for turns in seen.peers.values()] == [3, 3]
    seen = rounds.take_turns(
        lambda: 1.0, taking(0.1), peers, count=3, budget=0.9, peer_budget=0.3, every=peers
    )
    assert [len(turn) for turn in seen.peers["quick"]] == [3, 3, 3]  # our budget, not a peer's


def test_what_a_turn_leaves_behind_is_undone_before_the_next() -> None:
    moved = False

    def turn(leaves: bool) -> Callable[[], float]:
        def call() -> float:
            nonlocal moved
            assert not moved
            moved = leaves
            return 1.0

        return call

    def settle() -> None:
        nonlocal moved
        moved = False

    rounds.take_turns(
        turn(True), turn(True), {"peer": turn(True)}, count=2, budget=0, peer_budget=0, settle=settle
    )
