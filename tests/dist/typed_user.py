"""The public interface as a typed program uses it: never run, but read by ``mypy --strict``.

The package is the installed wheel. mypy complains about an ignored error that is not there, so each
`type: ignore` is a mistake that it must see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastattention
from fastattention import reference
from fastattention.verify.report import Report, Result

Rows = NDArray[np.float32]


def attend(q: Rows, k: Rows, v: Rows) -> tuple[Rows, Rows]:
    """Every option of attention, and two parts merged."""
    out: Rows = fastattention.attention(
        q, k, v, causal=True, window=(128, None), softcap=30.0, scale=0.125, backend="cpu"
    )  # fmt: skip
    mask = np.ones((q.shape[2], k.shape[2]), dtype=np.bool_)
    part = fastattention.attention(q, k, v, mask=mask, sinks=np.zeros(q.shape[1]), return_lse=True, out=out)
    merged, lse = fastattention.merge([part, part])
    packed = fastattention.attention_varlen(q[0], k[0], v[0], [0, 3], [0, 3], causal=True)
    assert packed.shape
    return merged, lse


def decode(q: Rows, k: Rows, v: Rows) -> Rows:
    """A cache, contiguous or in pages."""
    cache: fastattention.KVCache = fastattention.KVCache(
        1, 2, 64, dtype="int8", page_size=16, max_length=4096
    )
    assert_type(cache.append(k, v), None)
    result: Rows = cache.attend(q, window=(256, 0))
    return result


def look(q: Rows, k: Rows, v: Rows) -> int:
    """What a call would run, on what, and where a cache would lie."""
    found = fastattention.explain(q, k, v, causal=True)
    assert_type(found, fastattention.Explanation | fastattention.GpuExplanation)
    with fastattention.num_threads(2):
        assert_type(fastattention.get_isa(), str)
        fastattention.set_isa("avx2")
        fastattention.set_isa(None)
    assert_type(fastattention.show_config(), dict[str, Any])
    assert_type(fastattention.__version__, str)
    plan = fastattention.plan_offload("llama-3-8b", "v100-16gb", context=1 << 18)
    assert_type(plan, fastattention.OffloadPlan)
    return found.nbytes if isinstance(found, fastattention.Explanation) else 0


def mine(q: Rows, k: Rows, v: Rows) -> Rows:
    """A kernel to be verified."""
    out, lse = reference.standard.attention(q, k, v)
    assert_type(lse, NDArray[np.float64])
    return out.astype(np.float32)


def held_to_the_reference(path: Path) -> list[Result]:
    """A report and what it holds."""
    report = fastattention.verify(mine, dtypes=["float32"], seed=3, only="causal")
    assert_type(report, Report)
    assert_type(report.passed, bool)
    report.save(path)
    return report.failures


def mistakes(q: Rows, k: Rows, v: Rows) -> None:
    """What a type checker must not let through."""
    fastattention.attention(q, k, v, causal="yes")  # type: ignore[arg-type]
    fastattention.attention(q, k, v, window=7)  # type: ignore[arg-type]
    fastattention.attention(q, k, v, casual=True)  # type: ignore[call-arg]
    fastattention.KVCache(1, 2)  # type: ignore[call-arg]
    fastattention.set_isa(512)  # type: ignore[arg-type]
    fastattention.verify(mine, seed="3")  # type: ignore[arg-type]
    print(fastattention.nothing)  # type: ignore[attr-defined]
