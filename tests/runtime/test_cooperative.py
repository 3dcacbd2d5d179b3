"""Whatever lies where, attention is the same: the cooperative cache against one that is all on the device."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fastattention.reference import quantize, standard

from fastattention import gpu
from fastattention.offload import ModelShape, hardware, plan_offload
from fastattention.runtime import numpy_device
from fastattention.runtime.cooperative import WAYS, CooperativeCache
from fastattention.runtime.device import open_device
from fastattention.runtime.numpy_device import NumpyDevice

Q_HEADS, KV_HEADS, DIM = 4, 2, 40
SMALL = ModelShape("small", 3, 64, 96, Q_HEADS, KV_HEADS, DIM, 100)
MACHINE = hardware("v100-16gb")

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}

#: Of outputs near 1: rounding of the cache is the same on both sides, that of parts and results is not.
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def _devices() -> list[Any]:
    reason = gpu.why_not()
    marks = [pytest.mark.gpu, *([pytest.mark.skip(reason=f"no CUDA device: {reason}")] if reason else [])]
    return [*("early", "late", 1, 2, 3, 4), pytest.param("cuda", marks=marks)]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> Any:
    if request.param == "cuda":
        return open_device("cuda")
    return NumpyDevice(request.param if isinstance(request.param, str) else Random(request.param))


def make(device: Any, placement: Any, **options: Any) -> CooperativeCache:
    given = {
        "batch": 2, "q_heads": Q_HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "dtype": np.float32,
        "capacity": 64, "compute_dtype": np.float32, "chunk": 7, "slots": 2, "slot_tokens": 5, "threads": 1,
    } | options  # fmt: skip
    names = ("batch", "q_heads", "kv_heads", "head_dim")
    return CooperativeCache(placement, *(given.pop(name) for name in names), device=device, **given)


def rows(seed: int, layers: int, batch: int, count: int, dtype: Any, heads: int = 2 * KV_HEADS) -> np.ndarray:
    shape = layers, batch, count, Q_HEADS + heads, DIM
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def take(cache: CooperativeCache, device: Any, qkv: np.ndarray) -> np.ndarray:
    """One step: (L, B, S, Hq + 2 Hkv, D) to (L, B, S, Hq, D)."""
    layers, batch, count = qkv.shape[:3]
    parts = cache.parts if count == 1 else [cache.whole]
    there = [device.array(layer) for layer in qkv]
    outs = [device.array(np.full((batch, count, Q_HEADS, DIM), np.nan, qkv.dtype)) for _ in range(layers)]
    results = [device.xp.empty_like(out) for out in outs]
    device.wait()
    with cache.step(count):
        for layer, (part, own) in itertools.product(range(layers), enumerate(parts)):
            with cache.stream(part):
                out = outs[layer][own]
                cache.attend(layer, there[layer][own], out, part)
                results[layer][own] = out  # as the decoder uses it: on this stream, at once
                out.fill(np.nan)
    return np.stack([device.host(result) for result in results]).astype(np.float64)


def run(device: Any, placement: Any, counts: list[int], **options: Any) -> list[np.ndarray]:
    """Steps of `counts` tokens through a new cache."""
    cache = make(device, placement, **options)
    try:
        batch, dtype = options.get("batch", 2), options.get("compute_dtype", np.float32)
        results = [
            take(cache, device, rows(n, len(placement), batch, count, dtype))
            for n, count in enumerate(counts)
        ]
        assert cache.length == sum(counts)
    finally:
        cache.close()
    return results


def expected(counts: list[int], layers: int, batch: int, dtype: str, compute: Any) -> list[np.ndarray]:
    """The same by the specification."""
    results = []
    held: list[np.ndarray] = []
    for n, count in enumerate(counts):
        new = rows(n, layers, batch, count, compute)
        held.append(new)
        both = np.concatenate(held, axis=2)[..., Q_HEADS:, :].swapaxes(2, 3)  # (L, B, heads, S, D)
        if dtype == "int8":
            both = quantize.dequantize(*quantize.quantize(both.astype(np.float64)))
        else:
            both = both.astype(DTYPES[dtype]).astype(np.float64)
        outs = []
        for layer in range(layers):
            q = new[layer, :, :, :Q_HEADS].swapaxes(1, 2).astype(np.float64)
            out, _ = standard.attention(q, both[layer, :, :KV_HEADS], both[layer, :, KV_HEADS:], causal=True)
            outs.append(out.swapaxes(1, 2))
        results.append(np.stack(outs))
    return results


def close(got: list[np.ndarray], want: list[np.ndarray], tolerance: float) -> None:
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance, err_msg=f"step {step}")


PLACEMENTS = [
    *((way,) * 3 for way in WAYS),
    ("gpu", "split", "host"), ("upload", "host", "split"), ("split", "gpu", "upload"),
]  # fmt: skip


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_every_placement(device, placement, share):
    counts = [7, 7, 3, 1, 1, 1, 6, 1, 1]
    got = run(device, placement, counts, share=share)
    close(got, expected(counts, 3, 2, "float32", np.float32), TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("dtype", "compute"),
    [
        ("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16"), ("int8", "float16"),
        ("int8", "float32"),
    ],
)  # fmt: skip
def test_every_dtype(device, dtype, compute):
    if compute == "bfloat16" and device.name != "numpy" and gpu.get_atom() < 80:
        pytest.skip("this GPU has no bfloat16")
    counts = [5, 7, 1, 1]
    options = {"dtype": DTYPES[dtype], "compute_dtype": DTYPES[compute], "share": 0.5}
    tolerance = TOLERANCE[compute] * (1 if dtype != "int8" else 2)
    want = expected(counts, 4, 2, dtype, DTYPES[compute])
    close(run(device, WAYS, counts, **options), want, tolerance)


@pytest.mark.parametrize(
    ("slots", "slot_tokens", "chunk"), [(1, 5, 7), (2, 1, 7), (3, 64, 64), (1, 13, 4), (5, 3, 7)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_size_of_the_ring(device, slots, slot_tokens, chunk, batch):
    counts = [min(7, chunk), min(6, chunk), 1, 1, 1, 2, 1]
    options = {"slots": slots, "slot_tokens": slot_tokens, "chunk": chunk, "batch": batch, "share": 0.3}
    got = run(device, ("split", "upload", "host", "split"), counts, **options)
    close(got, expected(counts, 4, batch, "float32", np.float32), TOLERANCE["float32"])


@pytest.mark.parametrize("batch", [2, 3])
def test_halves_take_turns(device, batch):
    counts = [7, 1, 1, 5, 1]
    got = run(device, ("host", "gpu", "host"), counts, batch=batch, halves=2)
    close(got, expected(counts, 3, batch, "float32", np.float32), TOLERANCE["float32"])


def test_decoding_from_nothing(device):
    """The first token finds an empty cache."""
    for placement in (*(("gpu", way) for way in WAYS), ("host", "host")):
        got = run(device, placement, [1, 1, 1])
        close(got, expected([1, 1, 1], 2, 2, "float32", np.float32), TOLERANCE["float32"])


def test_tokens_are_forgotten(device):
    """After `truncate`, other tokens take the place of those forgotten."""
    cache = make(device, ("gpu", "host", "split", "upload"), share=0.5)
    want = expected([5, 1, 1], 4, 2, "float32", np.float32)
    first, second, third = (rows(n, 4, 2, count, np.float32) for n, count in enumerate([5, 1, 1]))
    take(cache, device, first)
    assert all(
        layer.planes[0][:, :, :5].all() for layer in cache._layers[1:]
    )  # all that a step does is done when it ends
    take(cache, device, rows(90, 4, 2, 6, np.float32))
    take(cache, device, rows(91, 4, 2, 1, np.float32))
    cache.truncate(5)
    assert cache.length == 5
    close([take(cache, device, second), take(cache, device, third)], want[1:], TOLERANCE["float32"])
    with pytest.raises(ValueError, match="length: expected at least 0"):
        cache.truncate(-1)
    cache.close()


def test_what_is_queued_for_the_cpu_is_let_go(monkeypatch):
    """A step that is broken off does not keep the CPU at work."""
    device = NumpyDevice("late")
    cache = make(device, ("host", "host"))
    take(cache, device, rows(0, 2, 2, 5, np.float32))
    out = device.array(np.zeros((2, 1, Q_HEADS, DIM), np.float32))
    with pytest.raises(Interrupted), cache.step():  # noqa: PT012
        cache.attend(0, device.array(rows(9, 1, 2, 1, np.float32)[0]), out)
        raise Interrupted
    assert not cache._layers[0].planes[0][:, :, 5].any()
    assert cache._layers[0].planes[0][:, :, 4].all()
    cache.close()


class Interrupted(BaseException):
    """As KeyboardInterrupt, but nobody else's."""


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_step_that_fails_leaves_nothing(device, stop):
    cache = make(device, ("gpu", "host", "split", "upload"), share=0.5)
    take(cache, device, rows(0, 4, 2, 5, np.float32))
    for count in (1, 6):
        lost = rows(50, 4, 2, count, np.float32)
        out = device.array(np.zeros((2, count, Q_HEADS, DIM), np.float32))
        with pytest.raises(Interrupted), cache.step(count), cache.stream():  # noqa: PT012
            for layer in range(stop):
                cache.attend(layer, device.array(lost[layer]), out)
            raise Interrupted
        if device.name == "numpy":
            assert not any(stream.queue for stream in device._streams)  # nothing comes afterwards
        assert cache.length == 5
    assert cache.length == 5
    later = [take(cache, device, rows(n, 4, 2, 1, np.float32)) for n in (1, 2)]
    close(later, expected([5, 1, 1], 4, 2, "float32", np.float32)[1:], TOLERANCE["float32"])
    cache.close()


