"""Decode over pages takes several KV heads an item: each head's result is as it would be alone."""

from __future__ import annotations

import numpy as np
import pytest

from fastattention import cpu_kernels

from .cases import Case, Sizes, options, solved
from .conftest import Engine, check
from .stored import Stored, attend, dequantized, paged, quantized
from .tolerances import Problem

# Long and many enough that items of several heads are enough items; 7 heads make uneven ones.
LENGTHS = [4200, 0, 700, 2049]
SHAPES = [(1, 8, 8, 16, 24), (1, 16, 8, 24, 16), (2, 14, 7, 16, 16), (5, 8, 8, 17, 33), (1, 48, 3, 16, 40)]


def _case(shape: tuple[int, ...], **more: object) -> Case:
    q_len, heads, kv_heads, d, v_dim = shape
    name = f"{q_len} queries, {heads} on {kv_heads} heads, {', '.join(more)}"
    return Case(name, Sizes(4, heads, kv_heads, q_len, 4200, d, v_dim), options(kv_lengths=LENGTHS, **more))


CASES = [
    *(_case(shape, causal=True) for shape in SHAPES),
    _case(SHAPES[1], window=(333, 0)),
    _case(SHAPES[2], causal=True, window=(1500, None), sinks=np.linspace(-2, 5, 14, dtype=np.float32)),
    _case(SHAPES[1], window=(40, 40), q_offset=[3000, 0, 650, 1]),
    _case(SHAPES[2], causal=True, alibi_slopes=np.linspace(0.001, 0.3, 14, dtype=np.float32), softcap=3.0),
]


# Decode by integer or tile products goes through one head after the other.
ONE_HEAD = ("avx512_vnni", "amx")


def q_rows(problem: Problem) -> int:
    """Query rows of a KV head."""
    return problem.q.shape[1] // problem.k.shape[1] * problem.q.shape[2]


def _leads_heads(problem: Problem, stored: Stored, isa: str) -> bool:
    """Whether an item runs over several heads; asserts that it does where the kernels can."""
    plan = cpu_kernels.explain(
        problem.q, stored.k, stored.v, np.empty((*problem.q.shape[:3], stored.v.shape[3]), problem.q.dtype),
        scale=1.0, isa=isa, block_table=stored.table, page_size=stored.k.shape[2],
        kv_lengths=np.array(LENGTHS), max_seqlen_k=max(LENGTHS), k_scales=stored.k_scales,
        v_scales=stored.v_scales,
    )  # fmt: skip
    assert plan["thread_bytes"] < 4 << 20
    if plan["decode"] and q_rows(problem) <= 8:
        assert (plan["item_heads"] > 1) == (plan["isa"] not in ONE_HEAD)
    return bool(plan["item_heads"] > 1)


@pytest.mark.parametrize("page_size", [16, 8, 64, 256, 100])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_heads_side_by_side(case: Case, page_size: int, cpu_engine: Engine) -> None:
    isa = str(cpu_engine.isa)
    dtype = ("float32", "float16", "bfloat16")[page_size % 3]
    problem, expected = solved(case, dtype, cpu_engine.accumulation)
    lengths = np.array(LENGTHS)
    stored = paged(Stored(problem.k, problem.v), lengths, page_size, np.random.default_rng(page_size))
    leads = _leads_heads(problem, stored, isa)
    assert leads or dtype == "bfloat16" or q_rows(problem) > 8
    results = []
    for threads in (1, 2, 5):
        out, lse = attend(problem.q, stored, {**problem.options}, isa=isa, num_threads=threads)
        check(out, lse, expected)
        results.append(out.tobytes() + lse.tobytes())
    assert len(set(results)) == 1, "the number of threads changed bits"


@pytest.mark.parametrize("page_size", [8, 16, 64])
def test_int8_with_the_scales_of_each_head(page_size: int, cpu_engine: Engine) -> None:
    """A scale read from the neighbouring head, or page, would be off by any factor."""
    isa, rng = str(cpu_engine.isa), np.random.default_rng(page_size)
    q = rng.standard_normal((4, 16, 1, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, 4, 8, 4200, 32)).astype(np.float32)
    k *= rng.uniform(0.1, 3, k.shape[:3])[..., None].astype(np.float32)
    v *= rng.uniform(0.1, 30, v.shape[:3])[..., None].astype(np.float32)
    flat = quantized(k, v)
    stored = paged(flat, np.array(LENGTHS), page_size, rng)
    given = {"kv_lengths": np.array(LENGTHS)}
    assert _leads_heads(Problem(q, k, v, given), stored, isa) or isa in (*ONE_HEAD, "avx512_bf16")
    out, lse = attend(q, stored, given, isa=isa, num_threads=2)
    wide = Stored(*(x.astype(np.float32) for x in dequantized(flat)))
    expected = attend(q, wide, given, isa="baseline", num_threads=2)
    np.testing.assert_allclose(out, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-5, atol=1e-5)


def test_one_head_an_item_elsewhere(cpu_engine: Engine) -> None:
    """Contiguous caches, short ones, and pages as long as it takes keep the items they had."""
    isa = str(cpu_engine.isa)
    q, k = np.zeros((1, 8, 1, 64), np.float32), np.zeros((1, 8, 8192, 64), np.float32)
    out = np.empty_like(q)
    assert cpu_kernels.explain(q, k, k, out, scale=1.0, isa=isa)["item_heads"] == 1
    for page_size, length, several in ((64, 8192, True), (64, 500, False), (1024, 8192, False)):
        pages = np.zeros((-(-length // page_size), 8, page_size, 64), np.float32)
        plan = cpu_kernels.explain(
            q, pages, pages, out, scale=1.0, isa=isa, page_size=page_size, max_seqlen_k=length,
            block_table=np.arange(len(pages), dtype=np.int32)[None], kv_lengths=np.array([length]),
        )  # fmt: skip
        assert (plan["item_heads"] > 1) == several
        if several:
            assert plan["key_split"] % page_size == 0
