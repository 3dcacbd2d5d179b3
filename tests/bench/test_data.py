"""The arrays are what a case says, and the check sees through pages, batches and int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastattention
from fastattention import cpu_kernels, reference
from fastattention.bench import calls, measure
from fastattention.bench.calls import forced_isa, make_out, missing, our_call
from fastattention.bench.cases import Case
from fastattention.bench.data import Data, make_data, without_pages
from fastattention.bench.plan import Plan

CASE = Case("decode", "float32", 4, 2, 3, 48, 16, batch=2)
CASES = [
    CASE,
    replace(CASE, v_dim=8),
    replace(CASE, dtype="bfloat16"),
    replace(CASE, page_size=16),
    replace(CASE, page_size=16, dtype="float16", v_dim=24),
    replace(CASE, dtype="int8"),
    replace(CASE, dtype="int8", page_size=8, v_dim=8, causal=True),
    replace(CASE, dtype="int8", window=(7, 0)),
]
NAMES = [case.name + ("/v" if case.v_dim else "") for case in CASES]


def in_order(case: Case, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return k and v, (B, Hkv, Sk, D or Dv), in float64, by loops over every token."""
    both = []
    for array, scales in ((data.k, data.k_scales), (data.v, data.v_scales)):
        found = np.empty((case.batch, case.kv_heads, case.k_len, array.shape[-1]))
        for b, h, j in np.ndindex(found.shape[:3]):
            page, row = b, j
            if data.block_table is not None:
                assert case.page_size is not None
                page, row = data.block_table[b, j // case.page_size], j % case.page_size
            scale = 1.0 if scales is None else float(scales[page, h, row])
            found[b, h, j] = array[page, h, row].astype(np.float64) * scale
        both.append(found)
    return both[0], both[1]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_data_is_random_aligned_and_in_one_buffer(case: Case) -> None:
    data = make_data(case)
    assert data.q.dtype.name == case.q_dtype
    assert data.q.shape == (2, 4, 3, 16)
    assert data.kv.nbytes == case.kv_bytes
    assert data.kv.ctypes.data % 4096 == data.q.ctypes.data % 4096 == 0
    for array in (data.q, data.k, data.v):
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
    for array in (data.k, data.v, data.k_scales, data.v_scales):
        assert array is None or np.shares_memory(array, data.kv)
    for b, h in np.ndindex(case.batch, case.kv_heads):
        for rows in data.head(b, h):
            assert 0.8 < float(rows.astype(np.float64).std()) < 1.2
    assert not np.array_equal(data.head(0, 0)[0][..., :8], data.head(0, 0)[1][..., :8])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_heads_are_put_in_order(case: Case) -> None:
    data = make_data(case)
    for array, number in ((array, n) for n, array in enumerate(in_order(case, data))):
        for b, h in np.ndindex(case.batch, case.kv_heads):
            np.testing.assert_array_equal(data.head(b, h)[number][0, 0].astype(np.float64), array[b, h])


def test_pages_are_shuffled_and_whole() -> None:
    case = replace(CASE, page_size=4)
    table = make_data(case).block_table
    assert table is not None
    assert (table.dtype, table.shape) == (np.int32, (2, 12))
    assert sorted(table.reshape(-1).tolist()) == list(range(24))
    steps = np.diff(table, axis=1)
    assert (steps == 1).mean() < 0.3  # else the pages would be as good as contiguous
    with pytest.raises(ValueError, match="whole pages"):
        make_data(replace(case, page_size=5))


@pytest.mark.parametrize("case", [case for case in CASES if case.page_size], ids=lambda case: case.name)
def test_without_pages_the_memory_is_a_contiguous_cache(case: Case) -> None:
    data = make_data(case)
    flat, flat_data = replace(case, page_size=None), without_pages(case, data)
    assert flat_data.k.shape == (case.batch, case.kv_heads, case.k_len, case.head_dim)
    for paged, contiguous in ((data.k, flat_data.k), (data.v, flat_data.v)):
        assert contiguous.ctypes.data == paged.ctypes.data
    assert flat_data.block_table is None
    expected, out = measure.expected_rows(flat, flat_data), make_out(flat, flat_data)
    our_call(flat, flat_data, out)()
    assert measure.error(expected, out) <= measure.TOLERANCE[case.dtype]


def test_int8_uses_its_whole_range() -> None:
    data = make_data(replace(CASE, dtype="int8"))
    assert data.k_scales is not None
    assert (np.abs(data.k.astype(int)).max(axis=-1) == 127).all()
    assert (data.k_scales > 0).all()


def stand_in(damage: str | None = None) -> Callable[..., None]:
    """Return an attention that takes what the kernels are handed, by the reference; damaged on demand."""

    def kernel(q: Any, k: Any, v: Any, out: Any, lse: Any = None, *, scale: float, window_left: int = -1,
               window_right: int = -1, kv_lengths: Any = None, k_scales: Any = None, v_scales: Any = None,
               block_table: Any = None, page_size: int = 0, max_seqlen_k: int = 0, num_threads: int = 1,
               isa: str = "") -> None:  # fmt: skip
        if damage == "scales":
            k_scales = None if k_scales is None else np.ones_like(k_scales)
        if damage == "pages" and block_table is not None:
            block_table = np.sort(block_table.reshape(-1)).reshape(block_table.shape)
        assert block_table is None or block_table.shape[1] * page_size == max_seqlen_k
        for b in range(len(q)):
            rows = []
            for array, scales in ((k, k_scales), (v, v_scales)):
                real = array.astype(np.float64) * (1 if scales is None else scales[..., None])
                if block_table is not None:
                    pages = real[block_table[b]]  # (pages, Hkv, page_size, D)
                    rows.append(pages.swapaxes(0, 1).reshape(1, real.shape[1], -1, real.shape[-1]))
                else:
                    rows.append(real[b : b + 1])
            if kv_lengths is not None:
                rows = [array[:, :, : kv_lengths[b]] for array in rows]
            window = (window_left, window_right)
            out[b : b + 1] = reference.attention(q[b : b + 1], *rows, scale=scale, window=window)[0]
        if damage == "batch":
            out[-1] = out[0]

    return kernel


def checked(case: Case) -> float:
    data = make_data(case)
    out = make_out(case, data)
    our_call(case, data, out)()
    return measure.error(measure.expected_rows(case, data), out)


PECULIAR = [case for case in CASES if case.page_size or case.dtype == "int8"]


@pytest.mark.parametrize("case", PECULIAR, ids=lambda case: case.name)
def test_what_the_kernels_are_handed_means_the_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls.cpu_kernels, "attention", stand_in())
    assert checked(case) <= measure.TOLERANCE[case.dtype]


