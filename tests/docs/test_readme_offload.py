"""Caches in host memory in the README: figures of the newest file, and none where there is none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_offload", ROOT / "docs" / "readme_offload.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_run(date: str, token_ms: float) -> dict[str, Any]:
    name = "llama/L2/S4096/B1"
    ways = {
        "all-GPU": {"token_ms": 1.0},
        "classical": {"token_ms": 3 * token_ms, "times_classical_token": 1.0},
        "cooperative": {"token_ms": token_ms, "times_classical_token": 3.0},
    }
    case = {"model": "llama", "layers": 2, "context": 4096, "batch": 1}
    goals = [{"row": f"{name} cooperative", "met": True}, {"row": f"{name} split", "met": False}]
    return {
        "schema": "offload-1",
        "date": date,
        "environment": {"gpu": "A card", "threads": 15, "cpu": "A CPU"},
        "limits": {"bus up": [50.0, 1.0], "CPU attention": [100.0], "host read": [110.0]},
        "rows": [{"case": case, "summary": {"name": name, "ways": ways}}],
        "goals": [*goals, {"row": "llama/L2/S4096/B16 split", "met": False}],
        "long": None,
    }


def write(folder: Path, name: str, run: dict[str, Any]) -> None:
    (folder / f"offload-{name}.json").write_text(json.dumps(run))


def test_nothing_measured_nothing_said(script: ModuleType, tmp_path: Path) -> None:
    assert script.section(tmp_path) == ""


def test_the_newest_run(script: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "b", a_run("2026-01-02T00:00", 400.4))
    write(tmp_path, "c", a_run("2026-01-01T00:00", 77.0))
    text = script.section(tmp_path)
    assert "A card and 15 threads of its host (A CPU); 2026-01-02. Limits" in text
    assert "bus up 50 GB/s, CPU attention 100 GB/s, host read 110 GB/s" in text
    assert "| llama | 2 | 4096 | 1 | 1 | 1201 | 400 | none | 3.00× | 1 of 2 met |" in text
    assert "prompt" not in text


def test_a_long_run_beside_it(script: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "b", a_run("2026-01-02T00:00", 40.0))
    long = a_run("2026-01-03T00:00", 1.0) | {"rows": []}
    long["long"] = {
        "context": 262144, "model": "llama", "gpu_limit": 32 * 2**30, "largest_without": 100000,
        "prefill": 59.6, "tokens": [9.0, 0.1, 0.2, 0.12],
    }  # fmt: skip
    write(tmp_path, "long", long)
    text = script.section(tmp_path)
    assert "| 40 |" in text
    assert "262,144 tokens (llama's shape) with the GPU held to 32 GiB, where 100,000 fit" in text
    assert "prefill 60 s, then 120 ms a token" in text


def test_another_schema_is_refused(script: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "b", a_run("2026-01-02T00:00", 40.0) | {"schema": "offload-0"})
    with pytest.raises(ValueError, match=r"offload-b.json: schema 'offload-0', expected 'offload-1'"):
        script.section(tmp_path)