def test_a_fault_of_the_cpu_reaches_the_caller(device, monkeypatch):
    cache = make(device, ("gpu", "host", "split"), share=0.5)
    take(cache, device, rows(0, 3, 2, 5, np.float32))
    step = cache._layers[1].steps[0]
    with monkeypatch.context() as patch:

        def check() -> None:
            raise MemoryError("no workspace")

        patch.setattr(cache._layers[1], "steps", [Failing(step, check)])
        with pytest.raises(MemoryError, match="no workspace"):
            take(cache, device, rows(60, 3, 2, 1, np.float32))
    assert cache.length == 5
    later = take(cache, device, rows(1, 3, 2, 1, np.float32))
    close([later], expected([5, 1], 3, 2, "float32", np.float32)[1:], TOLERANCE["float32"])
    cache.close()


class Failing:
    """A step of the CPU's that is done and says that it failed."""

    def __init__(self, step: Any, check: Any) -> None:
        self._step, self.check = step, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)


def test_what_is_out_of_turn(device):
    cache = make(device, ("gpu", "host"))
    qkv = device.array(rows(0, 1, 2, 1, np.float32)[0])
    out = device.array(np.zeros((2, 1, Q_HEADS, DIM), np.float32))
    with pytest.raises(RuntimeError, match="out of turn"):
        cache.attend(0, qkv, out)
    with pytest.raises(RuntimeError, match="layer 1, part 0 is out of turn"), cache.step():
        cache.attend(1, qkv, out)
    with pytest.raises(RuntimeError, match="attend was called 1 times, not 2"), cache.step():
        cache.attend(0, qkv, out)
    with pytest.raises(RuntimeError, match="one is under way"), cache.step(), cache.step():
        pass
    with pytest.raises(ValueError, match=r"qkv: expected float32 \(2, 1, 8, 40\)"), cache.step():
        cache.attend(0, qkv[:1], out)
    assert cache.length == 0
    cache.close()
    with pytest.raises(RuntimeError, match="the cache is closed"), cache.step():
        pass


