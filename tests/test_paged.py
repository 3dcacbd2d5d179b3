"""K and V in pages, found through a block table: the same results as one row after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .cases import FEATURES, Case, Sizes, options, solved
from .conftest import Engine, check
from .stored import Stored, attend, paged

DTYPES = ("float32", "float16", "bfloat16")
PAGE_SIZES = (8, 16, 64, 3, 1, 128, 100)
PLACES = [pytest.param(i, case, id=f"{case.name}") for i, case in enumerate(FEATURES)]


def _long(q_len: int, k_len: int, heads: int, kv_heads: int, d: int = 24, v_dim: int = 40) -> Sizes:
    return Sizes(2, heads, kv_heads, q_len, k_len, d, v_dim)


def _lengths() -> list[Case]:
    """Decode and prefill over several splits, rows of one KV head from 1 to 40, ragged lengths."""
    shapes = [(1, 1, 1), (1, 4, 4), (1, 8, 2), (2, 4, 1), (3, 4, 4), (7, 1, 1), (5, 8, 2), (12, 4, 2)]
    cases = []
    for i, (q_len, heads, kv_heads) in enumerate(shapes):
        for k_len, other in [(1300, 1), (2049, 511), (700, 513), (64, 65), (17, 0)]:
            sizes = _long(
                q_len, max(k_len, other), heads, kv_heads, (24, 64, 128)[i % 3], (40, 64, 128)[i % 3]
            )
            lengths = options(kv_lengths=[k_len, other], causal=True)
            cases.append(
                Case(
                    f"{q_len} queries, {heads} on {kv_heads} heads, {k_len} and {other} keys", sizes, lengths
                )
            )
    return cases


LENGTHS = _lengths()


def _check(case: Case, dtype: str, page_size: int, isa: str, threads: tuple[int, ...] = (1,)) -> None:
    problem, expected = solved(case, dtype, Engine("cpu", isa).accumulation)
    given = problem.options.get("kv_lengths")
    lengths = np.full(len(problem.q), problem.k.shape[2]) if given is None else np.asarray(given)
    stored = paged(Stored(problem.k, problem.v), lengths, page_size, np.random.default_rng(page_size))
    results = []
    for count in threads:
        out, lse = attend(
            problem.q, stored, {**problem.options, "kv_lengths": lengths}, isa=isa, num_threads=count
        )
        check(out, lse, expected)
        results.append(out.tobytes() + lse.tobytes())
    assert len(set(results)) == 1, "the number of threads changed bits"


@pytest.mark.parametrize(("i", "case"), PLACES)
def test_features(i: int, case: Case, cpu_engine: Engine) -> None:
    _check(case, DTYPES[i % 3], PAGE_SIZES[i % len(PAGE_SIZES)], str(cpu_engine.isa))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("case", LENGTHS, ids=lambda case: case.name)
def test_lengths(case: Case, page_size: int, cpu_engine: Engine) -> None:
    _check(case, DTYPES[page_size % 3], page_size, str(cpu_engine.isa), (1, 2, 5))


@pytest.mark.parametrize("page_size", [3, 16])
@pytest.mark.parametrize("head_dim", [1, 2, 7, 15, 17, 33, 63, 65, 100, 127, 129, 255, 256])
@pytest.mark.parametrize("q_len", [1, 3, 13])
def test_head_dims(head_dim: int, page_size: int, q_len: int, cpu_engine: Engine) -> None:
    v_dim = (head_dim * 7 + 5) % 256 + 1
    sizes = Sizes(2, 2, 1, q_len, 131, head_dim, v_dim)
    case = Case(f"D {head_dim}, Dv {v_dim}, {q_len} queries", sizes, options(kv_lengths=[131, 50]))
    _check(case, DTYPES[head_dim % 3], page_size, str(cpu_engine.isa))


@pytest.mark.parametrize("isa_threads", [(1, 2)])
def test_pages_equal_one_page(isa_threads: tuple[int, ...], cpu_engine: Engine) -> None:
    """A page that holds everything is the contiguous layout: the same tiles, the same bits."""
    for q_len in (1, 30):
        case = Case("one page", _long(q_len, 900, 4, 2), options(kv_lengths=[900, 333]))
        problem, _ = solved(case, "float32", "float32")
        lengths = problem.options["kv_lengths"]
        plain = Stored(problem.k, problem.v)
        whole = paged(plain, lengths, 900, np.random.default_rng(0))
        for threads in isa_threads:
            flat = attend(problem.q, plain, problem.options, isa=str(cpu_engine.isa), num_threads=threads)
            page = attend(problem.q, whole, problem.options, isa=str(cpu_engine.isa), num_threads=threads)
            assert flat[0].tobytes() == page[0].tobytes()
            assert flat[1].tobytes() == page[1].tobytes()


def test_heads_side_by_side_in_a_page(cpu_engine: Engine) -> None:
    """Strides are free: a pool laid out (pages, page_size, Hkv, D), and pages that skip memory."""
    case = Case("strided pool", _long(1, 300, 4, 2), options(kv_lengths=[300, 77]))
    problem, expected = solved(case, "float32", "float32")
    stored = paged(Stored(problem.k, problem.v), np.array([300, 77]), 16, np.random.default_rng(1))
    k = np.ascontiguousarray(stored.k.swapaxes(1, 2)).swapaxes(1, 2)
    v = np.full((len(stored.v) * 2, *stored.v.shape[1:]), np.nan, dtype=stored.v.dtype)[::2]
    v[...] = stored.v
    check(
        *attend(problem.q, Stored(k, v, table=stored.table), problem.options, isa=str(cpu_engine.isa)),
        expected,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect on anonymous maps")
def test_nothing_past_the_last_row_is_touched(cpu_engine: Engine) -> None:
    script = Path(__file__).with_name("guard_pages_cache.py")
    done = subprocess.run(
        [sys.executable, str(script), str(cpu_engine.isa)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = done.stdout.rstrip().rpartition("\n")[2]
    assert done.returncode == 0, f"exit code {done.returncode} at: {last}\n{done.stderr[-2000:]}"
    assert "int8, pages of 16" in done.stdout
