"""Errors against float64: what is recorded keeps its promises, and a kernel that is worse is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattention import cpu_kernels
from fastattention.bench.errors import measure, results
from fastattention.bench.errors.cases import KINDS, LENGTHS, SHAPES, ErrorCase, select
from fastattention.bench.errors.measure import kernels, measure_case, unit_of
from fastattention.cli import main
from fastattention.verify import budget

RECORDED = sorted((Path(__file__).resolve().parents[2] / "results").glob("errors-*.json"))
FIELDS = {"largest", "rms", "own", "of_tolerance", "of_bound", "bound", "bound_rms"}

# A row of three equal weights on values 3, 6 and 0.
ROW = budget.Row(
    np.zeros((1, 2)), np.zeros((3, 2)), np.array([[3.0], [6.0], [0.0]]), np.array([[3.0]]),
    np.log([3.0]), 1.0,
)  # fmt: skip


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_errors_are_below_their_bound_and_not_above_pytorchs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == results.SCHEMA
    assert {"cpu", "compiler", "isa", "versions"} <= set(content["environment"])
    assert {"fastattention", "numpy", "PyTorch"} <= set(content["environment"]["versions"])
    run = results.from_json(content)
    assert results.to_json(run) == content, "the summary is that of the rows"
    assert {row.case.keys for row in run.rows} == set(LENGTHS)
    assert {row.case.name for row in run.rows} == {case.name for case in select(False, run.options["filter"])}
    for row, entry in zip(run.rows, content["rows"], strict=True):
        assert row.kernels, row.case.name
        for isa, found in row.kernels.items():
            assert set(entry["kernels"][isa]) == FIELDS
            assert found.of_bound is not None
            assert found.of_bound <= 1, (row.case.name, isa)
            assert found.of_tolerance <= 1, (row.case.name, isa)
            assert found.rms <= found.largest
        assert row.pytorch is not None
    assert run.unexpected() == []


def test_something_is_recorded() -> None:
    assert any(not json.loads(path.read_text(encoding="utf-8"))["options"]["filter"] for path in RECORDED)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keys", [1, 17, 300])
def test_errors_are_below_the_bound(shape: str, dtype: str, keys: int) -> None:
    for kind in KINDS:
        row = measure_case(ErrorCase(shape, dtype, kind, keys), None)
        assert row.pytorch is None
        assert row.worse() == []
        assert set(row.kernels) <= set(cpu_kernels.available_isas())
        for isa, found in row.kernels.items():
            assert found.of_bound is not None
            assert found.of_bound <= 1, (kind, isa)
            assert found.of_tolerance <= 1, (kind, isa)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_key_is_its_value(dtype: str) -> None:
    for shape in SHAPES:
        for found in measure_case(ErrorCase(shape, dtype, "large", 1), None).kernels.values():
            assert found.largest == 0.0


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu_kernels.attention

    def loses_the_last_key(q: Any, k: Any, v: Any, out: Any, **options: Any) -> None:
        right(q, k[:, :, :-1], v[:, :, :-1], out, **options)

    monkeypatch.setattr(measure.cpu_kernels, "attention", loses_the_last_key)
    row = measure_case(ErrorCase("decode", "float32", "normal", 100), None)
    assert all((found.of_bound or 0) > 1 for found in row.kernels.values())

    def writes_nothing(q: Any, k: Any, v: Any, out: Any, **options: Any) -> None:
        pass

    monkeypatch.setattr(measure.cpu_kernels, "attention", writes_nothing)
    row = measure_case(ErrorCase("decode", "float32", "normal", 100), None)
    assert all(found.largest == 1e30 for found in row.kernels.values())


def test_each_kernel_has_its_own_turn() -> None:
    def isas(shape: str, dtype: str) -> set[str]:
        case = ErrorCase(shape, dtype, "normal", 64)
        return {kernel.isa for kernel in kernels(case, case.arrays())}

    here = set(cpu_kernels.available_isas())
    assert isas("decode", "float32") == here & {"baseline", "avx2", "avx512"}
    assert isas("decode", "int8") >= here & {"baseline", "avx2", "avx512", "avx512_vnni"}
    assert isas("prefill", "bfloat16") == here - {"avx512_vnni"}


def test_units_are_the_rows_where_an_element_is_small() -> None:
    exact = np.array([[1.5, 1e-9, -3.0, 0.0]])
    row = 2.0**-23  # of the root mean square, 1.68
    assert unit_of(exact, "float32").tolist() == [[row, row, 2.0**-22, row]]
    assert unit_of(exact, "bfloat16")[0, 0] == 2.0**-7
    assert unit_of(np.array([[2.0, 2.0]]), "float16").tolist() == [[2.0**-9] * 2]


def test_the_bound_by_hand() -> None:
    u = budget.FLOAT32
    # Weights are off by 80 u each: the sum of p t (|v| + |out|) is 80 u (3 + 3). Sums: 5 times 3, 10 times 3.
    arithmetic = u * (80 * 6 + 5 * 3 + 10 * 3)
    found = budget.worst_case(ROW, budget.Chains(5, 7, 0), 2.0**-24)
    assert found[0, 0] == pytest.approx(2.0**-23 + arithmetic, rel=1e-6)
    rounded = budget.worst_case(ROW, budget.Chains(5, 7, 0), 2.0**-8, weights=2.0**-8)
    assert rounded[0, 0] == pytest.approx(2.0**-7 + (1 + 2.0**-8) * (arithmetic + 2.0**-8 * 6), rel=1e-6)
    split = budget.worst_case(ROW, budget.Chains(5, 7, 2), 2.0**-24)
    assert split[0, 0] - found[0, 0] == pytest.approx(u * 2 * (np.log(3) + 3) * 6, rel=1e-6)
    with_digits = budget.worst_case(ROW, budget.Chains(5, 7, 0), 2.0**-24, digits=True)
    assert with_digits[0, 0] - found[0, 0] == pytest.approx(u * 3 * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("isa", "decode", "tile", "dtype", "keys", "rows", "chains"),
    [
        ("avx512", False, 128, "float32", 1024, 96, (136, 136)),
        ("avx512", False, 128, "float32", 131072, 96, (128 + 33 + 32, 128 + 33 + 32)),
        ("amx", False, 512, "bfloat16", 8192, 96, (8192, 528)),
        ("avx512", True, 16, "float32", 512, 1, (48, 48)),
        ("avx512", True, 16, "float16", 512, 1, (512, 48)),
        ("avx512", True, 16, "float32", 512, 16, (48, 132)),
    ],
)
def test_chains(
    isa: str, decode: bool, tile: int, dtype: str, keys: int, rows: int, chains: tuple[int, int]
) -> None:
    plan = {"isa": isa, "decode": decode, "key_tile": tile, "key_split": keys, "splits": 1, "lanes": 16}
    found = budget.chains_of(plan, dtype, keys, rows)
    assert (found.output, found.weights, found.parts) == (*chains, 0)
    in_parts = budget.chains_of(plan | {"splits": 4}, dtype, keys, rows)
    assert (in_parts.output, in_parts.weights, in_parts.parts) == (chains[0] + 4, chains[1] + 4, 4)


def test_worse_is_more_than_chance() -> None:
    def run(kind: str, ours: float, theirs: float | None, shape: str = "decode") -> results.Run:
        def row(keys: int, ours: float) -> results.Row:
            found = results.Errors(9.0, ours, 9.0, 0.1, 0.1, 10.0, 9.0)
            peer = None if theirs is None else results.Errors(9.0, theirs, 9.0, 0.1)
            return results.Row(ErrorCase(shape, "float32", kind, keys), 1, {"avx2": found}, peer)

        return results.Run("2026-01-01", {}, {}, [row(16, ours), row(128, 4.0)])

    assert run("normal", 4.6, 4.0).worse() == []
    assert run("normal", 4.7, 4.0).worse() == [("decode/float32/normal/S16", "avx2")]
    assert run("normal", 4.7, 4.0).unexpected() == [("decode/float32/normal/S16", "avx2")]
    assert run("large", 6.0, 4.0).worse() == []  # of two lengths the mean is 1.21
    assert run("large", 7.0, 4.0).worse() == [("decode/float32/large", "avx2")]
    assert run("normal", 100.0, None).worse() == []
    assert run("large", 100.0, None).worse() == []
    known = run("normal", 4.7, 4.0, shape="group")
    assert known.worse() == [("group/float32/normal/S16", "avx2")]
    assert known.unexpected() == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    path = tmp_path / "errors.json"
    words = ["--errors", "--quick", "--filter", "decode float16 S16", "--peers", "none"]
    assert main(["bench", *words, "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "float16, decode" in text
    assert "Above the bound: none." in text
    assert "Less accurate than PyTorch: none." in text
    run = results.load(path)
    assert [row.case.kind for row in run.rows] == list(KINDS)
    changed = replace(run.rows[0], kernels={"avx2": replace(run.rows[0].kernels["baseline"], of_bound=1.5)})
    run.rows[:] = [changed]
    results.save(run, path)
    assert results.load(path) == run
    with pytest.raises(ValueError, match="schema 'x'"):
        results.from_json({"schema": "x"})


def test_an_error_above_the_bound_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(budget, "FLOAT32", 2.0**-60)
    words = ["--errors", "--filter", "decode float32 normal S16", "--peers", "none"]
    assert main(["bench", *words, "--json", str(tmp_path / "x.json")]) == 1
    assert "Above the bound: decode/float32/normal/S16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--errors", "--isa", "avx2"], "no --isa"),
        (["--errors", "--threads", "2"], "no --threads"),
        (["--errors", "--filter", "nonsense"], "no row of --errors matches"),
        (["--errors", "--gpu"], "not allowed with"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    try:
        code = main(["bench", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert main(["bench", "--errors", "--list", "--filter", "decode int8 equal"]) == 0
    names = capsys.readouterr().out.split()
    assert names == [f"decode/int8/equal/S{keys}" for keys in LENGTHS]
