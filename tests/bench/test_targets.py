"""Targets are set where they are meant to be, and judged by what rows and libraries did."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastattention.bench import targets
from fastattention.bench.cases import Case
from fastattention.bench.memory import Memory
from fastattention.bench.results import Goal, PeerResult, Row, Run
from fastattention.bench.rows import select
from fastattention.bench.targets import PEERS, RELATIONS, Relation, judge, target

LONG = Case("prefill", "float32", 8, 8, 4096, 4096, 128)
CACHE = Case("decode", "float32", 32, 8, 1, 32768, 128)


def row(case: Case, percent: float, **changes: object) -> Row:
    """Return a row that reaches `percent` of a limit of 100 units a second."""
    empty = Row(case, 10**9, 0, [[1.0]], "limit", [100.0, 100.0], target(case), {})
    seconds = empty.work / percent  # work / seconds is percent of 100 a second
    return replace(empty, rounds=[[seconds]], **changes)  # type: ignore[arg-type]


def judged(*rows: Row) -> list[Goal]:
    return judge(Run("", {}, {}, list(rows)))


@pytest.mark.parametrize(
    ("case", "percent"),
    [
        (LONG, 88),
        (replace(LONG, head_dim=64), 84),
        (replace(LONG, causal=True), 84),
        (replace(LONG, causal=True, window=(1024, 0)), 76),
        (replace(LONG, dtype="bfloat16"), 75),
        (replace(LONG, dtype="bfloat16", causal=True, head_dim=64, isa="avx512_bf16"), 60),
        (replace(LONG, dtype="float16", head_dim=64), 80),
        (replace(LONG, head_dim=80), None),
        (replace(LONG, v_dim=64), None),
        (replace(LONG, q_len=1024, k_len=1024), None),
        (replace(LONG, mask="bool"), None),
        (replace(LONG, threads=2), None),
        (CACHE, 85),
        (replace(CACHE, kv_heads=32), 90),
        (replace(CACHE, kv_heads=32, batch=8), 90),
        (replace(CACHE, dtype="int8", kv_heads=32), 85),
        (replace(CACHE, q_len=16), 75),
        (replace(CACHE, page_size=16), None),
        (replace(CACHE, threads=2), None),
        (Case("memory", "float32", 8, 8, 4096, 4096, 128), None),
    ],
)
def test_targets_of_the_limit(case: Case, percent: float | None) -> None:
    assert target(case) == percent


@pytest.mark.parametrize(("percent", "met"), [(88.0, True), (87.9, False)])
def test_a_target_of_the_limit_is_judged(percent: float, met: bool) -> None:
    (goal,) = judged(row(LONG, percent + 1e-9))
    assert (goal.row, goal.kind, goal.text, goal.bound, goal.met) == (LONG.name, "limit", "88 %", 88, met)
    assert f"{percent:.1f} % of the limit" in goal.found


@pytest.mark.parametrize(("percent", "met"), [(84.1, True), (83.9, False)])
def test_points_below_another_row(percent: float, met: bool) -> None:
    short = replace(LONG, q_len=1024, k_len=1024)
    goals = judged(row(short, percent), row(LONG, 90))
    (goal,) = [goal for goal in goals if goal.row == short.name]
    assert (goal.kind, goal.text, goal.met) == ("points", "S4096 - 6", met)
    assert goal.value == pytest.approx(percent - 90)
    assert LONG.name in goal.found


@pytest.mark.parametrize(
    ("head_dim", "v_dim", "neighbour"),
    [(80, None, 64), (96, None, 128), (256, None, 128), (192, 128, 128), (128, 64, 128)],
)
def test_other_head_dimensions_keep_to_their_neighbours(
    head_dim: int, v_dim: int | None, neighbour: int
) -> None:
    odd = replace(LONG, head_dim=head_dim, v_dim=v_dim)
    usual = replace(LONG, head_dim=neighbour)
    for percent, met in ((71, True), (69, False)):
        (goal,) = [goal for goal in judged(row(odd, percent), row(usual, 78)) if goal.row == odd.name]
        assert (goal.text, goal.met) == (f"D{neighbour} - 8", met)


def test_speed_is_calls_not_percent() -> None:
    # A mask that hides half of the pairs halves the useful work of a call: at 36 % of the limit it takes as
    # long as the unmasked row takes at 72 %.
    short = replace(LONG, q_len=1024, k_len=1024)
    masked = replace(row(replace(short, mask="bool"), 36), useful_flops=10**9 // 2)
    masked = replace(masked, rounds=[[masked.work / 36]])
    for other, met in ((72, True), (110, True), (125, False)):
        goals = judged(masked, row(short, other))
        (goal,) = [goal for goal in goals if goal.row == masked.case.name]
        assert goal.value == pytest.approx(72 / other)
        assert (goal.text, goal.met) == ("0.6 of none", met)


@pytest.mark.parametrize(("page_size", "bound"), [(64, 0.9), (16, 0.8)])
def test_pages_are_compared_with_contiguous_keys(page_size: int, bound: float) -> None:
    paged = replace(CACHE, page_size=page_size)
    for part, met in ((bound + 0.01, True), (bound - 0.01, False)):
        ours = row(paged, 80)
        (goal,) = judged(replace(ours, alone=[[part * ours.median]]))
        assert (goal.kind, goal.text, goal.met) == ("beside", f"{bound} of flat", met)
    # Another row's rounds are nothing to compare with.
    assert "beside" not in [goal.kind for goal in judged(row(paged, 10), row(CACHE, 80))]


def test_grouped_heads_are_no_slower() -> None:
    many = replace(LONG, q_heads=32, kv_heads=32, q_len=2048, k_len=2048, causal=True)
    few = replace(many, kv_heads=8)
    for percent, met in ((71, True), (69, False)):
        assert [goal.met for goal in judged(row(few, percent), row(many, 70))] == [met]


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_two_threads_are_compared_with_one_in_the_same_rounds(kind: str) -> None:
    case = replace(LONG if kind == "prefill" else CACHE, threads=2)
    for times, met in ((1.91, True), (1.89, False)):
        ours = row(case, 50)
        (goal,) = judged(replace(ours, alone=[[times * ours.median]]))
        assert (goal.text, goal.met) == ("1.9 of 1t", met)
        assert goal.value == pytest.approx(times)
    assert judged(row(case, 50)) == []


@pytest.mark.parametrize(
    ("case", "bound"),
    [
        (LONG, 1.0),
        (replace(LONG, causal=True), 2.3),
        (replace(LONG, dtype="bfloat16"), 1.4),
        (CACHE, 3.0),
        (replace(CACHE, dtype="float16"), 10.0),
        (replace(CACHE, dtype="bfloat16", kv_heads=4), 10.0),
        (replace(CACHE, kv_heads=32), None),
        (replace(CACHE, q_len=4), None),
        (replace(LONG, dtype="bfloat16", isa="avx512_bf16"), None),
        (replace(LONG, q_len=1024, k_len=1024), None),
    ],
)
def test_the_fastest_library_counts(case: Case, bound: float | None) -> None:
    ours = row(case, 50)

    def peer(times: float) -> PeerResult:
        return PeerResult("ok", "", 0, [[times * ours.median]])

    def goal(*times: float) -> list[Goal]:
        beside = {f"P{number}": peer(value) for number, value in enumerate(times)}
        beside["Lame"] = PeerResult("unsupported", "no")
        return [goal for goal in judged(replace(ours, peers=beside)) if goal.kind == "peers"]

    if bound is None:
        assert goal(0.1) == []
        return
    (slower,), (faster,) = goal(bound + 5, bound + 0.01), goal(bound + 5, bound - 0.01)
    assert (slower.text, slower.met, faster.met) == (f"{bound:g}x", True, False)
    assert "P1 takes" in faster.found
    assert goal() == []


def test_memory_is_judged_by_the_larger_of_plan_and_measurement() -> None:
    case = Case("memory", "float32", 8, 8, 131072, 131072, 128, threads=2)
    mib = 2**20
    for planned, measured, value in ((1, 2, 1.5), (3, None, 3.5), (1, 9, 4.5)):
        memory = Memory(case, planned * mib, mib, None if measured is None else measured * mib, "")
        (goal,) = judge(Run("", {}, {}, memory=[memory]))
        assert goal.value == pytest.approx(value)
        assert goal.met is (value < 4)


def test_every_relation_has_rows_on_both_sides() -> None:
    cases = select(2, "full")
    for relation in RELATIONS:
        about = [case for case in cases if relation.applies(case)]
        assert about, relation
        if relation.kind != "threads":
            assert any(replace(case, **relation.other) in cases for case in about), relation
    for aim in PEERS:
        assert any(aim.applies(case) for case in cases), aim


def test_an_unknown_kind_of_relation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Relation("?", {"kind": "decode"}, {}, "miles", 1)
    monkeypatch.setattr(targets, "RELATIONS", (odd,))
    with pytest.raises(ValueError, match="miles"):
        judged(row(CACHE, 50))