def test_no_more_than_there_is_room_for(device):
    cache = make(device, ("gpu", "host"), capacity=9)
    take(cache, device, rows(0, 2, 2, 7, np.float32))
    too_many = r"count: 7 \+ 3 tokens are more than the capacity of 9"
    with pytest.raises(ValueError, match=too_many), cache.step(3):
        pass
    with pytest.raises(ValueError, match="count: expected 1 to chunk, 7, got 8"), cache.step(8):
        pass
    take(cache, device, rows(1, 2, 2, 2, np.float32))
    with pytest.raises(ValueError, match="capacity of 9"), cache.step():
        pass
    assert cache.length == 9
    cache.close()


def test_the_same_numbers_wherever_they_lie(device):
    """`fill_random` gives a cache the same contents whatever its placement, chunk and ring."""
    results = []
    for placement, options in (
        (("gpu",) * 3, {}), (WAYS[1:], {"chunk": 3, "share": 0.4}),
        (("host",) * 3, {"halves": 2, "slot_tokens": 9}),
    ):  # fmt: skip
        cache = make(device, placement, **options)
        cache.fill_random(50, seed=3)
        assert cache.length == 50
        results.append(take(cache, device, rows(0, 3, 2, 1, np.float32)))
        with pytest.raises(ValueError, match="length: expected 0 to 64, got 65"):
            cache.fill_random(65)
        cache.close()
    close(results[1:], [results[0]] * 2, TOLERANCE["float32"])
    assert np.abs(results[0][0] - results[0][1]).max() > 0.1  # layers differ