@pytest.mark.parametrize(
    ("damage", "changes"),
    [("scales", {"dtype": "int8"}), ("pages", {"page_size": 8}), ("batch", {"page_size": 8})],
)
def test_the_check_finds_damage(
    damage: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(CASE, **changes)
    monkeypatch.setattr(calls.cpu_kernels, "attention", stand_in(damage))
    assert checked(case) > 10 * measure.TOLERANCE[case.dtype]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_kernels_pass_the_check(case: Case) -> None:
    assert checked(case) <= measure.TOLERANCE[case.dtype]


def test_a_batch_whose_last_sequence_is_wrong_is_found() -> None:
    data = make_data(CASE)
    out = make_out(CASE, data)
    our_call(CASE, data, out)()
    expected = measure.expected_rows(CASE, data)
    out[-1, -1, -1, 0] += 0.1
    assert measure.error(expected, out) > measure.TOLERANCE["float32"]
    assert measure.error(expected, out[:1]) == np.inf


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing(CASE) is None

    def older(case: Case, isa: str) -> Plan:
        if case.dtype == "int8":
            raise ValueError("no int8 here")
        return Plan(isa, 1, 0, 0)

    monkeypatch.setattr(calls, "explain", older)
    monkeypatch.setattr(calls.cpu_kernels, "available_isas", lambda: ("baseline", "avx2"))
    assert missing(CASE) is None
    assert missing(replace(CASE, dtype="int8")) == "this build has no kernels for it: no int8 here"
    assert missing(replace(CASE, isa="amx")) == "this machine or this build lacks amx"
    assert missing(replace(CASE, isa="avx2")) is None
    assert missing(replace(CASE, isa="avx2"), only="avx2") is None
    why = missing(replace(CASE, isa="avx2"), only="baseline")
    assert why == "the run is forced to baseline, the row to avx2"


def test_a_forced_isa_holds_for_the_row_only() -> None:
    before = fastattention.get_isa()
    with forced_isa(replace(CASE, isa="baseline"), None) as isa:
        assert isa == fastattention.get_isa() == "baseline"
    assert fastattention.get_isa() == before
    fastattention.set_isa("baseline")
    with forced_isa(CASE, "baseline") as isa:
        assert isa == "baseline"
    newest = cpu_kernels.available_isas()[-1]
    with forced_isa(replace(CASE, isa=newest), "baseline") as isa:
        assert isa == newest
    assert fastattention.get_isa() == "baseline"  # the run's, not the machine's
    fastattention.set_isa(None)
