"""Which kernels a call gets: the fastest set of the machine, and within it those that serve the call."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastattention.cpu_kernels._native import lib

import fastattention
from fastattention import cpu_kernels

AVAILABLE = cpu_kernels.available_isas()
BF16 = np.dtype(ml_dtypes.bfloat16)


def _kernels(isa: str, rows: int, q_dtype: np.dtype, kv_dtype: np.dtype) -> str:
    q = np.zeros((1, 1, rows, 64), q_dtype)
    k = np.zeros((1, 1, 100, 64), kv_dtype)
    scales = np.zeros((1, 1, 100), np.float32) if kv_dtype == np.int8 else None
    plan = cpu_kernels.explain(q, k, k, q, scale=0.1, isa=isa, k_scales=scales, v_scales=scales)
    return str(plan["isa"])


def test_the_default_is_the_newest_set_that_is_no_slower() -> None:
    slow = "avx512_bf16" if not lib.fa_bf16_dot_is_faster() else ""
    assert cpu_kernels.default_isa() == [isa for isa in AVAILABLE if isa != slow][-1]


@pytest.mark.skipif("avx512_bf16" not in AVAILABLE, reason="this machine or this build lacks avx512_bf16")
def test_dot_products_of_bfloat16_are_judged_by_their_rate() -> None:
    dot = lib.fa_probe_bf16_dot_gflops(0.05)
    fma = lib.fa_probe_fma_gflops(cpu_kernels.ISAS.index("avx512"), 0.05)
    if not 0.9 < dot / fma < 1.5:  # nearer to the bound of 1.2 two measurements may differ
        assert bool(lib.fa_bf16_dot_is_faster()) == (dot > 1.2 * fma)


@pytest.mark.parametrize("isa", [isa for isa in AVAILABLE if isa in ("baseline", "avx2", "avx512")])
def test_a_set_for_everything_runs_everything_itself(isa: str) -> None:
    for rows in (1, 4, 9, 17, 100):
        for kv_dtype in (np.dtype(np.float32), np.dtype(np.float16), BF16, np.dtype(np.int8)):
            q_dtype = np.dtype(np.float32) if kv_dtype == np.int8 else kv_dtype
            assert _kernels(isa, rows, q_dtype, kv_dtype) == isa


@pytest.mark.parametrize("isa", [isa for isa in AVAILABLE if isa in ("avx512_bf16", "amx")])
def test_pairs_multiply_bfloat16_and_leave_the_rest(isa: str) -> None:
    float32, float16 = np.dtype(np.float32), np.dtype(np.float16)
    assert _kernels(isa, 100, BF16, BF16) == isa
    assert _kernels(isa, 100, float32, float32) == "avx512"
    assert _kernels(isa, 100, float16, float16) == "avx512"
    assert _kernels(isa, 100, float32, BF16) == "avx512"  # rounding such queries would lose digits
    assert _kernels(isa, 1, float32, float32) == "avx512"


@pytest.mark.parametrize("isa", [isa for isa in AVAILABLE if isa in ("avx512_vnni", "avx512_bf16")])
def test_products_of_bytes_decode_int8_and_leave_the_rest(isa: str) -> None:
    float32, int8 = np.dtype(np.float32), np.dtype(np.int8)
    for rows in range(1, 17):
        assert _kernels(isa, rows, float32, int8) == "avx512_vnni"
        assert _kernels(isa, rows, float32, float32) == "avx512"
        assert _kernels(isa, rows, BF16, BF16) == "avx512"
    assert _kernels(isa, 17, float32, int8) == "avx512"
    assert _kernels("avx512_vnni", 17, BF16, BF16) == "avx512"


@pytest.mark.parametrize("isa", [isa for isa in AVAILABLE if isa in ("avx512_vnni", "avx512_bf16", "amx")])
def test_short_pages_of_bytes_are_read_through_several_heads(isa: str) -> None:
    for page_size, rows, expected in ((16, 1, "avx512"), (16, 4, "avx512"), (64, 4, "avx512_vnni")):
        q, k = np.zeros((1, rows, 1, 64), np.float32), np.zeros((4, 1, page_size, 64), np.int8)
        scales = np.ones(k.shape[:3], np.float32)
        plan = cpu_kernels.explain(
            q, k, k, q, scale=0.1, isa=isa, k_scales=scales, v_scales=scales, page_size=page_size,
            block_table=np.arange(4, dtype=np.int32)[None], kv_lengths=np.array([60]), max_seqlen_k=60,
        )  # fmt: skip
        assert plan["isa"] == expected


@pytest.mark.skipif("amx" not in AVAILABLE, reason="this machine or this build lacks amx")
def test_tiles_decode_where_enough_rows_share_a_key() -> None:
    float32, int8 = np.dtype(np.float32), np.dtype(np.int8)
    for kv_dtype, fewer in ((BF16, "avx512"), (int8, "avx512_vnni")):
        for rows in range(1, 17):
            assert _kernels("amx", rows, float32, kv_dtype) == ("amx" if rows >= 5 else fewer)


def test_explain_says_whose_kernels_run_and_why() -> None:
    if "amx" not in AVAILABLE:
        pytest.skip("this machine or this build lacks amx")
    fastattention.set_isa("amx")
    try:
        x = np.zeros((1, 1, 100, 64), np.float32)
        assert "avx512" in str(fastattention.explain(x, x, x))
    finally:
        fastattention.set_isa(None)
