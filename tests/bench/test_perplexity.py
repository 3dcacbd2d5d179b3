"""``fastattention bench --perplexity``: what it writes, and what its exit code says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastattention
from fastattention import cli
from fastattention.bench import perplexity
from fastattention.models import ModelError

RESULT = Path(__file__).resolve().parents[2] / "results" / "perplexity-smollm2-135m-instruct.q4_1.json"


def _result(int8: float) -> dict[str, Any]:
    rows = [{"cache": "float32", "perplexity": 10.0, "relative": 0.0}]
    rows.append({"cache": "int8", "perplexity": 10 * (1 + int8), "relative": int8})
    return {"model": "Tiny", "rows": rows}


@pytest.mark.parametrize(("int8", "code"), [(0.002, 0), (-0.002, 0), (0.02, 1), (-0.02, 1)])
def test_it_writes_the_result_and_judges_it(
    int8: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def measure(num_threads: int | None) -> dict[str, Any]:
        asked.append((num_threads, fastattention.get_isa()))
        return _result(int8)

    monkeypatch.setattr(perplexity, "measure", measure)
    monkeypatch.chdir(tmp_path)
    before = fastattention.get_isa()
    assert cli.main(["bench", "--perplexity", "--threads", "3", "--isa", "baseline"]) == code
    assert asked == [(3, "baseline")]
    assert fastattention.get_isa() == before
    assert json.loads((tmp_path / "results" / "perplexity-tiny.json").read_text()) == _result(int8)
    out = capsys.readouterr().out
    assert f"{100 * int8:+.4f} %" in out
    assert "written to" in out
    assert cli.main(["bench", "--perplexity", "--json", "here.json"]) == code
    assert (tmp_path / "here.json").exists()


def test_a_missing_model_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(num_threads: int | None) -> dict[str, Any]:
        raise ModelError("no model: it is not installed")

    monkeypatch.setattr(perplexity, "measure", measure)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--perplexity", "--isa", "avx1024"]) == 2
    assert "fastattention bench: --isa: set_isa: 'avx1024'" in capsys.readouterr().err
    assert cli.main(["bench", "--perplexity"]) == 2
    assert capsys.readouterr().err == "fastattention bench: error: no model: it is not installed\n"
    assert not (tmp_path / "results").exists()


def test_the_recorded_result_keeps_what_is_required() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = {row["cache"]: row for row in result["rows"]}
    assert set(rows) == set(perplexity.CACHES)
    assert result["tokens"] == perplexity.TOKENS
    exact = rows["float32"]["perplexity"]
    for row in rows.values():
        assert row["relative"] == pytest.approx(row["perplexity"] / exact - 1, abs=1e-12)
    assert abs(rows["int8"]["relative"]) < perplexity.MOST_FROM_INT8
