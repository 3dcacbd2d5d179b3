"""The decoder on a device, against the one in CPU memory, on CPU memory that plays a device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastattention.models.device_llama import DeviceLlama
from fastattention.models.device_ops import CudaOps
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama, Session
from fastattention.models.offloaded import OffloadedSession, activation_bytes

from . import host_decoder, tiny_model
from .plain_cache import PlainCache, PlainDevice

CONTEXT = 48
TOKENS = np.random.default_rng(5).integers(0, 256, (3, 40))
# Logits of the tiny model have a spread near 12; the same sums in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def llama(tiny_file: ModelFile) -> Llama:
    return Llama.from_file(tiny_file)


@pytest.fixture(scope="module")
def model(llama: Llama) -> DeviceLlama:
    return DeviceLlama.from_llama(llama, PlainDevice(), np.float32, "tiny")


def cache_for(model: DeviceLlama, batch: int, **options: Any) -> PlainCache:
    c = model.config
    options = {"capacity": CONTEXT, **options}
    return PlainCache(c.layers, batch, c.heads, c.kv_heads, c.head_dim, **options)


def session_of(model: DeviceLlama, batch: int = 1, **options: Any) -> OffloadedSession:
    return OffloadedSession(model, cache_for(model, batch, **options), PlainDevice())


def logits_of(llama: Llama, tokens: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """What `Session` says of each sequence (B, S), taken in steps of `counts`: (B, vocab) after each."""
    sessions = [Session(llama, context=CONTEXT) for _ in tokens]
    said, start = [], 0
    for count in counts:
        rows = [s.forward(row[start : start + count]).copy() for s, row in zip(sessions, tokens, strict=True)]
        said.append(np.stack(rows))
        start += count
    return said


def check(session: OffloadedSession, llama: Llama, counts: list[int], atol: float = TOLERANCE) -> None:
    tokens = TOKENS[: session.batch]
    start = 0
    for count, want in zip(counts, logits_of(llama, tokens, counts), strict=True):
        assert want.std() > 1, "logits near zero would agree with anything"
        got = session.forward(tokens[:, start : start + count])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)
        start += count
        assert session.position == start


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 7, 40, 512])
def test_prefill_and_decode_equal_the_cpu(llama: Llama, model: DeviceLlama, batch: int, chunk: int) -> None:
    check(session_of(model, batch, chunk=min(chunk, CONTEXT)), llama, [17, 1, 1, 5, 1, 15])


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("chunk", [1, 16])
def test_halves_take_turns(llama: Llama, model: DeviceLlama, batch: int, chunk: int) -> None:
    session = session_of(model, batch, chunk=chunk, halves=2)
    assert len(session.cache.parts) == 2
    check(session, llama, [1, 17, 1, 1, 4])


# float16 keeps 11 bits: errors of a few parts in 2^11 of logits whose spread is 12. Measured: 0.03.
def test_float16_weights(llama: Llama) -> None:
    model = DeviceLlama.from_llama(llama, PlainDevice(), np.float16)
    session = session_of(model, 2, chunk=8, halves=2, dtype=np.float16)
    check(session, llama, [17, 1, 1], atol=0.2)
    want = logits_of(llama, TOKENS[:2], [19])[0]
    session = session_of(model, 2, chunk=8, dtype=np.float16)
    assert np.abs(session.forward(TOKENS[:2, :19]) - want).max() > TOLERANCE, "nothing was rounded"


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    large = tiny_model.tensors()["blk.1.ffn_down.weight"]
    large[3, 5] = 7e4
    tiny_model.write(path, add={"blk.1.ffn_down.weight": large})
    llama = Llama.from_file(ModelFile(path))
    with pytest.raises(ValueError, match=r"layer 1 has a weight of 7e\+04, beyond float16"):
        DeviceLlama.from_llama(llama, PlainDevice(), np.float16)
    with pytest.raises(TypeError, match="expected float32 or float16, got float64"):
        DeviceLlama.from_llama(llama, PlainDevice(), np.float64)


def test_output_matrix_and_rope_divisors(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    random = np.random.default_rng(9)
    shape = (len(tiny_model.vocabulary()), tiny_model.HIDDEN)
    head = random.standard_normal(shape).astype(np.float32)
    divisors = np.linspace(1, 3, tiny_model.HEAD_DIM // 2).astype(np.float32)
    tiny_model.write(path, add={"output.weight": head, "rope_freqs.weight": divisors})
    llama = Llama.from_file(ModelFile(path))
    model = DeviceLlama.from_llama(llama, PlainDevice())
    check(session_of(model, chunk=8), llama, [17, 1])
    assert model.weight_bytes == parameters(llama) * 4


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embedding_in_host_memory(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "untied.gguf"
    tiny_model.write(path, add={"output.weight": tiny_model.tensors(1)["token_embd.weight"]})
    llama = Llama.from_file(ModelFile(path))
    there, here = (
        DeviceLlama.from_llama(llama, PlainDevice(), dtype, embedding=where) for where in ("gpu", "host")
    )
    assert type(here.embedding) is np.ndarray
    assert there.weight_bytes - here.weight_bytes == there.embedding.nbytes
    sessions = [session_of(m, 2, chunk=7, halves=2, dtype=dtype) for m in (there, here)]
    for tokens in (TOKENS[:2, :17], TOKENS[:2, 17:18]):
        first, second = (session.forward(tokens) for session in sessions)
        np.testing.assert_array_equal(first, second)
    drawn = [
        DeviceLlama.random(shape_of(), PlainDevice(), dtype, embedding=where) for where in ("gpu", "host")
    ]
    np.testing.assert_array_equal(drawn[0].embedding, drawn[1].embedding)
    np.testing.assert_array_equal(drawn[0].head, drawn[1].head)
    assert (drawn[0].embedding_on_host, drawn[1].embedding_on_host) == (False, True)


def test_embedding_that_is_the_output_matrix_stays_on_the_device(llama: Llama) -> None:
    with pytest.raises(ValueError, match="it is the output matrix, too"):
        DeviceLlama.from_llama(llama, PlainDevice(), embedding="host")
    with pytest.raises(ValueError, match="expected 'gpu' or 'host', got 'disk'"):
        DeviceLlama.random(shape_of(), PlainDevice(), embedding="disk")


def test_rope_of_a_part_of_each_head(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    tiny_model.write(path, change={"llama.rope.dimension_count": 6})
    llama = Llama.from_file(ModelFile(path))
    check(session_of(DeviceLlama.from_llama(llama, PlainDevice()), 2, chunk=8, halves=2), llama, [17, 1, 1])


def parameters(llama: Llama) -> int:
    total = llama.embedding.size + llama.norm.size
    if llama.head is not llama.embedding:
        total += llama.head.size
    for layer in llama.layers:
        total += layer.qkv.size + layer.out.size + layer.gate_up.size + layer.down.size
    return int(total)


def test_weight_bytes(llama: Llama, model: DeviceLlama) -> None:
    assert model.weight_bytes == parameters(llama) * 4
    half = DeviceLlama.from_llama(llama, PlainDevice(), np.float16)
    assert half.weight_bytes == parameters(llama) * 2 + llama.norm.size * 2


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("failure", [ValueError, MemoryError, KeyboardInterrupt])
def test_failures_in_any_layer_leave_the_session_as_it_was(
    llama: Llama, model: DeviceLlama, failure: type[BaseException], halves: int
) -> None:
    for count in (1, 20):  # a token, and chunks of a prompt, of which the second fails
        for layer in range(model.config.layers):
            session = session_of(model, 2, chunk=8, halves=halves)
            session.forward(TOKENS[:2, :10])
            seen: list[int] = []

            def fail(at: int, part: int, layer: int = layer, count: int = count, seen: Any = seen) -> None:
                seen.append(at)
                if (
                    at == layer
                    and part == (halves - 1 if count == 1 else 0)
                    and (seen.count(at) > (1 if count == 20 else halves - 1))
                ):
                    raise failure

            session.cache.fail = fail
            with pytest.raises(failure):
                session.forward(TOKENS[:2, 10 : 10 + count])
            assert len(seen) > layer
            assert session.position == 10
            session.cache.fail = lambda layer, part: None
            got = session.forward(TOKENS[:2, 10:30])
            np.testing.assert_allclose(got, logits_of(llama, TOKENS[:2], [30])[0], rtol=0, atol=TOLERANCE)


def test_progress_counts_and_may_interrupt(llama: Llama, model: DeviceLlama) -> None:
    session = session_of(model, chunk=16)
    done: list[int] = []
    session.forward(TOKENS[:1], done.append)
    assert done == [16, 32, 40]

    def interrupt(done: int) -> None:
        if done == 20:  # the last chunk
            raise KeyboardInterrupt

    session = session_of(model, chunk=16)
    session.forward(TOKENS[:1, :10])
    with pytest.raises(KeyboardInterrupt):
        session.forward(TOKENS[:1, 10:30], interrupt)
    assert session.position == 10
    got = session.forward(TOKENS[:1, 10:30])
    np.testing.assert_allclose(got, logits_of(llama, TOKENS[:1], [30])[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], r"expected integers of shape \(2, S\)"),
        ([1, 2], r"expected integers of shape \(2, S\)"),
        ([[1], [2], [3]], r"got int64 \(3, 1\)"),
        ([[1.0], [2.0]], "got float64"),
        ([[], []], "S at least 1"),
        ([[1], [-1]], "0 <= token < "),
        ([[1], [len(tiny_model.vocabulary())]], "0 <= token < "),
        ([[1] * 40] * 2, "10 [+] 40 tokens do not fit the context of 48"),
    ],
)
def test_bad_tokens_leave_the_session_as_it_was(model: DeviceLlama, tokens: Any, message: str) -> None:
    session = session_of(model, 2)
    session.forward(TOKENS[:2, :10])
    with pytest.raises(ValueError, match=message):
        session.forward(tokens)
    assert session.position == 10


def test_one_sequence_without_its_axis(model: DeviceLlama) -> None:
    session, other = session_of(model), session_of(model)
    got = session.forward(TOKENS[0, :9].tolist())
    assert got.shape == (len(tiny_model.vocabulary()),)
    np.testing.assert_array_equal(got, other.forward(TOKENS[:1, :9])[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("batch", "chunk", "halves"), [(1, 1, 1), (2, 1, 2), (3, 7, 2), (2, 512, 1)])
def test_activation_bytes_are_what_is_taken(
    llama: Llama, dtype: Any, batch: int, chunk: int, halves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DeviceLlama.from_llama(llama, PlainDevice(), dtype)
    cache = cache_for(model, batch, chunk=chunk, halves=halves, dtype=dtype)
    taken: list[int] = []
    empty = np.empty

    def counting(*args: Any, **keywords: Any) -> np.ndarray:
        made = empty(*args, **keywords)
        taken.append(made.nbytes)
        return made

    device = PlainDevice()
    device.xp = SimpleNamespace(empty=counting)  # type: ignore[assignment]
    monkeypatch.setattr("fastattention.models.offloaded.ops_for", lambda xp, dtype: None)
    session = OffloadedSession(model, cache, device)  # type: ignore[arg-type]
    assert sum(taken) == activation_bytes(model.config, batch, chunk, dtype) == session.activation_bytes


def test_close_gives_host_memory_back(model: DeviceLlama) -> None:
    device = PlainDevice()
    with OffloadedSession(model, cache_for(model, 2), device) as session:  # type: ignore[arg-type]
        assert device.host_bytes == 2 * model.config.vocab_size * 4
    assert device.host_bytes == 0
    session.close()
    assert device.host_bytes == 0
    with pytest.raises(RuntimeError, match="closed"):
        session.forward(TOKENS[:2])


class PretendedDevice(PlainDevice):
    """CPU memory for `CudaOps`."""

    xp = SimpleNamespace(  # type: ignore[assignment]
        empty=lambda shape, dtype: host_decoder.on_host(np.empty(shape, dtype))
    )

    def array(self, array: np.ndarray) -> Any:
        return host_decoder.on_host(array.copy())


@pytest.mark.skipif(bool(host_decoder.why_not()), reason=host_decoder.why_not() or "compiled")
@pytest.mark.parametrize(("batch", "halves"), [(1, 1), (3, 2)])
def test_kernels_of_the_gpu(llama: Llama, batch: int, halves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host_decoder.pretend(monkeypatch)
    device: Any = PretendedDevice()
    model = DeviceLlama.from_llama(llama, device)
    session = OffloadedSession(model, cache_for(model, batch, chunk=7, halves=halves), device)  # type: ignore[arg-type]
    assert isinstance(session._ops, CudaOps)
    check(session, llama, [1, 17, 1, 1])


def greedy(session: Any, tokens: list[int], count: int) -> list[int]:
    logits, chosen = session.forward(tokens), []
    for _ in range(count):
        chosen.append(int(logits.argmax()))
        logits = session.forward(chosen[-1:])
    return chosen


def test_smollm2_chooses_the_same_tokens(smollm2_path: Path) -> None:
    llama = Llama.from_file(ModelFile(smollm2_path))
    prompt = np.random.default_rng(1).integers(0, 40000, 30).tolist()
    want = greedy(Session(llama, context=64), prompt, 24)
    assert len(set(want)) > 3, "a constant answer would agree by itself"
    model = DeviceLlama.from_llama(llama, PlainDevice())
    assert greedy(session_of(model, capacity=64, chunk=16), prompt, 24) == want


def shape_of(**changes: Any) -> Any:
    sizes = {
        "name": "small", "layers": 32, "hidden": 64, "feed_forward": 160, "heads": 8, "kv_heads": 2,
        "head_dim": 8, "vocab_size": 300, "tied": False, "context": 128, "rope_base": 10000.0,
        "norm_epsilon": 1e-5, "gated": True,
    }  # fmt: skip
    return SimpleNamespace(**{**sizes, **changes})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_random_weights_keep_activations_of_order_one(
    dtype: Any, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastattention.models.device_llama._PIECE", 1000)
    model = DeviceLlama.random(shape_of(tied=tied), PlainDevice(), dtype, seed=3)
    same = DeviceLlama.random(shape_of(tied=tied), PlainDevice(), dtype, seed=3)
    other = DeviceLlama.random(shape_of(tied=tied), PlainDevice(), dtype, seed=4)
    np.testing.assert_array_equal(model.layers[5].down, same.layers[5].down)
    assert np.any(model.layers[5].down != other.layers[5].down)
    assert np.any(model.layers[5].down != model.layers[6].down)
    assert (model.head is model.embedding) == tied
    session = session_of(model, 2, dtype=dtype, chunk=16)
    logits = session.forward(TOKENS[:2, :30])
    x = session._buffers.x[:28]
    assert 0.5 < x.std() < 3
    assert 0.2 < logits.std() < 5
    np.testing.assert_allclose(np.asarray(model.layers[0].qkv, np.float32).std(), 1 / 8, rtol=0.05)
    gate, up = np.split(np.asarray(model.layers[0].gate_up, np.float32), 2, axis=1)
    np.testing.assert_allclose(gate.std() / up.std(), 0.5, rtol=0.05)


def test_random_weights_need_little_beyond_themselves() -> None:
    device = PlainDevice()
    largest = 0

    def normal(seed: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        nonlocal largest
        made = PlainDevice.normal(device, seed, shape)
        largest = max(largest, made.nbytes)
        return made

    device.normal = normal  # type: ignore[method-assign]
    shape = shape_of(layers=1, hidden=512, feed_forward=20_000, vocab_size=70_000)
    model = DeviceLlama.random(shape, device, np.float16)
    assert max(x.nbytes for x in (model.embedding, model.layers[0].gate_up)) * 2 > 64 * 2**20 >= largest


def test_random_weights_of_a_network_without_a_gate_are_refused() -> None:
    with pytest.raises(ValueError, match="small's feed-forward network has no gate"):
        DeviceLlama.random(shape_of(gated=False), PlainDevice())
