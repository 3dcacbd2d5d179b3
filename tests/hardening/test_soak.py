"""The soak itself, for seconds: that it runs, and that it notices what goes wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastattention import KVCache, cpu_kernels

from .. import soak


def test_a_short_one_finds_nothing() -> None:
    result = soak.soak(2, 4, seed=1)
    assert result["failures"] == []
    assert result["counts"]["attention results checked"] >= 4
    assert result["counts"]["cache: attend, checked"] >= 4


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
