"""The oracle against an implementation that knows no arrays: loops, lists and math.exp."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import reference
from reference import standard

ROOT = Path(__file__).resolve().parents[2]


def scalar_attention(
    q,
    k,
    v,
    *,
    causal=False,
    window=None,
    mask=None,
    alibi_slopes=None,
    scale=None,
    softcap=None,
    sinks=None,
    kv_lengths=None,
    q_offset=None,
):
    """Attention one number at a time, written from the definition alone; shares nothing with the package."""
    B, Hq, Sq, D = q.shape
    _, Hkv, Sk, Dv = v.shape
    out, lse = np.full((B, Hq, Sq, Dv), np.nan), np.full((B, Hq, Sq), np.nan)
    for b in range(B):
        length = Sk if kv_lengths is None else int(kv_lengths[b])
        offset = length - Sq if q_offset is None else int(np.broadcast_to(q_offset, B)[b])
        for h in range(Hq):
            kv_head = h // (Hq // Hkv)
            for i in range(Sq):
                position = offset + i
                seen = []  # (key, score)
                for j in range(length):
                    if causal and j > position:
                        continue
                    if window is not None:
                        left, right = window
                        if left not in (None, -1) and j < position - left:
                            continue
                        if right not in (None, -1) and j > position + right:
                            continue
                    bias = 0.0
                    if mask is not None:
                        entry = np.broadcast_to(mask, (B, Hq, Sq, Sk))[b, h, i, j]
                        if mask.dtype == bool:
                            if not entry:
                                continue
                        elif entry == -math.inf:
                            continue
                        else:
                            bias += float(entry)
                    if alibi_slopes is not None:
                        slope = alibi_slopes[h] if np.ndim(alibi_slopes) == 1 else alibi_slopes[b, h]
                        bias += float(slope) * (j - position)
                    s = 0.0
                    for d in range(D):
                        s += float(q[b, h, i, d]) * float(k[b, kv_head, j, d])
                    s *= 1.0 / math.sqrt(D) if scale is None else scale
                    if softcap:
                        s = softcap * math.tanh(s / softcap)
                    seen.append((j, s + bias))
                if not seen:
                    out[b, h, i], lse[b, h, i] = 0.0, -math.inf
                    continue
                top = max(s for _, s in seen)
                if sinks is not None:
                    top = max(top, float(sinks[h]))
                total = sum(math.exp(s - top) for _, s in seen)
                if sinks is not None:
                    total += math.exp(float(sinks[h]) - top)
                lse[b, h, i] = top + math.log(total)
                for c in range(Dv):
                    weighted = sum(math.exp(s - top) * float(v[b, kv_head, j, c]) for j, s in seen)
                    out[b, h, i, c] = weighted / total
    return out, lse


@pytest.mark.parametrize(
    ("Sq", "Sk"), [(1, 1), (1, 7), (7, 1), (4, 4), (3, 5), (5, 3), (7, 13), (11, 8), (0, 5), (5, 0), (0, 0)]
)
def test_every_option_at_awkward_lengths(feature, rng, make, close, Sq, Sk):
    q, k, v = make(B=3, Hq=4, Hkv=2, Sq=Sq, Sk=Sk, D=3, Dv=2)
    options = feature(rng, 3, 4, Sq, Sk)
    close(standard.attention(q, k, v, **options), scalar_attention(q, k, v, **options))


@pytest.mark.parametrize(
    ("B", "Hq", "Hkv", "D", "Dv"),
    [
        (1, 1, 1, 1, 1),
        (1, 3, 1, 1, 5),  # one key/value head for all
        (2, 6, 2, 17, 1),
        (1, 4, 4, 2, 16),
        (1, 2, 1, 3, 0),
        (0, 2, 1, 3, 4),
        (2, 0, 0, 3, 4),
        (2, 0, 1, 3, 4),
    ],
)
def test_every_option_at_awkward_shapes(feature, rng, make, close, B, Hq, Hkv, D, Dv):
    q, k, v = make(B=B, Hq=Hq, Hkv=Hkv, Sq=4, Sk=6, D=D, Dv=Dv)
    options = feature(rng, B, Hq, 4, 6)
    close(standard.attention(q, k, v, **options), scalar_attention(q, k, v, **options))


def test_a_query_without_keys_gives_zero_and_minus_infinity(make):
    q, k, v = make(Sq=3, Sk=4)
    for options in (
        {"mask": np.zeros((3, 4), bool)},
        {"kv_lengths": [0, 0]},
        {"causal": True, "q_offset": -9},
    ):
        out, lse = standard.attention(q, k, v, sinks=np.full(4, 900.0), **options)
        assert (out == 0).all()
        assert (lse == -np.inf).all()


def test_a_sink_lowers_weights_and_joins_the_denominator(make):
    q, k, v = make()
    out, lse = standard.attention(q, k, v)
    out_sunk, lse_sunk = standard.attention(q, k, v, sinks=np.full(4, 1.5))
    np.testing.assert_allclose(lse_sunk, np.logaddexp(lse, 1.5))
    np.testing.assert_allclose(out_sunk, out * np.exp(lse - lse_sunk)[..., None])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_lies_at_hidden_keys_cannot_matter(make, close, poison):
    q, k, v = make(B=2, Sq=5, Sk=9)
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[0, :, 4:] = bad_v[0, :, 4:] = poison
    bad_k[1, :, 6:] = bad_v[1, :, 6:] = poison
    close(
        standard.attention(q, bad_k, bad_v, kv_lengths=[4, 6]), standard.attention(q, k, v, kv_lengths=[4, 6])
    )

    # Key 6 of nine is hidden from the queries before position 6 by causality: only they stay clean.
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[:, :, 6] = bad_v[:, :, 6] = poison
    got, want = standard.attention(q, bad_k, bad_v, causal=True), standard.attention(q, k, v, causal=True)
    close([x[:, :, :2] for x in got], [x[:, :, :2] for x in want])
    if np.isnan(poison):
        assert np.isnan(got[0][:, :, 2:]).all()

    # The same by a mask, of either kind.
    hide = np.arange(9) != 6
    for mask in (hide, np.where(hide, 0.0, -np.inf)):
        close(standard.attention(q, bad_k, bad_v, mask=mask), standard.attention(q, k, v, mask=mask))


def test_keys_behind_the_length_are_not_even_loaded(make, monkeypatch):
    q, k, v = make(B=2, Sk=9)
    loaded = []

    def spy(Q, K, **options):
        loaded.append(len(K))
        return reference.scores.scores(Q, K, **options)

    monkeypatch.setattr(standard, "scores", spy)
    standard.attention(q, k, v, kv_lengths=[2, 7])
    assert loaded == [2] * 4 + [7] * 4


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_narrow_types_are_widened_first(make, dtype):
    q, k, v = (x.astype(dtype) for x in make())
    mask = np.zeros((5, 7), dtype)
    mask[:, 2] = -np.inf
    got = standard.attention(q, k, v, mask=mask)
    want = standard.attention(*(x.astype(np.float64) for x in (q, k, v)), mask=mask.astype(np.float64))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_strided_and_read_only_inputs(make):
    q, k, v = make(Sq=6, Sk=8)
    want = standard.attention(q, k, v)
    views = [
        np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)
    ]  # (B, S, H, D) in memory
    for x in views:
        x.setflags(write=False)
    got = standard.attention(*views)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-14)


def test_large_logits_do_not_overflow(make):
    q, k, v = make()
    out, lse = standard.attention(q, k, v, scale=1e6)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()
    best = np.einsum("bhid,bhjd->bhij", q, np.repeat(k, 2, axis=1)).argmax(-1)  # the largest score takes all
    np.testing.assert_allclose(out, np.take_along_axis(np.repeat(v, 2, axis=1), best[..., None], axis=2))


def test_combining_causal_and_window_means_both(make, close):
    q, k, v = make()
    close(
        standard.attention(q, k, v, causal=True, window=(2, 5)),
        standard.attention(q, k, v, window=(2, 0)),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((4, 5, 3))}, "q must have four axes"),
        ({"k": np.zeros((2, 2, 7, 5))}, "one D"),
        ({"q": np.zeros((2, 4, 5, 0)), "k": np.zeros((2, 2, 7, 0))}, "one D of at least 1"),
        ({"q": np.zeros((3, 4, 5, 3))}, "batch sizes differ"),
        ({"v": np.zeros((2, 2, 6, 4))}, "same heads and length"),
        ({"v": np.zeros((2, 4, 7, 4))}, "same heads and length"),
        ({"q": np.zeros((2, 3, 5, 3))}, "3 query heads cannot share 2"),
        ({"mask": np.zeros((6, 7), bool)}, r"mask \(6, 7\) does not broadcast"),
        ({"mask": np.zeros((5, 7), int)}, "mask must be bool or floating point"),
        ({"alibi_slopes": np.zeros(3)}, "alibi_slopes must be"),
        ({"sinks": np.zeros(2)}, "sinks must be"),
        ({"kv_lengths": [7]}, "kv_lengths must have a shape"),
        ({"kv_lengths": [7, 8]}, r"kv_lengths must lie in 0..7"),
        ({"kv_lengths": [7, -1]}, r"kv_lengths must lie in 0..7"),
        ({"kv_lengths": [7.0, 6.0]}, "kv_lengths must be integers"),
        ({"q_offset": 0.5}, "q_offset must be integers"),
        ({"q_offset": [1, 2, 3]}, "q_offset must have a shape"),
        ({"window": (1, -2)}, "window must hold integers from -1 on"),
        ({"window": (1.5, 2)}, "window must hold integers from -1 on"),
        ({"window": 4}, "window must be a pair"),
        ({"softcap": -1.0}, "softcap must be positive"),
    ],
)
@pytest.mark.parametrize("module", ["standard", "tiling", "decode"])
def test_arguments_that_do_not_fit_are_named(make, module, change, message):
    q, k, v = make()
    arguments = {"q": q, "k": k, "v": v, **change}
    with pytest.raises(ValueError, match=message):
        getattr(reference, module).attention(**arguments)


def test_packed_sequences_are_separate_problems(rng, close):
    lengths_q, lengths_k = [3, 0, 1, 6], [5, 4, 0, 6]
    cu_q, cu_k = np.cumsum([0, *lengths_q]), np.cumsum([0, *lengths_k])
    q, k, v = (
        rng.standard_normal((10, 4, 3)),
        rng.standard_normal((15, 2, 3)),
        rng.standard_normal((15, 2, 5)),
    )
    options = {"causal": True, "window": (3, 0), "sinks": rng.standard_normal(4), "softcap": 2.0}
    slopes, offsets = rng.random((4, 4)), np.array([0, 1, 2, -2])
    for run in (standard.attention, reference.tiling.attention):
        out, lse = reference.attention_varlen(
            q, k, v, cu_q, cu_k, alibi_slopes=slopes, q_offset=offsets, attention=run, **options
        )
        assert out.shape == (10, 4, 5)
        assert lse.shape == (10, 4)
        for b in range(4):
            rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
            O, L = scalar_attention(
                *(x.transpose(1, 0, 2)[None] for x in (q[rows], k[keys], v[keys])),
                alibi_slopes=slopes[b], q_offset=offsets[b], **options,
            )  # fmt: skip
            close((out[rows], lse[rows]), (O[0].transpose(1, 0, 2), L[0].T))


@pytest.mark.parametrize("starts", [[0, 3], [1, 4], [0, 3, 2, 4], []])
def test_packed_starts_must_cover_the_tokens(starts):
    x = np.zeros((4, 1, 1))
    with pytest.raises(ValueError, match="cu_seqlens_k must rise from 0 to 4"):
        reference.attention_varlen(x, x, x, [0, 4], starts)
    with pytest.raises(ValueError, match="cu_seqlens_q has 1 sequences, cu_seqlens_k 2"):
        reference.attention_varlen(x, x, x, [0, 4], [0, 2, 4])


def test_importing_needs_numpy_and_nothing_else():
    program = (
        "import sys, numpy; before = set(sys.modules); import reference\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'numpy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['reference']"
