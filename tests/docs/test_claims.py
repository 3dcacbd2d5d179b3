"""The chapter that follows the paper claim by claim: what is recorded decides what a claim is said to be."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastattention.bench.offload import results as offload_results
from fastattention.bench.offload.cases import OffloadCase

pytest.importorskip("matplotlib", reason="the book's figures need the extra `docs`")
pytest.importorskip("IPython", reason="the book's figures need the extra `docs`")

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture
def claims() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    try:
        yield __import__("book_claims")
    finally:
        sys.path.remove(str(DOCS))


def find(claims: ModuleType, folder: Path, word: str) -> Any:
    [claim] = [claim for claim in claims.claims(folder) if word in claim.what]
    return claim


def gpu_run(card: str, capability: list[int], ratios: dict[str, float]) -> dict[str, Any]:
    contenders = {name: {"ours": True, "error": 2e-4} for name in ratios}
    summary = {name: {"peer_ratios": {"memory-efficient": ratio}} for name, ratio in ratios.items()}
    row = {
        "case": {"kind": "prefill", "dtype": "float16"},
        "contenders": contenders | {"memory-efficient": {"ours": False, "error": 0.5}},
        "summary": {"contenders": summary | {"memory-efficient": {}}},
    }
    environment = {"gpu": card, "compute_capability": capability}
    return {"schema": "gpu-1", "environment": environment, "rows": [row]}


def offload_run(path: Path, *, long: bool) -> None:
    ways = {
        "classical": offload_results.Outcome("ok", attention=[3.0], tokens=[6.0, 6.0]),
        "cooperative": offload_results.Outcome("ok", attention=[1.0], tokens=[4.0, 4.0]),
        "split": offload_results.Outcome("left out", "too slow"),
    }
    row = offload_results.Row(OffloadCase("llama-7b", 32, 32768, 1), 2**30, ways=ways)
    run = offload_results.Run("2026-01-02", {}, {}, rows=[row])
    if long:
        run.long = offload_results.LongRun("llama-7b", 262144, 2**34, "does not fit", 50000, tokens=[0.2])
    offload_results.save(run, path)


def test_without_results_nothing_is_said_to_be_measured(claims: ModuleType, tmp_path: Path) -> None:
    every = claims.claims(tmp_path)
    assert all(claim.status is not claims.Status.MEASURED for claim in every)
    assert not any("easured," in claim.found for claim in every)
    assert "nothing is recorded" in claims.table(tmp_path).data


def test_another_card_is_shown_and_does_not_stand_for_a_v100(claims: ModuleType, tmp_path: Path) -> None:
    run = gpu_run("A card", [9, 0], {"atom 80": 2.0, "atom 70": 0.05})
    (tmp_path / "bench-a-card.json").write_text(json.dumps(run))
    claim = find(claims, tmp_path, "xformers")
    assert claim.status is claims.Status.UNCHECKED
    assert "A card with Ampere's instruction, 2.00 times" in claim.found
    assert "A card with Volta's, which it emulates, 0.05 times" in claim.found
    exact = find(claims, tmp_path, "exact")
    assert exact.status is claims.Status.MEASURED
    assert "float16 2e−04" in exact.found, "our own error, not the peer's"


@pytest.mark.parametrize(("capability", "volta"), [([7, 0], True), ([7, 5], False)])
def test_a_v100_makes_the_claim_a_measured_one(
    claims: ModuleType, tmp_path: Path, capability: list[int], volta: bool
) -> None:
    run = gpu_run("Tesla", capability, {"atom 70": 1.5})
    (tmp_path / "bench-tesla.json").write_text(json.dumps(run))
    claim = find(claims, tmp_path, "xformers")
    assert (claim.status is claims.Status.MEASURED) == volta
    assert claim.found.startswith("Tesla: 1.50 times" if volta else "No V100")
    _, words = claims.figure(tmp_path)
    assert ("measured (Tesla, atom 70) 1.50" in words) == volta


@pytest.mark.parametrize("long", [False, True])
def test_recorded_offloading_is_measured(claims: ModuleType, tmp_path: Path, long: bool) -> None:
    offload_run(tmp_path / "offload-a-card.json", long=long)
    claim = find(claims, tmp_path, "classical offloading")
    assert claim.status is claims.Status.MEASURED
    assert "Measured, cooperative: 1.50 times." in claim.found
    assert "Measured, split" not in claim.found
    reach = find(claims, tmp_path, "256K")
    assert (reach.status is claims.Status.MEASURED) == long
    assert ("262,144 tokens of llama-7b where 50,000 fit" in reach.found) == long


def test_recorded_allreduce_is_measured_and_other_files_are_refused(
    claims: ModuleType, tmp_path: Path
) -> None:
    rows = [{"summary": {"name": str(speedup), "chosen_speedup": speedup}} for speedup in (1.2, 1.5)]
    where = {"engine": "NCCL", "ranks": 2, "gpu": "A card", "cpu": "a CPU"}
    content = {"schema": "allreduce-1", "date": "2026-01-02T00:00", "environment": where, "rows": rows}
    path = tmp_path / "allreduce-a-card.json"
    path.write_text(json.dumps(content))
    claim = find(claims, tmp_path, "AllReduce")
    assert claim.status is claims.Status.MEASURED
    assert "2 ranks by NCCL, A card, 2026-01-02: 1.50 times at best" in claim.found
    path.write_text(json.dumps(content | {"schema": "allreduce-0"}))
    with pytest.raises(ValueError, match="schema 'allreduce-0'"):
        claims.claims(tmp_path)


def test_statuses_differ_in_shape_and_word(claims: ModuleType) -> None:
    assert len({status.shape for status in claims.Status}) == len(claims.Status)
    assert len({status.word for status in claims.Status}) == len(claims.Status)
    legend = claims.legend().data
    assert all(status.shape in legend and status.meaning in legend for status in claims.Status)


def test_the_table_shows_every_claim_and_leads_to_chapters(claims: ModuleType) -> None:
    table = claims.table().data
    for claim in claims.claims():
        assert claim.found.split("'")[0] in table
        assert f'href="{claim.chapter}.html"' in table
        assert (DOCS / "book" / f"{claim.chapter}.md").exists()
    assert all(name in table for name in ("audit-volta.json", "bench-nvidia-h200"))


def test_what_was_counted_agrees_with_the_facts(claims: ModuleType, tmp_path: Path) -> None:
    shutil.copy(ROOT / "results" / "audit-volta.json", tmp_path)
    mask = find(claims, tmp_path, "tiling-mask")
    assert "4 GiB become 1 MiB, which saves 99.9756 %" in mask.found
    assert "128 GiB" in find(claims, tmp_path, "256K").found
    assert "loads take 1.00 times the fewest" in find(claims, tmp_path, "m8n8k4").found


def test_a_context_that_needs_no_host_memory_is_refused(claims: ModuleType) -> None:
    with pytest.raises(ValueError, match="needs host memory"):
        claims.evidence.share_of_eight(1000)
