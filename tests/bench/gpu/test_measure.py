"""A row's rounds: who is asked what, in which order, and what becomes of those that cannot or are wrong."""

from __future__ import annotations

import pytest

from fastattention.bench.gpu.cases import GpuCase
from fastattention.bench.gpu.measure import Field, WrongOutputError, measure_case
from fastattention.bench.peers import UnsupportedError

from .fakes import FakeDevice, FakeWay

PREFILL = GpuCase("prefill", "float16", 16, 16, 4096, 4096, 128, causal=True, batch=4)
DECODE = GpuCase("decode", "float16", 32, 8, 1, 32768, 128)


class OneField(FakeDevice):
    """A device whose row is given."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def open(self, case):  # type: ignore[no-untyped-def]
        class Context:
            def __enter__(inner) -> Field:  # noqa: N805
                return self.field

            def __exit__(inner, *error: object) -> None:  # noqa: N805
                pass

        return Context()


def rows_of(ours: FakeWay, **peers: list[FakeWay]):  # type: ignore[no-untyped-def]
    field = Field(1, 5e-3, [(ours, "copy", False)], peers, lambda way: way.last_resort)  # type: ignore[attr-defined]
    return measure_case(DECODE, OneField(field), 3)


def test_everybody_is_checked_first_and_then_takes_turns() -> None:
    device = FakeDevice()
    measure_case(PREFILL, device, 2)
    names = ["atom 80", "atom 75", "atom 70", "memory-efficient", "flash"]
    limits = [("probe", name) for name in ("m16n8k16", "m16n8k8", "m8n8k4")]
    turn = [(mode, name) for mode in ("graph", "launches") for name in names]
    checks = [("check", name) for name in names] + [("check graph", name) for name in names]
    assert device.log == [*checks, *limits, *turn, *limits, *turn, *limits]


def test_figures_of_a_row() -> None:
    row = measure_case(PREFILL, FakeDevice(), 3)
    assert row.ours == ["atom 80", "atom 75", "atom 70"]
    assert row.peers == ["memory-efficient", "flash"]
    assert row.rate("atom 80") == pytest.approx(300)
    assert row.percent("atom 80") == pytest.approx(50)
    assert row.percent("atom 75") == pytest.approx(60)
    assert row.ratio("atom 80", "memory-efficient") == pytest.approx(1.5)
    assert row.ratio("atom 80", "nobody") is None
    assert row.contenders["atom 70"].emulated
    assert not row.contenders["atom 75"].emulated
    assert row.seconds("atom 80", "launches") == pytest.approx(row.seconds("atom 80") + 2e-6)
    decode = measure_case(DECODE, FakeDevice(), 3)
    assert decode.percent("atom 80") == pytest.approx(90)
    assert decode.ratio("atom 80", "PyTorch") == pytest.approx(1.2)


def test_the_fastest_right_way_of_a_library_takes_part() -> None:
    log: list[tuple[str, str]] = []
    ways = [
        FakeWay("PyTorch", "none", 1e-6, log, problem=UnsupportedError("no kernel of none")),
        FakeWay("PyTorch", "wrong", 1e-6, log, error=0.1),
        FakeWay("PyTorch", "slow", 3e-5, log),
        FakeWay("PyTorch", "fast", 2e-5, log),
        FakeWay("PyTorch", "last", 1e-6, log, last_resort=True),
    ]
    row = rows_of(FakeWay("atom 80", "file", 1e-5), PyTorch=ways)
    assert row.contenders["PyTorch"].detail == "fast"
    assert row.ratio("atom 80", "PyTorch") == pytest.approx(2.0)


def test_the_last_resort_takes_part_where_nothing_else_is_right() -> None:
    ways = [
        FakeWay("PyTorch", "bad", 1e-6, problem=RuntimeError("no\nluck")),
        FakeWay("PyTorch", "last", 1e-4, last_resort=True),
    ]
    row = rows_of(FakeWay("atom 80", "file", 1e-5), PyTorch=ways)
    assert row.contenders["PyTorch"].detail == "last"


@pytest.mark.parametrize(
    ("way", "status", "detail"),
    [
        (FakeWay("p", "b", 1.0, problem=UnsupportedError("no such case")), "unsupported", "no such case"),
        (FakeWay("p", "b", 1.0, problem=RuntimeError("first\nsecond")), "failed", "b: RuntimeError: first"),
        (FakeWay("p", "b", 1.0, error=0.02), "failed", "b: error 2.0e-02, more than 5e-03"),
        (FakeWay("p", "b", 1.0, error=float("nan")), "failed", "b: error nan, more than 5e-03"),
    ],
)
def test_a_library_that_cannot_is_a_finding(way: FakeWay, status: str, detail: str) -> None:
    row = rows_of(FakeWay("atom 80", "file", 1e-5), p=[way])
    who = row.contenders["p"]
    assert (who.status, who.detail, who.graph, who.launches) == (status, detail, [], [])
    assert row.ratio("atom 80", "p") is None


@pytest.mark.parametrize("change", [{"error": 6e-3}, {"error": float("nan")}, {"graph_error": float("nan")}])
def test_a_wrong_output_of_ours_stops(change: dict[str, float]) -> None:
    with pytest.raises(WrongOutputError, match="atom 80"):
        rows_of(FakeWay("atom 80", "file", 1e-5, **change))  # type: ignore[arg-type]


def test_who_is_not_captured_is_launched_on_both_sides() -> None:
    ours = FakeWay("atom 80", "file", 1e-5, why_no_graph="RuntimeError: cudaErrorStreamCaptureUnsupported")
    row = rows_of(ours, p=[FakeWay("p", "b", 3e-5)])
    who = row.contenders["atom 80"]
    assert (who.graph, len(who.launches), who.graph_calls) == ([], 3, 0)
    assert who.not_captured.endswith("CaptureUnsupported")
    assert (row.mode("atom 80"), row.mode("p"), row.mode("atom 80", "p")) == ("launches", "graph", "launches")
    assert row.ratio("atom 80", "p") == pytest.approx(32 / 12)


def test_a_wrong_graph_of_a_library_is_not_timed() -> None:
    row = rows_of(FakeWay("atom 80", "file", 1e-5), p=[FakeWay("p", "b", 3e-5, graph_error=1.0)])
    who = row.contenders["p"]
    assert who.not_captured == "the graph's output is wrong: error 1.0e+00"
    assert (who.graph, len(who.launches)) == ([], 3)