def test_host_memory_is_given_back():
    device = NumpyDevice()
    cache = make(device, ("host", "split", "gpu"))
    assert device.host_bytes > 2 * 2 * 2 * KV_HEADS * 64 * DIM * 4
    cache.close()
    cache.close()
    assert device.host_bytes == 0
    assert not device._streams

    class Full(NumpyDevice):
        left = 5

        def host_array(self, *args: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise MemoryError("no room")
            return super().host_array(*args)

    for left in range(6):
        device = Full()
        device.left = left
        with pytest.raises(MemoryError, match="no room"):
            make(device, ("host", "split", "gpu"))
        assert device.host_bytes == 0
        assert not device._streams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": ("gpu", "disk")}, "placement: expected one of"),
        ({"placement": ()}, "placement: expected one of"),
        ({"head_dim": 257}, "head_dim: expected 1 to 256, got 257"),
        ({"batch": 0}, "batch: expected a whole number of at least 1, got 0"),
        ({"q_heads": 3}, "q_heads: expected a multiple of kv_heads, 2, got 3"),
        ({"capacity": 2.5}, "capacity: expected a whole number"),
        ({"share": 1.5}, "share: expected 0 to 1, got 1.5"),
        ({"halves": 3}, "halves: expected 1 or 2, got 3"),
        ({"halves": 2, "placement": ("split",)}, "halves: 2 needs a batch of at least 2, and layers"),
        ({"halves": 2, "batch": 1}, "halves: 2 needs a batch of at least 2"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"slots": 0}, "slots: expected a whole number of at least 1"),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        make(NumpyDevice(), options.pop("placement", ("gpu", "host")), **options)


def test_dtypes_that_do_not_fit():
    message = r"compute_dtype: expected float32 or float16 \(the cache's\), got bfloat16"
    with pytest.raises(TypeError, match=message):
        make(NumpyDevice(), ("gpu",), dtype=np.float16, compute_dtype="bfloat16")


def test_what_moved_is_counted():
    """As ``reference.offload`` has it."""
    device = NumpyDevice()
    cache = make(device, ("host", "split", "upload"), share=0.75, dtype=np.float16, compute_dtype=np.float16)
    cache.fill_random(40)
    take(cache, device, rows(0, 3, 2, 1, np.float16))
    numbers = cache.statistics()
    row = 2 * KV_HEADS * DIM * 2  # of one sequence
    assert numbers["steps"] == 1
    assert numbers["cpu_bytes"] == 2 * row * (41 + 31)
    lse = 2 * Q_HEADS * 4
    out = 2 * Q_HEADS * DIM * 2
    assert numbers["up_bytes"] == 2 * row * (10 + 40) + out + (out + lse)
    assert numbers["down_bytes"] == 2 * (out + 2 * row) + 2 * row
    assert 0 < numbers["cpu_seconds"] < numbers["seconds"]
    cache.close()


def test_a_plan_becomes_a_cache():
    plan = plan_offload(
        SMALL, MACHINE, context=60, batch=2, way="split", gpu_layers=1, share=0.5, chunk=7, slot_tokens=9,
    )  # fmt: skip
    cache = CooperativeCache.from_plan(plan, NumpyDevice("late"))
    assert plan.placement == ("gpu", "split", "split")
    cache.fill_random(50)
    device = cache._device
    shape = 3, 2, 1, Q_HEADS + 2 * KV_HEADS, DIM
    got = take(cache, device, np.random.default_rng(0).standard_normal(shape).astype(np.float16))
    assert np.isfinite(got).all()
    cache.close()


def test_a_plan_for_another_machine_is_refused(monkeypatch):
    """Before anything is taken."""
    plan = plan_offload(SMALL, MACHINE, context=10**6, gpu_layers=1)
    device = NumpyDevice(bytes_free=10**6)
    with pytest.raises(ValueError, match=r"plan: it was made for v100-16gb \(17.2 GB\), and takes .* beside"):
        CooperativeCache.from_plan(plan, device)
    monkeypatch.setattr(numpy_device, "available_bytes", lambda: 10**6)
    with pytest.raises(ValueError, match=r"takes .* GB of host memory; 0.00 GB are available"):
        CooperativeCache.from_plan(plan, NumpyDevice())
    assert device.host_bytes == 0
    assert not device._streams
