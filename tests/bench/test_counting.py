"""Useful work is what a brute-force count over every pair says it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastattention.bench.cases import Case, useful_flops, visible_pairs, window_mask
from fastattention.bench.data import make_data
from fastattention.bench.rows import all_cases, select


def small(**changes: object) -> Case:
    fields = {
        "kind": "prefill",
        "dtype": "float32",
        "q_heads": 4,
        "kv_heads": 2,
        "q_len": 7,
        "k_len": 11,
        "head_dim": 8,
    }
    return Case(**(fields | changes))  # type: ignore[arg-type]


def brute_force(case: Case, mask: np.ndarray | None) -> int:
    count = 0
    for h, i, j in itertools.product(range(case.q_heads), range(case.q_len), range(case.k_len)):
        position = i + case.k_len - case.q_len
        seen = not (case.causal and j > position)
        if case.window:
            seen = seen and position - case.window[0] <= j <= position + case.window[1]
        if mask is not None and mask.dtype == np.bool_:
            seen = seen and bool(mask[0, h % mask.shape[1], i, j])
        count += seen
    return count


@pytest.mark.parametrize("mask", [None, "bool", "float32"])
@pytest.mark.parametrize("window", [None, (0, 0), (3, 0), (2, 1), (100, 100)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_len", [1, 7, 11, 13])
def test_visible_pairs(q_len: int, causal: bool, window: tuple[int, int] | None, mask: str | None) -> None:
    case = small(q_len=q_len, causal=causal, window=window, mask=mask)
    array = make_data(case).mask
    expected = brute_force(case, array)
    assert visible_pairs(case, array) == expected
    assert useful_flops(case, array) == 2 * (8 + 8) * expected


def test_batches_and_other_value_dimensions_count() -> None:
    case = small(batch=3, v_dim=5, causal=True)
    assert visible_pairs(case) == 3 * brute_force(case, None)
    assert useful_flops(case) == 2 * (8 + 5) * 3 * brute_force(case, None)
    masked = small(batch=3, mask="bool")
    mask = make_data(masked).mask
    assert visible_pairs(masked, mask) == 3 * brute_force(masked, mask)


def test_mask_per_head() -> None:
    case = small(mask="bool", causal=True)
    mask = np.random.default_rng(0).random((1, 4, 7, 11)) < 0.3
    assert visible_pairs(case, mask) == brute_force(case, mask)


@pytest.mark.parametrize("causal", [False, True])
def test_window_mask_is_the_window(causal: bool) -> None:
    case = small(window=(3, 1), causal=causal)
    assert window_mask(case).sum() * case.q_heads == visible_pairs(case)
    with pytest.raises(ValueError, match="no window"):
        window_mask(small())


def test_bytes_count_each_key_once() -> None:
    case = small(kind="decode", dtype="bfloat16", q_heads=32, kv_heads=4, q_len=1, k_len=1000)
    data = make_data(case)
    assert case.kv_bytes == data.k.nbytes + data.v.nbytes == data.kv.nbytes
    assert case.moved_bytes == case.kv_bytes + 2 * data.q.nbytes


def test_bytes_of_batches_scales_and_other_value_dimensions() -> None:
    case = small(kind="decode", dtype="int8", batch=3, kv_heads=4, q_len=1, k_len=64, head_dim=16, v_dim=32)
    data = make_data(case)
    assert data.k_scales is not None
    assert data.v_scales is not None
    arrays = (data.k, data.v, data.k_scales, data.v_scales)
    assert case.kv_bytes == sum(array.nbytes for array in arrays) == data.kv.nbytes
    out_bytes = 3 * 4 * 1 * 32 * 4
    assert case.moved_bytes == case.kv_bytes + data.q.nbytes + out_bytes


def test_names_are_unique_and_levels_nest() -> None:
    names = [case.name for case in all_cases(2)]
    assert len(set(names)) == len(names)
    sets = [{case.name for case in select(2, level)} for level in ("quick", "default", "full")]
    assert sets[0] < sets[1] < sets[2] == set(names)


@pytest.mark.parametrize("words", [
    "prefill float32 window1025", "prefill bfloat16 causal 1t avx512_bf16", "prefill float16 causal",
    "prefill D192:128", "prefill D80", "prefill D96", "prefill D256", "prefill H32:8 S2048",
    "prefill H32 S2048",
    "prefill bool-mask", "prefill float-mask", "prefill S1024 causal", "prefill 2t",
    "decode int8 H32 S8192", "decode int8 H32:8 S32768", "decode int8 H32:4 S65536", "decode B8 int8",
    "decode Q16 bfloat16 H32:8", "decode P64 float16", "decode P16 float32", "decode 2t", "memory 1t",
    "memory 2t",
])  # fmt: skip
def test_what_is_promised_is_in_the_default_set(words: str) -> None:
    assert select(2, "default", words)


def test_every_cache_is_in_the_full_set() -> None:
    found = {
        (case.dtype, case.kv_heads, case.k_len) for case in select(1, "full", "decode") if case.batch == 1
    }
    dtypes = ("float32", "bfloat16", "float16", "int8")
    assert found == set(itertools.product(dtypes, (32, 8, 4), (8192, 32768, 65536)))


def test_one_thread_has_no_rows_of_several() -> None:
    assert all(case.threads == 1 for case in select(1, "full"))
    assert {case.threads for case in select(3, "full")} == {1, 3}


def test_filter_needs_every_word() -> None:
    found = select(2, "full", "decode, float16")
    assert found
    assert all(case.kind == "decode" and case.dtype == "float16" for case in found)
    assert select(2, "full", "decode nonsense") == []
