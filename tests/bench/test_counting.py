"""Useful work is what a brute-force count over every pair says it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastattention.bench.cases import (
    Case,
    all_cases,
    make_data,
    select,
    useful_flops,
    visible_pairs,
    window_mask,
)


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


def test_data_is_random_and_aligned() -> None:
    data = make_data(small(dtype="float16", k_len=64, q_len=64))
    for array in (data.q, data.k, data.v):
        assert array.flags.c_contiguous
        assert 0.5 < float(array.astype(np.float32).std()) < 1.5
    assert data.q.ctypes.data % 64 == data.k.ctypes.data % 64 == 0
    assert not np.array_equal(data.k, data.v)


def test_names_are_unique_and_levels_nest() -> None:
    names = [case.name for case in all_cases(2)]
    assert len(set(names)) == len(names)
    sets = [{case.name for case in select(2, level)} for level in ("quick", "default", "full")]
    assert sets[0] < sets[1] < sets[2] == set(names)


def test_one_thread_has_no_rows_of_several() -> None:
    assert all(case.threads == 1 for case in select(1, "full"))
    assert {case.threads for case in select(3, "full")} == {1, 3}


def test_filter_needs_every_word() -> None:
    found = select(2, "full", "decode, float16")
    assert found
    assert all(case.kind == "decode" and case.dtype == "float16" for case in found)
    assert select(2, "full", "decode nonsense") == []
