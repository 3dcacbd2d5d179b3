"""Split-KV decode against the oracle: any number of splits, every option."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import decode, standard
from reference.decode import split_ranges


@pytest.mark.parametrize("num_splits", [1, 2, 3, 13, 20])
@pytest.mark.parametrize("Sq", [1, 3])
def test_every_option_at_any_number_of_splits(feature, rng, make, close, Sq, num_splits):
    q, k, v = make(B=3, Hq=6, Hkv=2, Sq=Sq, Sk=13)
    options = feature(rng, 3, 6, Sq, 13)
    got = decode.attention(q, k, v, num_splits=num_splits, **options)
    close(got, standard.attention(q, k, v, **options))


@pytest.mark.parametrize(
    ("B", "Hq", "Hkv", "Sq", "Sk"), [(0, 2, 1, 1, 5), (1, 0, 0, 1, 5), (1, 2, 2, 0, 5), (2, 2, 1, 1, 0)]
)
def test_nothing_to_do(make, close, B, Hq, Hkv, Sq, Sk):
    q, k, v = make(B=B, Hq=Hq, Hkv=Hkv, Sq=Sq, Sk=Sk)
    close(decode.attention(q, k, v, sinks=np.ones(Hq)), standard.attention(q, k, v, sinks=np.ones(Hq)))


def test_poison_behind_the_length(make, close):
    q, k, v = make(B=2, Hq=4, Hkv=2, Sq=1, Sk=30)
    bad_k, bad_v = k.copy(), v.copy()
    for b, n in enumerate((7, 0)):
        bad_k[b, :, n:] = bad_v[b, :, n:] = np.nan
    want = standard.attention(q, k, v, kv_lengths=[7, 0])
    close(decode.attention(q, bad_k, bad_v, kv_lengths=[7, 0], num_splits=6), want)


def test_bfloat16_cache(make, close):
    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in make(Sq=1, Sk=100))
    close(decode.attention(q, k, v), standard.attention(q, k, v))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 64))
def test_ranges_share_out_all_keys_evenly(k_len, num_splits):
    ranges = split_ranges(k_len, num_splits)
    assert len(ranges) == num_splits
    assert ranges[0][0] == 0
    assert ranges[-1][1] == k_len
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_no_split_is_refused(make):
    q, k, v = make()
    with pytest.raises(ValueError, match="num_splits must be at least 1, got 0"):
        decode.attention(q, k, v, num_splits=0)
