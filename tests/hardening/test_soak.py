"""The soak itself, for seconds: that it runs, and that it notices what goes wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattention import KVCache, cpu_kernels

from .. import soak


def test_a_short_one_finds_nothing() -> None:
    # In a process of its own: what it holds is compared, and other tests leave much to be freed.
    command = [sys.executable, "-m", "tests.soak", "--seconds", "6", "--threads", "4"]
    root = Path(soak.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for count, name in re.findall(r"^ *(\d+) (.+)$", done.stdout, re.MULTILINE)}
    assert counts["attention results checked"] >= 4
    assert counts["cache: attend, checked"] >= 4


def test_one_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu_kernels.attention
    calls = 0

    def wrong(q: Any, k: Any, v: Any, out: np.ndarray, lse: Any = None, **options: Any) -> None:
        nonlocal calls
        right(q, k, v, out, lse, **options)
        calls += 1
        if calls == 40 and out.size:
            out[...] += 1

    monkeypatch.setattr(cpu_kernels, "attention", wrong)
    assert len(soak.soak(20, 2, seed=2)["failures"]) == 1


def test_a_row_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = KVCache.truncate
    monkeypatch.setattr(KVCache, "truncate", lambda self, length: right(self, max(0, length - 1)))
    assert soak.soak(20, 2, seed=3)["failures"]


@pytest.mark.skipif(not soak.held(), reason="this system does not say what a process holds")
def test_what_leaks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    leaked: list[np.ndarray] = []
    right = soak.Worker.cache

    def leaking(self: soak.Worker) -> None:
        right(self)
        leaked.append(np.ones(1 << 20))

    monkeypatch.setattr(soak.Worker, "cache", leaking)
    monkeypatch.setattr(soak, "return_what_is_freed", lambda: None)  # other tests go on in this process
    failures = soak.soak(5, 2, seed=4)["failures"]
    assert any(failure.startswith("resident bytes: ") for failure in failures), failures


@pytest.mark.parametrize("name", ["files", "threads"])
def test_one_more_is_too_many(name: str) -> None:
    early = {"resident_bytes": 1 << 30, "files": 5, "threads": 2}
    assert soak.kept_too_much(early, {**early, "resident_bytes": 1 << 29}) == []
    assert soak.kept_too_much(early, {**early, name: early[name] + 1}) != []
    assert soak.kept_too_much({}, {}) == []
