"""``--seed``: every command that draws random numbers takes it, uses it and writes it down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattention import bench
from fastattention.bench.allreduce.cases import AllReduceCase
from fastattention.bench.allreduce.measure import operands
from fastattention.bench.cases import Case
from fastattention.bench.data import make_data
from fastattention.cli import main
from fastattention.runtime.communicator import Single

pytest.importorskip("rich", reason="the commands that draw random numbers need it")


@pytest.mark.parametrize("command", [["bench"], ["verify", "module:function"], ["generate", "hello"]])
@pytest.mark.parametrize("seed", ["-1", "1.5", "x", ""])
def test_a_seed_is_a_whole_number(command: list[str], seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, f"--seed={seed}"])
    assert stop.value.code == 2
    assert f"--seed: {seed!r}: expected a whole number, 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--plot", "nowhere.json"], ["--perplexity"]])
def test_no_seed_where_nothing_is_drawn(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *other, "--seed", "0"]) == 2
    assert "--seed: --plot and --perplexity draw no random numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("run", ["--filter", "decode float32 1t", "--peers", "none"]),
        ("ladder", ["--ladder", "--filter", "02_online_softmax D64 full"]),
    ],
)
@pytest.mark.parametrize(("given", "seed"), [([], 0), (["--seed", "7"], 7)])
def test_bench_draws_by_it_and_tells(
    module: str,
    words: list[str],
    given: list[str],
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib", reason="the benchmark needs the extra bench")
    used: list[tuple[str, int]] = []
    for name in ("make_data", "expected_rows"):
        real = getattr(__import__(f"{bench.__name__}.{module}", fromlist=[name]), name)

        def noted(*arguments: Any, name: str = name, real: Any = real) -> Any:
            used.append((name, arguments[-1]))
            return real(*arguments)

        monkeypatch.setattr(f"{bench.__name__}.{module}.{name}", noted)
    path = tmp_path / "found.json"
    assert (
        main(["bench", "--quick", "--no-plots", "--threads", "1", *words, *given, "--json", str(path)]) == 0
    )
    assert json.loads(path.read_text(encoding="utf-8"))["options"]["seed"] == seed
    assert set(used) == {("make_data", seed), ("expected_rows", seed + 1)}


@pytest.mark.parametrize("page_size", [None, 16])
def test_arrays_of_the_benchmark(page_size: int | None) -> None:
    case = Case("decode", "float32", 2, 2, 1, 64, 32, False, threads=1, page_size=page_size)
    first, again, other = (make_data(case, seed) for seed in (3, 3, 4))
    for name in ("q", "k", "v"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_operands_of_allreduce() -> None:
    case = AllReduceCase(64, 96, "float32", 16)
    first, again, other = (operands(Single(), case, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(one, same) for one, same in zip(first, again, strict=True))
    assert not any(np.array_equal(one, new) for one, new in zip(first, other, strict=True))


def test_verify_draws_by_it_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = []
    for number, seed in enumerate((3, 3, 4)):
        path = tmp_path / f"{number}.json"
        words = ["--only", "causal", "--quick", "--dtypes", "float32", "--json", str(path)]
        assert main(["verify", "fastattention:attention", *words, "--seed", str(seed)]) == 0
        report = json.loads(path.read_text(encoding="utf-8"))
        assert report["seed"] == seed
        errors.append([result["error"] for result in report["results"]])
        assert f"seed {seed}" in capsys.readouterr().out.replace("\n", " ")
    assert errors[0] == errors[1] != errors[2]
