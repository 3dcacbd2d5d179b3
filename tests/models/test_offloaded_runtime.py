"""The decoder on the cooperative cache, whatever lies where: the answers of the one in CPU memory."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastattention import gpu
from fastattention.models.device_llama import DeviceLlama
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama, Session
from fastattention.models.offloaded import OffloadedSession
from fastattention.runtime.cooperative import WAYS, CooperativeCache
from fastattention.runtime.device import open_device
from fastattention.runtime.numpy_device import NumpyDevice

CONTEXT = 48
TOKENS = np.random.default_rng(5).integers(0, 256, (3, 40))
# Logits of the tiny model have a spread near 12; the same sums in another order.
TOLERANCE = 1e-4

_REASON = gpu.why_not()
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(bool(_REASON), reason=f"no CUDA device: {_REASON}")],
)


def device_of(name: str | int) -> Any:
    if name == "cuda":
        return open_device("cuda")
    return NumpyDevice(name if isinstance(name, str) else Random(name))


@pytest.fixture(params=["early", "late", 1, 2, CUDA])
def device(request: pytest.FixtureRequest) -> Any:
    return device_of(request.param)


@pytest.fixture(scope="module")
def llama(tiny_file: ModelFile) -> Llama:
    return Llama.from_file(tiny_file)


@pytest.fixture(scope="module")
def expected(llama: Llama) -> np.ndarray:
    """Logits (B, S, vocab) of the tokens, one sequence at a time in CPU memory."""
    sessions = [Session(llama, context=CONTEXT) for _ in TOKENS]
    return np.array(
        [[s.forward([t]).copy() for t in row.tolist()] for s, row in zip(sessions, TOKENS, strict=True)]
    )


def cache_of(model: DeviceLlama, device: Any, placement: Any, batch: int, **options: Any) -> CooperativeCache:
    config = model.config
    given = {
        "dtype": np.float32, "capacity": CONTEXT, "compute_dtype": model.dtype, "chunk": 7, "slots": 2,
        "slot_tokens": 5, "threads": 1, "share": 0.6,
    } | options  # fmt: skip
    return CooperativeCache(
        placement, batch, config.heads, config.kv_heads, config.head_dim, device=device, **given
    )


def check(session: OffloadedSession, expected: np.ndarray, counts: list[int], atol: float) -> None:
    start = 0
    for count in counts:
        got = session.forward(TOKENS[: session.batch, start : start + count])
        start += count
        np.testing.assert_allclose(got, expected[: session.batch, start - 1], rtol=0, atol=atol)
        assert session.position == start


PLACEMENTS = [*((way,) * 3 for way in WAYS), ("gpu", "host", "gpu"), ("split", "gpu", "upload")]


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_the_same(
    llama: Llama, expected: np.ndarray, device: Any, placement: tuple[str, ...], batch: int
) -> None:
    model = DeviceLlama.from_llama(llama, device)
    cache = cache_of(model, device, placement, batch)
    try:
        with OffloadedSession(model, cache, device) as session:
            check(session, expected, [17, 1, 1, 5, 1], TOLERANCE)
    finally:
        cache.close()


@pytest.mark.parametrize("placement", [("gpu", "host", "gpu"), ("host",) * 3], ids="-".join)
def test_halves_take_turns(
    llama: Llama, expected: np.ndarray, device: Any, placement: tuple[str, ...]
) -> None:
    model = DeviceLlama.from_llama(llama, device)
    cache = cache_of(model, device, placement, 3, halves=2)
    try:
        with OffloadedSession(model, cache, device) as session:
            check(session, expected, [1, 17, 1, 1], TOLERANCE)
    finally:
        cache.close()


# float16 keeps 11 bits: errors of a few parts in 2^11 of logits whose spread is 12. Measured: 0.03.
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_float16_weights(llama: Llama, expected: np.ndarray, device: Any, dtype: str) -> None:
    model = DeviceLlama.from_llama(llama, device, np.float16)
    cache = cache_of(model, device, ("gpu", "host", "split"), 2, dtype=dtype)
    try:
        with OffloadedSession(model, cache, device) as session:
            check(session, expected, [17, 1, 1], 0.2 if dtype == "float16" else 1.4)
    finally:
        cache.close()


@pytest.mark.parametrize("way", WAYS)
def test_failures_leave_the_session_as_it_was(
    llama: Llama, expected: np.ndarray, device: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DeviceLlama.from_llama(llama, device)
    cache = cache_of(model, device, (way,) * 3, 2)
    attend = cache.attend
    try:
        with OffloadedSession(model, cache, device) as session:
            session.forward(TOKENS[:2, :10])
            for count, failing in ((1, 0), (1, 2), (20, 1), (20, 5)):  # of all calls; chunks of 7
                calls = iter(range(100))

                def interrupted(
                    *arguments: Any, failing: int = failing, calls: Any = calls, **named: Any
                ) -> None:
                    attend(*arguments, **named)
                    if next(calls) == failing:
                        raise KeyboardInterrupt

                with monkeypatch.context() as patch:
                    patch.setattr(cache, "attend", interrupted)
                    with pytest.raises(KeyboardInterrupt):
                        session.forward(TOKENS[:2, 10 : 10 + count])
                assert session.position == 10
            got = session.forward(TOKENS[:2, 10:30])
            np.testing.assert_allclose(got, expected[:2, 29], rtol=0, atol=TOLERANCE)
    finally:
        cache.close()


def test_only_the_time_of_the_cpu_is_counted(llama: Llama) -> None:
    device = NumpyDevice()
    model = DeviceLlama.from_llama(llama, device)
    cache = cache_of(model, device, ("gpu", "host", "gpu"), 1)
    session = OffloadedSession(model, cache, device)
    session.forward(TOKENS[0, :9])
    assert session.attention_seconds == 0
    session.forward(TOKENS[0, 9:10])
    assert session.attention_seconds > 0


def greedy(session: Any, tokens: list[int], count: int) -> list[int]:
    logits, chosen = session.forward(tokens), []
    for _ in range(count):
        chosen.append(int(logits.argmax()))
        logits = session.forward(chosen[-1:])
    return chosen


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> tuple[Llama, list[int], list[int]]:
    """The model, a prompt, and the answer of the CPU."""
    llama = Llama.from_file(ModelFile(smollm2_path))
    prompt = np.random.default_rng(1).integers(0, 40000, 30).tolist()
    answer = greedy(Session(llama, context=64), prompt, 24)
    assert len(set(answer)) > 3, "a constant answer would agree by itself"
    return llama, prompt, answer


@pytest.mark.parametrize("where", ["late", CUDA])
@pytest.mark.parametrize("way", [*WAYS, "mixed"])
def test_smollm2_chooses_the_same_tokens(
    smollm2: tuple[Llama, list[int], list[int]], where: str, way: str
) -> None:
    llama, prompt, answer = smollm2
    device = device_of(where)
    model = DeviceLlama.from_llama(llama, device)
    placement = [way] * 30 if way != "mixed" else [WAYS[layer % 4] for layer in range(30)]
    cache = cache_of(model, device, placement, 1, capacity=64, chunk=16, slot_tokens=16)
    try:
        with OffloadedSession(model, cache, device) as session:
            assert greedy(session, prompt, 24) == answer
    finally:
        cache.close()


@pytest.mark.gpu
@pytest.mark.skipif(bool(_REASON), reason=f"no CUDA device: {_REASON}")
def test_decoding_takes_no_more_memory(llama: Llama) -> None:
    import cupy

    device = open_device("cuda")
    model = DeviceLlama.from_llama(llama, device)
    cache = cache_of(model, device, ("gpu", "host", "gpu"), 2)
    try:
        with OffloadedSession(model, cache, device) as session:
            session.forward(TOKENS[:2, :8])
            session.forward(TOKENS[:2, 8:9])
            pool = cupy.get_default_memory_pool()
            used, total = pool.used_bytes(), pool.total_bytes()
            for token in range(9, 40):
                session.forward(TOKENS[:2, token : token + 1])
            assert (pool.used_bytes(), pool.total_bytes()) == (used, total)
    finally:
        cache.close()


@pytest.mark.gpu
@pytest.mark.skipif(bool(_REASON), reason=f"no CUDA device: {_REASON}")
def test_random_weights_of_a_real_size_on_a_gpu() -> None:
    import cupy

    device = open_device("cuda")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    shape = SimpleNamespace(
        name="two layers of Llama-3-8B", layers=2, hidden=4096, feed_forward=14336, heads=32, kv_heads=8,
        head_dim=128, vocab_size=32_000, tied=False, context=8192, rope_base=500000.0, norm_epsilon=1e-5,
        gated=True,
    )  # fmt: skip
    model = DeviceLlama.random(shape, device, np.float16, seed=1)  # type: ignore[arg-type]
    assert pool.total_bytes() - before < model.weight_bytes + 300 * 2**20
    tokens = np.random.default_rng(2).integers(0, 32_000, (2, 20))
    said = []
    for placement, options in ((("gpu",) * 2, {}), (("host",) * 2, {"halves": 2})):
        cache = cache_of(model, device, placement, 2, dtype=np.float16, chunk=16, **options)
        try:
            with OffloadedSession(model, cache, device) as session:
                session.forward(tokens[:, :19])
                said.append(session.forward(tokens[:, 19:]).copy())
        finally:
            cache.close()
    assert np.isfinite(said).all()
    assert 0.2 < said[0].std() < 5
    np.testing.assert_allclose(said[0], said[1], rtol=0, atol=0.05)
