"""What cooperation is meant to reach. A release adds lines.

All are ratios of what was measured in the same run, at equal placement: every layer's cache in host memory.
By theory reading the cache where it lies wins by Bc / Bp at most, and sharing it by (Bc + Bp) / Bp.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from ..results import Goal
from .cases import ALL_GPU
from .results import LongRun, Row, Run

__all__ = ["BUS_PERCENT", "PEER", "PREDICTION", "SPEEDUP", "judge"]

#: Times as fast as classical offloading, both a host layer's attention and a whole token.
SPEEDUP = {"cooperative": 1.8, "split": 2.0}
#: Times as fast as Hugging Face's offloaded cache, by a whole token.
PEER = 20.0
#: The planner's error, in percent of the measured time.
PREDICTION = 15.0
#: What classical offloading reaches of the measured rate of the bus: so much is the baseline worth.
BUS_PERCENT = 90.0


def judge(run: Run) -> list[Goal]:
    """Hold every row to its targets. What was not timed is not judged."""
    goals = [goal for row in run.rows for goal in _of_row(row)]
    if run.long is not None:
        goals.extend(_of_long_run(run.long))
    return goals


def _of_row(row: Row) -> Iterator[Goal]:
    for way, bound in SPEEDUP.items():
        if row.done("classical", way):
            layer = row.ways["classical"].step / row.ways[way].step
            token = row.ways["classical"].token / row.ways[way].token
            yield _least(
                row, way, "speed", f"{bound:g}x a layer", layer, bound, "of classical's speed, a host layer"
            )
            yield _least(
                row, way, "speed", f"{bound:g}x a token", token, bound, "of classical's speed, a token"
            )
    if row.done("classical") and row.limits.get("bus up"):
        classical = row.ways["classical"]
        percent = 100e-9 * classical.up / classical.step / statistics.mean(row.limits["bus up"])
        yield Goal(
            f"{row.case.name} classical", "limit", f"{BUS_PERCENT:g} %",
            f"classical: {percent:.1f} % of the bus", percent, BUS_PERCENT, percent >= BUS_PERCENT,
        )  # fmt: skip
    if row.peer_token is not None:
        for way in ("cooperative", "split"):
            if row.done(way):
                ratio = row.peer_token / row.ways[way].token
                yield _least(
                    row, way, "peers", f"{PEER:g}x transformers", ratio, PEER, "of transformers' speed"
                )
    for name, outcome in row.ways.items():
        error = outcome.prediction_error
        if outcome.status == "ok" and name != ALL_GPU and error is not None:
            yield _foretold(f"{row.case.name} {name}", 100 * error, "a token")


def _of_long_run(long: LongRun) -> Iterator[Goal]:
    name = f"{long.model}/S{long.context}"
    yield Goal(
        f"{name} memory", "memory", f"{long.gpu_limit / 2**30:g} GiB",
        f"at most {long.peaks['pool_total'] / 2**30:.1f} GiB of the GPU's memory in CuPy's pool",
        long.peaks["pool_total"] / 2**30, long.gpu_limit / 2**30, long.peaks["pool_total"] <= long.gpu_limit,
    )  # fmt: skip
    for what, seconds, foretold in (
        ("prefill", long.prefill, long.predicted_prefill),
        ("a token", long.token, long.predicted_token),
    ):
        if foretold is not None:
            yield _foretold(f"{name} {what}", 100 * (foretold / seconds - 1), what)


def _least(row: Row, way: str, kind: str, text: str, value: float, bound: float, words: str) -> Goal:
    return Goal(
        f"{row.case.name} {way}",
        kind,
        text,
        f"{way}: {value:.2f} times {words}",
        value,
        bound,
        value >= bound,
    )


def _foretold(row: str, percent: float, what: str) -> Goal:
    found = f"the planner's time for {what} is {abs(percent):.1f} % too {'long' if percent > 0 else 'short'}"
    return Goal(
        row, "prediction", f"± {PREDICTION:g} %", found, abs(percent), PREDICTION, abs(percent) <= PREDICTION
    )
