"""Bad input gets an error that names the argument, before anything is touched."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fastattention

from .inputs import DV, HKV, HQ, INF, INT64_MAX, NAN, SK, SQ, B, D, fused, packed, tensors, wide, zeros

# name: what is passed instead of, or beside, good tensors; the error; what its message must say.
BAD = {
    # What is no array.
    "list": ({"q": [[[[1.0]]]]}, TypeError, "q: expected an array .*got list"),
    "none": ({"k": None}, TypeError, "k: expected an array .*got NoneType"),
    "string": ({"v": "values"}, TypeError, "v: expected an array .*got str"),
    "memoryview": ({"v": memoryview(b"abc")}, TypeError, "v: expected an array"),
    "masked array": ({"q": np.ma.masked_array(zeros(B, HQ, SQ, D))}, TypeError, "q: masked arrays"),
    "list of lengths": ({"kv_lengths": [1, 2]}, TypeError, "kv_lengths: expected an array .*got list"),
    # Rank and sizes.
    "q rank 3": ({"q": zeros(HQ, SQ, D)}, ValueError, r"q: expected 4 axes .*\(4, 3, 8\)"),
    "k rank 5": ({"k": zeros(1, B, HKV, SK, D)}, ValueError, r"k: expected 4 axes .*\(1, 2, 2, 7, 8\)"),
    "v rank 0": ({"v": np.array(1.0, np.float32)}, ValueError, r"v: expected 4 axes .*\(\)"),
    "batch": ({"k": zeros(3, HKV, SK, D)}, ValueError, r"k: expected q's batch size 2, .*\(3, 2, 7, 8\)"),
    "v batch": ({"v": zeros(3, HKV, SK, DV)}, ValueError, r"v: expected \(B, Hkv, Sk\) .*\(2, 2, 7\)"),
    "v heads": ({"v": zeros(B, 4, SK, DV)}, ValueError, r"v: .*\(2, 4, 7, 5\)"),
    "v length": ({"v": zeros(B, HKV, SK + 1, DV)}, ValueError, r"v: .*\(2, 2, 8, 5\)"),
    "head dim": ({"k": zeros(B, HKV, SK, D + 1)}, ValueError, r"k: expected q's head dimension 8"),
    "group": ({"q": zeros(B, 3, SQ, D)}, ValueError, r"q: .*heads \(3\) must be a multiple .*\(2\)"),
    "no kv heads": (
        {"k": zeros(B, 0, SK, D), "v": zeros(B, 0, SK, DV)},
        ValueError,
        r"q: .*heads \(4\) must be a multiple .*\(0\)",
    ),
    "D 0": ({"q": zeros(B, HQ, SQ, 0), "k": zeros(B, HKV, SK, 0)}, ValueError, "D from 1 to 256, got 0"),
    "D 257": (
        {"q": zeros(B, HQ, SQ, 257), "k": zeros(B, HKV, SK, 257)},
        ValueError,
        "D from 1 to 256, got 257",
    ),
    "Dv 0": ({"v": zeros(B, HKV, SK, 0)}, ValueError, "Dv from 1 to 256, got 0"),
    "Dv 257": ({"v": zeros(B, HKV, SK, 257)}, ValueError, "Dv from 1 to 256, got 257"),
    "keys past 2**31": (
        {"k": wide(B, HKV, 2**31, D), "v": wide(B, HKV, 2**31, DV)},
        ValueError,
        r"k: expected at most 2\*\*31 - 1 keys, got 2147483648",
    ),
    "queries past 2**31": (
        {"q": wide(B, HQ, 2**31, D)},
        ValueError,
        r"q: expected at most 2\*\*31 - 1 queries",
    ),
    "more than int64": (
        {"q": wide(8, HQ, 2**31 - 1, D), "k": wide(8, HKV, 2**31 - 1, D), "v": wide(8, HKV, 2**31 - 1, DV)},
        ValueError,
        "Sk = 2147483647 multiply to more than int64",
    ),
    # Dtypes.
    "int": ({"q": zeros(B, HQ, SQ, D, dtype=int)}, TypeError, "q: expected float32, .*got int64"),
    "complex": (
        {"k": zeros(B, HKV, SK, D, dtype=np.complex64)},
        TypeError,
        "k: expected float32, .*complex64",
    ),
    "object": ({"v": zeros(B, HKV, SK, DV, dtype=object)}, TypeError, "v: expected float32, .*object"),
    "mixed": ({"k": zeros(B, HKV, SK, D, dtype=np.float16)}, TypeError, "float16"),
    "v mixed": (
        {"v": zeros(B, HKV, SK, DV, dtype=ml_dtypes.bfloat16)},
        TypeError,
        "v: expected k's dtype float32, ",
    ),
    "q other": (
        {"q": zeros(B, HQ, SQ, D, dtype=np.float16)},
        TypeError,
        "k: expected q's dtype float16, .*float32",
    ),
    "float64": (tensors(np.float64), TypeError, "q: .*backend='reference'"),
    "float64 on cpu": ({**tensors(np.float64), "backend": "cpu"}, TypeError, "q: .*backend='reference'"),
    "byte-swapped": (tensors(">f4"), TypeError, "q: byte-swapped .*'>f4'"),
    "byte-swapped mask": ({"mask": zeros(SQ, SK, dtype=">f4")}, TypeError, "mask: byte-swapped"),
    # Options.
    "causal string": ({"causal": "False"}, TypeError, "causal: expected True or False, got 'False'"),
    "window int": ({"window": 3}, TypeError, r"window: expected None or a pair \(left, right\), got 3"),
    "window of three": ({"window": (1, 2, 3)}, TypeError, "window: expected None or a pair"),
    "window negative": ({"window": (-2, 0)}, ValueError, "window left: expected at least 0, .*got -2"),
    "window right": ({"window": (None, -7)}, ValueError, "window right: .*got -7"),
    "window float": ({"window": (1.5, 0)}, TypeError, "window left: expected an integer or None, got float"),
    "window bool": ({"window": (0, True)}, TypeError, "window right: expected an integer or None, got bool"),
    "scale nan": ({"scale": NAN}, ValueError, "scale: expected a finite float32 number, got nan"),
    "scale inf": ({"scale": INF}, ValueError, "scale: .*got inf"),
    "scale past float32": ({"scale": 1e39}, ValueError, r"scale: .*got 1e\+39"),
    "scale huge int": ({"scale": 10**400}, ValueError, "scale: .*got inf"),
    "scale string": ({"scale": "1"}, TypeError, "scale: expected a number or None, got str"),
    "scale array": ({"scale": np.ones(2)}, TypeError, "scale: expected one number"),
    "softcap nan": ({"softcap": NAN}, ValueError, "softcap: .*nan"),
    "softcap inf": ({"softcap": INF}, ValueError, "softcap: .*inf"),
    "softcap zero": (
        {"softcap": 0},
        ValueError,
        "softcap: expected a positive float32 number or None, got 0.0",
    ),
    "softcap negative": ({"softcap": -1.0}, ValueError, "softcap: .*got -1.0"),
    "softcap vanishing in float32": ({"softcap": 1e-60}, ValueError, "softcap: .*1e-60"),
    "mask shape": ({"mask": zeros(SK, SQ, dtype=bool)}, ValueError, r"mask: shape \(7, 3\) .*\(2, 4, 3, 7\)"),
    "mask larger": ({"mask": zeros(3, 1, SQ, SK)}, ValueError, r"mask: shape \(3, 1, 3, 7\)"),
    "mask rank 5": ({"mask": zeros(1, B, HQ, SQ, SK)}, ValueError, "mask: expected at most 4 axes"),
    "mask int": ({"mask": zeros(SQ, SK, dtype=int)}, TypeError, "mask: expected bool .*got int64"),
    "mask list": ({"mask": [[True]]}, TypeError, "mask: expected an array .*got list"),
    "alibi shape": (
        {"alibi_slopes": zeros(HQ + 1)},
        ValueError,
        r"alibi_slopes: .*\(4,\) or .*\(2, 4\), got \(5,\)",
    ),
    "alibi transposed": ({"alibi_slopes": zeros(HQ, B)}, ValueError, r"alibi_slopes: .*got \(4, 2\)"),
    "alibi dtype": (
        {"alibi_slopes": zeros(HQ, dtype=int)},
        TypeError,
        "alibi_slopes: expected a floating dtype",
    ),
    "alibi nan": ({"alibi_slopes": np.full(HQ, NAN)}, ValueError, "alibi_slopes: expected finite"),
    "alibi inf": ({"alibi_slopes": np.full(HQ, -INF)}, ValueError, "alibi_slopes: expected finite"),
    "alibi past float32": ({"alibi_slopes": np.full(HQ, 1e300)}, ValueError, "alibi_slopes: expected finite"),
    "sinks shape": ({"sinks": zeros(HKV)}, ValueError, r"sinks: expected shape \(Hq,\) = \(4,\), got \(2,\)"),
    "sinks nan": ({"sinks": np.full(HQ, NAN, np.float32)}, ValueError, "sinks: expected finite"),
    "sinks inf": ({"sinks": np.full(HQ, INF, np.float32)}, ValueError, "sinks: expected finite"),
    "sinks dtype": (
        {"sinks": zeros(HQ, dtype=bool)},
        TypeError,
        "sinks: expected a floating dtype, got bool",
    ),
    "kv_lengths negative": (
        {"kv_lengths": np.array([-1, 2])},
        ValueError,
        "kv_lengths: .*Sk = 7, got -1 to 2",
    ),
    "kv_lengths long": (
        {"kv_lengths": np.array([0, SK + 1])},
        ValueError,
        "kv_lengths: .*Sk = 7, got 0 to 8",
    ),
    "kv_lengths uint64": (
        {"kv_lengths": np.array([0, 2**64 - 1], np.uint64)},
        ValueError,
        "kv_lengths: .*int64",
    ),
    "kv_lengths shape": (
        {"kv_lengths": np.array([1, 2, 3])},
        ValueError,
        r"kv_lengths: .*\(2,\), got \(3,\)",
    ),
    "kv_lengths rank": ({"kv_lengths": np.array([[1, 2]])}, ValueError, r"kv_lengths: .*got \(1, 2\)"),
    "kv_lengths float": (
        {"kv_lengths": np.array([1.0, 2.0])},
        TypeError,
        "kv_lengths: expected integers, .*float64",
    ),
    "kv_lengths bool": (
        {"kv_lengths": np.array([True, False])},
        TypeError,
        "kv_lengths: expected integers, .*bool",
    ),
    "q_offset shape": ({"q_offset": np.array([1])}, ValueError, r"q_offset: .*\(2,\), or an int, got \(1,\)"),
    "q_offset float": ({"q_offset": 1.5}, TypeError, "q_offset: expected an array .*float"),
    "q_offset bool": ({"q_offset": True}, TypeError, "q_offset: expected an integer"),
    "q_offset huge": (
        {"q_offset": 2**31 + 1},
        ValueError,
        r"q_offset: .*2\*\*31 in magnitude, got 2147483649",
    ),
    "q_offset huge array": (
        {"q_offset": np.array([0, -(2**40)])},
        ValueError,
        "q_offset: .*-1099511627776 to 0",
    ),
    "q_offset past int64": ({"q_offset": -(2**70)}, ValueError, "q_offset: "),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        "backend: expected 'auto', 'cpu', 'gpu' or 'reference', got 'cuda'",
    ),
    "backend gpu": (
        {"backend": "gpu"},
        TypeError,
        r"q: backend='gpu' needs arrays on a CUDA device, got one in CPU memory \(numpy\); .*cupy\.asarray",
    ),
    "backend none": ({"backend": None}, ValueError, "backend: .*got None"),
    "threads 0": ({"num_threads": 0}, ValueError, "num_threads: expected an integer from 1 to 1024, got 0"),
    "threads negative": ({"num_threads": -1}, ValueError, "num_threads: .*got -1"),
    "threads too many": ({"num_threads": 10**9}, ValueError, "num_threads: .*got 1000000000"),
    "threads float": ({"num_threads": 2.0}, ValueError, r"num_threads: .*got 2\.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_out_untouched(case):
    wrong, error, message = BAD[case]
    arguments = {**tensors(), **wrong}
    out = np.full((B, HQ, SQ, DV), 42, np.float32)
    with pytest.raises(error, match=message):
        fastattention.attention(**arguments, out=out)
    with pytest.raises(error, match=message):
        fastattention.attention(**arguments)
    assert (out == 42).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (zeros(B, HQ, SQ, D), ValueError, r"out: expected shape \(2, 4, 3, 5\), got \(2, 4, 3, 8\)"),
        (zeros(B, HQ, SQ), ValueError, r"out: expected shape"),
        (zeros(B, HQ, SQ, DV, dtype=np.float64), TypeError, "out: expected dtype float32 .*float64"),
        (zeros(B, HQ, SQ, DV, dtype=">f4"), TypeError, "out: expected dtype float32 .*>f4"),
        (np.broadcast_to(zeros(1), (B, HQ, SQ, DV)), ValueError, "out: the array is read-only"),
        (wide(B, HQ, SQ, DV), ValueError, "out: expected a contiguous last axis"),
        (
            np.lib.stride_tricks.as_strided(zeros(200), (B, HQ, SQ, DV), (240, 0, 20, 4)),
            ValueError,
            "out: elements share memory",
        ),
        (
            np.lib.stride_tricks.as_strided(zeros(200), (B, HQ, SQ, DV), (240, 60, 16, 4)),
            ValueError,
            "out: elements share memory",
        ),
        (zeros(B, HQ, DV, SQ).swapaxes(2, 3), ValueError, "out: expected a contiguous last axis"),
        (zeros(B, HQ, SQ, 2 * DV)[..., ::2], ValueError, "out: expected a contiguous last axis"),
        (zeros(B, HQ, SQ, DV)[..., ::-1], ValueError, "out: expected a contiguous last axis"),
        (
            zeros(4 * B * HQ * SQ * DV + 1, dtype=np.uint8)[1:].view(np.float32).reshape(B, HQ, SQ, DV),
            ValueError,
            "out: expected addresses that are multiples of 4 bytes",
        ),
        ([0.0], TypeError, "out: expected an array .*got list"),
    ],
)
def test_bad_out(out, error, message, backend):
    with pytest.raises(error, match=message):
        fastattention.attention(**tensors(), out=out, backend=backend)


def test_read_only_out():
    out = zeros(B, HQ, SQ, DV)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: the array is read-only"):
        fastattention.attention(**tensors(), out=out)


def test_out_in_place_of_an_input():
    q, k, v, _ = (part[:, :, :SQ] for part in fused())
    for name, out in (("q", q), ("k", k), ("v", v), ("q", q[:, :, ::-1])):
        with pytest.raises(ValueError, match=f"out: shares memory with {name}"):
            fastattention.attention(q, k, v, out=out)


def test_out_over_an_option():
    arguments = tensors()
    memory = np.zeros(B * HQ * SQ * DV, np.float32)
    out = memory.reshape(B, HQ, SQ, DV)
    for name, option in {
        "mask": memory[: SQ * SK].reshape(SQ, SK),
        "alibi_slopes": memory[-HQ:],
        "sinks": memory[:HQ],
        "kv_lengths": memory.view(np.int64)[:B],
        "q_offset": memory.view(np.int64)[:B],
    }.items():
        with pytest.raises(ValueError, match=f"out: shares memory with {name}"):
            fastattention.attention(**arguments, **{name: option}, out=out)


def test_out_over_an_input_that_is_copied_anyway():
    # The last axis of q is strided, so that the kernels would read a copy; the caller's q must not be lost.
    buffer = zeros(B, HQ, SQ, 2 * D)
    with pytest.raises(ValueError, match="out: shares memory with q"):
        fastattention.attention(buffer[..., ::2], buffer[..., :D], buffer[..., :D], out=buffer[..., D:])


def test_out_beside_the_inputs_in_one_buffer():
    q, k, v, out = fused()
    expected = fastattention.attention(q.copy(), k.copy(), v.copy())
    assert fastattention.attention(q, k, v, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_overlap_that_is_too_hard_to_solve_counts_as_overlap(monkeypatch):
    from fastattention import arguments

    # Intertwined within one buffer, and yet without a common byte: finding out takes work.
    memory = np.zeros(4000, np.int8)
    a = np.lib.stride_tricks.as_strided(memory, (5, 6, 7), (32, 8, 16))
    b = np.lib.stride_tricks.as_strided(memory[1:], (5, 6, 7), (33, 48, 90))
    assert not arguments._overlap(a, b)
    monkeypatch.setattr(arguments, "_OVERLAP_WORK", 1)
    assert arguments._overlap(a, b)


VARLEN_BAD = {
    "rank": ({"q": zeros(1, 6, HQ, D)}, ValueError, "q: expected 3 axes"),
    "head dim": ({"k": zeros(9, HKV, D + 1)}, ValueError, "k: expected q's head dimension 8"),
    "v rows": ({"v": zeros(8, HKV, DV)}, ValueError, r"v: expected \(Tk, Hkv\) of k = \(9, 2\)"),
    "group": ({"q": zeros(6, 3, D)}, ValueError, "q: .*must be a multiple"),
    "dtype": ({"k": zeros(9, HKV, D, dtype=np.float16)}, TypeError, "v: expected k's dtype float16"),
    "float64": ({"q": zeros(6, HQ, D, dtype=np.float64)}, TypeError, "q: .*backend='reference'"),
    "cu start": (
        {"cu_seqlens_q": np.array([1, 2, 6])},
        ValueError,
        "cu_seqlens_q: expected to start at 0, got 1",
    ),
    "cu end": (
        {"cu_seqlens_q": np.array([0, 2, 5])},
        ValueError,
        "cu_seqlens_q: expected to end at Tq = 6, got 5",
    ),
    "cu k end": (
        {"cu_seqlens_k": np.array([0, 2, 10])},
        ValueError,
        "cu_seqlens_k: expected to end at Tk = 9",
    ),
    "cu decreasing": (
        {"cu_seqlens_q": np.array([0, 4, 2, 6]), "cu_seqlens_k": np.array([0, 4, 4, 9])},
        ValueError,
        "cu_seqlens_q: expected to never decrease, got 4 then 2",
    ),
    "cu overflowing": (
        {"cu_seqlens_q": np.array([0, INT64_MAX, -INT64_MAX, 6]), "cu_seqlens_k": np.array([0, 4, 4, 9])},
        ValueError,
        "cu_seqlens_q: expected to never decrease",
    ),
    "cu float": ({"cu_seqlens_k": np.array([0.0, 2.0, 9.0])}, TypeError, "cu_seqlens_k: expected integers"),
    "cu list": ({"cu_seqlens_k": [0, 2, 9]}, TypeError, "cu_seqlens_k: expected an array"),
    "cu rank": (
        {"cu_seqlens_q": np.array([[0, 2, 6]])},
        ValueError,
        r"cu_seqlens_q: expected shape \(B \+ 1,\)",
    ),
    "cu empty": ({"cu_seqlens_q": np.array([], int)}, ValueError, "cu_seqlens_q: .*at least one"),
    "cu lengths": (
        {"cu_seqlens_k": np.array([0, 2, 4, 9])},
        ValueError,
        "cu_seqlens_k: expected as many entries",
    ),
    "q_offset": ({"q_offset": np.array([1, 2, 3])}, ValueError, "q_offset: "),
    "alibi": ({"alibi_slopes": zeros(3, HQ)}, ValueError, "alibi_slopes: "),
    "sinks": ({"sinks": np.full(HQ, INF)}, ValueError, "sinks: "),
    "window": ({"window": (-5, 0)}, ValueError, "window left"),
    "causal": ({"causal": 1}, TypeError, "causal"),
    "softcap": ({"softcap": -1}, ValueError, "softcap"),
    "scale": ({"scale": INF}, ValueError, "scale"),
    "threads": ({"num_threads": 0}, ValueError, "num_threads"),
    "backend": ({"backend": "gpu"}, TypeError, "q: backend='gpu' needs arrays on a CUDA device"),
}


@pytest.mark.parametrize("case", VARLEN_BAD)
def test_bad_varlen_input_is_refused_and_out_untouched(case):
    wrong, error, message = VARLEN_BAD[case]
    out = np.full((6, HQ, DV), 42, np.float32)
    with pytest.raises(error, match=message):
        fastattention.attention_varlen(**{**packed(), **wrong}, out=out)
    assert (out == 42).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_varlen_out(backend):
    arguments = packed()
    expected = fastattention.attention_varlen(**arguments, backend=backend)
    out = np.full((6, 2 * HQ, DV), 42, np.float32)[:, ::2]
    assert fastattention.attention_varlen(**arguments, backend=backend, out=out) is out
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="out: shares memory with q"):
        fastattention.attention_varlen(**arguments, out=arguments["q"][..., :DV])
    memory = np.zeros(6 * HQ * DV, np.float32)
    arguments["cu_seqlens_k"] = memory.view(np.int64)[:3]
    arguments["cu_seqlens_k"][:] = [0, 2, 9]
    with pytest.raises(ValueError, match="out: shares memory with cu_seqlens_k"):
        fastattention.attention_varlen(**arguments, out=memory.reshape(6, HQ, DV))
