"""What soaking and fuzzing found, one test each, so that it stays mended."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastattention.reference import standard

import fastattention
from fastattention.models import ModelError
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama

from ..tolerances import DTYPES, Problem, tolerances


def test_a_result_may_be_rounded_across_a_power_of_two() -> None:
    """Just below 1/4 a bfloat16 unit is half as large as just above it, where a small error can lead."""
    q, k = (np.zeros((1, 32, 1, 8), DTYPES["bfloat16"]) for _ in range(2))
    v = np.full((1, 32, 1, 1), 0.25, DTYPES["bfloat16"])
    below = np.full((1, 32, 1, 1), 0.25 - 2.0**-26)
    for storage, unit_above in (("bfloat16", 2.0**-9), ("float16", 2.0**-12)):
        allowed, _ = tolerances(Problem(q, k, v), below, np.zeros((1, 32, 1)), storage, "float32")
        assert (allowed > unit_above / 2).all()
        assert (allowed < unit_above * 0.6).all()
        allowed, _ = tolerances(Problem(q, k, v), below - 0.01, np.zeros((1, 32, 1)), storage, "float32")
        assert (allowed < unit_above * 0.3).all()  # where no power of two is near, as before


def small() -> tuple[np.ndarray, ...]:
    return tuple(np.ones((1, 1, 2, 4), np.float32) for _ in range(3))


@pytest.mark.parametrize("value", [np.ones(3), 1, "yes", None], ids=repr)
def test_return_lse_is_a_bool(value: Any) -> None:
    """An array's truth was asked for, and another value's taken."""
    q, k, v = small()
    cache = fastattention.KVCache(1, 1, 4, dtype=np.float32, max_length=4)
    cache.append(k, v)
    starts = np.array([0, 2])
    packed = [x[0].swapaxes(0, 1) for x in (q, k, v)]
    for call in (
        lambda: fastattention.attention(q, k, v, return_lse=value),
        lambda: cache.attend(q, return_lse=value),
        lambda: fastattention.attention_varlen(*packed, starts, starts, return_lse=value),
    ):
        with pytest.raises(TypeError, match="return_lse: expected True or False"):
            call()
    assert len(fastattention.attention(q, k, v, return_lse=np.bool_(True))) == 2


@pytest.mark.parametrize("value", [np.ones((1, 2, 2)), np.array([]), np.array("cpu"), ["cpu"]], ids=repr)
def test_backend_is_a_string(value: Any) -> None:
    """An array was compared with the names, element by element."""
    with pytest.raises(ValueError, match="backend: expected 'auto', 'cpu', 'gpu' or 'reference'"):
        fastattention.attention(*small(), backend=value)


@pytest.mark.parametrize("name", ["mask", "sinks", "alibi_slopes"])
def test_a_shape_is_refused_before_a_copy(name: str) -> None:
    """A copy in float32 was asked for first, of a shape that NumPy can count in float16 alone."""
    q, k, v = (x[:, :0] for x in small())
    endless = np.broadcast_to(np.zeros((1, 1, 1, 1), np.float16), (4, 0, 4, 2**57))
    with pytest.raises(ValueError, match=f"{name}: "):
        fastattention.attention(q, k, v, **{name: endless})


@pytest.mark.parametrize("sizes", [(0, 2**55, 40), (1, 2**56, 0), (2**40, 0, 2**19)])
def test_an_empty_result_of_endless_sizes_is_refused(sizes: tuple[int, int, int]) -> None:
    """NumPy multiplies the axes that are not empty, and its error named no argument."""
    batch, heads, q_len = sizes
    q = np.broadcast_to(np.float32(1), (batch, heads, q_len, 1))
    kv = np.broadcast_to(np.float32(1), (batch, min(heads, 1), 17, 2))
    with pytest.raises(ValueError, match=r"q, k: sizes B = .* multiply to more than int64 holds"):
        fastattention.attention(q, kv[..., :1], kv, return_lse=True)


def test_scores_may_be_lost_where_float32_holds_no_more() -> None:
    """Scores in the billions, whose last bit is more than what keys differ by: any weights are right."""
    q, k, v = small()
    k[..., 1, :] = 5.5
    v[..., 1, :] = 0
    options = {"q_offset": 2**31, "alibi_slopes": np.array([-0.75], np.float32)}
    problem = Problem(q, k, v, options)
    out, lse = standard.attention(q, k, v, **options)
    allowed, allowed_lse = tolerances(problem, out, lse, "float32", "float32")
    got, got_lse = fastattention.attention(q, k, v, **options, return_lse=True)
    assert (np.abs(got - out) <= allowed).all()
    assert (np.abs(got_lse - lse) <= allowed_lse).all()
    near, _ = tolerances(Problem(q, k, v, options | {"q_offset": 2}), out, lse, "float32", "float32")
    assert (near < 1e-5).all()


class Refuses:
    """An object that cannot be a number, and says so in its own way."""

    def __index__(self) -> int:
        raise RuntimeError("no index")


def test_an_object_that_fails_to_be_an_integer_is_none() -> None:
    """What its conversion raised came out of the call, and named no argument."""
    with pytest.raises(ValueError, match="num_threads: expected an integer"):
        fastattention.attention(*small(), num_threads=Refuses())
    with pytest.raises(TypeError, match="window left: expected an integer or None, got Refuses"):
        fastattention.attention(*small(), window=(Refuses(), 1))
    with pytest.raises(TypeError, match="max_length: expected an integer, got Refuses"):
        fastattention.KVCache(1, 1, 4, dtype=np.float32, max_length=Refuses())


@pytest.mark.parametrize(
    "parts", [None, 3.0, np.zeros((2, 2)), np.broadcast_to(0.0, (2**50,))], ids=lambda x: str(np.shape(x))
)
def test_parts_are_pairs(parts: Any) -> None:
    """The error named no argument; and an array was made a list of all its rows first."""
    with pytest.raises(TypeError, match=r"parts: expected pairs \(out, lse\), got"):
        fastattention.merge(parts)


def gguf_file(*values: bytes) -> bytes:
    """Return a file of one value without tensors."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + b"".join(values)


@pytest.mark.models
@pytest.mark.parametrize("kind", [0, 4, 7, 8, 9])
def test_an_array_longer_than_the_file_is_refused_at_once(kind: int, tmp_path: Path) -> None:
    """Past the end of a file each element was an empty one, and 2^40 of them were read."""
    pytest.importorskip("gguf", reason="the extra `models` is not installed")
    path = tmp_path / "long.gguf"
    path.write_bytes(gguf_file(struct.pack("<IIQ", 9, kind, 2**40), bytes(40)))
    with pytest.raises(ModelError, match="broken or truncated GGUF file"):
        ModelFile(path)


@pytest.mark.models
def test_arrays_of_arrays_of_arrays_are_refused(tmp_path: Path) -> None:
    """Two thousand levels of them were a RecursionError, or read where Python allows as many."""
    pytest.importorskip("gguf", reason="the extra `models` is not installed")
    path = tmp_path / "deep.gguf"
    for levels in (16, 2000):
        path.write_bytes(gguf_file(struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * levels, bytes(12)))
        with pytest.raises(ModelError, match=r"GGUF file \(arrays within arrays, more than 16"):
            ModelFile(path)
    path.write_bytes(gguf_file(struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 13, bytes(100)))
    ModelFile(path)


@pytest.mark.models
def test_an_offset_that_wraps_around_is_refused(tmp_path: Path) -> None:
    """Beyond 2^64 there was a warning, and the file's first bytes were taken for the tensor."""
    pytest.importorskip("gguf", reason="the extra `models` is not installed")
    path = tmp_path / "wrapped.gguf"
    tensor = struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 1, 0, 2**64 - 64)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor + bytes(100))
    with pytest.raises(ModelError, match=r"broken or truncated GGUF file \(overflow"):
        ModelFile(path)


@pytest.mark.models
def test_gains_that_overflow_are_damage(tmp_path: Path) -> None:
    """Each finite by itself, and infinite when a layer's gains are multiplied into its weights."""
    pytest.importorskip("gguf", reason="the extra `models` is not installed")
    from ..models import tiny_model

    path = tmp_path / "large.gguf"
    gain = np.full(tiny_model.HIDDEN, 3e38, np.float32)
    gain[1::2] *= -1
    matrix = np.full((tiny_model.HEADS * tiny_model.HEAD_DIM, tiny_model.HIDDEN), 2.0, np.float32)
    tiny_model.write(path, add={"blk.1.attn_norm.weight": gain, "blk.1.attn_q.weight": matrix})
    with pytest.raises(ModelError, match="layer 1: gains times weights overflow float32"):
        Llama.from_file(ModelFile(path))


def test_merge_says_nothing_of_numbers_without_weight() -> None:
    """An infinity beside a weight that had come to 0 gave a warning, and the right result."""
    left = np.full((1, 1, 1, 4), np.inf, np.float32), np.full((1, 1, 1), -1e30, np.float32)
    right = np.full((1, 1, 1, 4), 3, np.float32), np.zeros((1, 1, 1), np.float32)
    out, _ = fastattention.merge([left, right])  # warnings are errors in these tests
    assert (out == 3).all()
    assert np.isnan(fastattention.merge([(left[0], right[1]), (-left[0], right[1])])[0]).all()


def test_merge_names_the_part_that_is_too_large_to_count() -> None:
    """Strides of 0 make a float16 array of less than 2^63 bytes, which float32 would need more than."""
    out = np.lib.stride_tricks.as_strided(np.zeros(1, np.float16), (8, 2**58), (0, 0))
    lse = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (8,), (0,))
    with pytest.raises(ValueError, match=r"parts\[0\] out: sizes \(8, 288230376151711744\) multiply to more"):
        fastattention.merge([(out, lse)])


@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_says_nothing_of_what_float32_cannot_hold(packed: bool) -> None:
    """Its lse came with a warning, where the kernels' is infinite."""
    q, k, v = small()
    q[..., 0, :], k[...] = 1e30, 1e30
    options: dict[str, Any] = {"return_lse": True, "backend": "reference"}
    if packed:
        starts = np.array([0, 2])
        rows = [x[0].swapaxes(0, 1) for x in (q, k, v)]
        _, lse = fastattention.attention_varlen(*rows, starts, starts, **options)
        lse = lse.swapaxes(0, 1)[None]
    else:
        _, lse = fastattention.attention(q, k, v, **options)
    assert lse[0, 0, 0] == np.inf
    assert np.isfinite(lse[0, 0, 1])
