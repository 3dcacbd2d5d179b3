"""What explain says of a call on a GPU is what the launcher then does."""

from __future__ import annotations

import contextlib
from math import prod
from typing import Any

import numpy as np
import pytest
from fastattention.gpu import launch
from fastattention.gpu.choose import DECODE_ROWS

import fastattention
from fastattention import GpuExplanation, backends, gpu
from fastattention.validate import validate

from ..conftest import Engine
from ..gpu_arrays import DeviceCache, to_device
from . import test_launch
from .test_launch import H200, at

launches = test_launch.launches  # a kernel that takes notes
atom = test_launch.atom


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, launches: Any, atom: dict[str, int]) -> dict[str, int]:
    """A card that is not there; its atom can be set."""
    atom["atom"] = 80
    monkeypatch.setattr(gpu, "card", lambda number=None: H200)
    monkeypatch.setattr(launch, "get_atom", lambda number=None: atom["atom"])
    scope = contextlib.nullcontext
    monkeypatch.setattr(__import__("sys").modules["fastattention.explain"], "scope", scope)
    return atom


def explained(*tensors: Any, **options: Any) -> GpuExplanation:
    plan = fastattention.explain(*tensors, **options)
    assert isinstance(plan, GpuExplanation)
    return plan


SHAPES = {
    "decode": ((1, 32, 1, 128), (1, 8, 65536, 128)),
    "decode of many": ((64, 32, 1, 128), (64, 8, 300, 128)),
    "prefill": ((2, 8, 700, 64), (2, 8, 700, 64)),
    "many sequences": ((70000, 2, 1, 64), (70000, 2, 30, 64)),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("number", [70, 75, 80])
def test_it_is_what_is_launched(number: int, name: str, dtype: Any, card: Any, launches: Any) -> None:
    card["atom"] = number
    q, k = (at(shape, dtype, address=0x7F0000000000 + n * 2**36) for n, shape in enumerate(SHAPES[name]))
    plan = explained(q, k, k, causal=True)
    assert not launches.calls, "explaining launched something"
    problem = validate(
        q, k, k, True, None, None, None, None, None, None, None, None, False, None, "gpu", None
    )  # fmt: skip
    backends.run(problem, "gpu")
    assert plan.atom == number
    assert plan.launches == len(launches.calls) == (2 if name == "many sequences" else 1)
    assert plan.items == sum(prod(grid) for _, grid, *_ in launches.calls)
    configuration, grid, block, arguments, shared = launches.calls[0]
    assert plan.file == configuration.file
    assert plan.kernel == ("prefill" if configuration.entry == "attention" else "decode")
    assert plan.macros == dict(configuration.macros)
    assert (plan.item_rows, plan.key_tile) == (configuration.rows, configuration.step)
    assert plan.warps == block[0] // 32
    assert plan.block_bytes == shared
    assert plan.registers == 128
    assert plan.sms == H200.sms
    assert plan.nbytes == plan.shared_bytes == max((room.memory.size for room in launches.rooms), default=0)
    if plan.kernel == "decode":
        assert plan.key_splits == grid[0]
        assert plan.split_keys == int(arguments[0]["key_split"])


def test_it_prints_as_a_table(card: Any) -> None:
    q, k = at((1, 32, 1, 128), np.float16), at((1, 8, 65536, 128), np.float16)
    plan = explained(q, k, k)
    lines = {line[:16].strip(): line[17:] for line in str(plan).splitlines()}
    assert lines["kernels of"] == "Ampere (the newest for compute capability 9.0) on A card"
    assert lines["kernel"] == "decode (4 query rows of a KV head: bound by reading K and V; tensor cores)"
    assert lines["source"].startswith("05_decode.cu, ALIGNED=1, ATOM=80")
    assert lines["tile"] == f"{plan.item_rows} query rows x {plan.key_tile} keys"
    assert lines["block"].startswith(f"{plan.warps} warps, 128 registers a thread, ")
    assert lines["keys split in"] == f"{plan.key_splits} x {plan.split_keys}"
    assert lines["pieces of work"] == f"{plan.items} blocks for 132 x {plan.resident} at a time"
    many = at((70000, 2, 1, 64), np.float16)
    assert str(explained(many, many, many)).count("at a time in 2 launches") == 1


def test_why(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = at((1, 8, 700, 64)), at((1, 2, 700, 64))
    assert (
        explained(q, k, k).why == "2800 query rows of a KV head: bound by arithmetic; CUDA cores, for float32"
    )
    half = at((1, 8, 700, 64), np.float16)
    assert explained(half, half, half).why == "700 query rows of a KV head: bound by arithmetic; tensor cores"
    one = at((1, 8, 1, 64))
    assert explained(one, k, k).why == "4 query rows of a KV head: bound by reading K and V; CUDA cores"
    monkeypatch.setattr(gpu, "forced_atom", lambda: 70)
    card["atom"] = 70
    plan = explained(half, half, half)
    assert (plan.atom, plan.reason, plan.file) == (70, "asked for by set_gpu_atom", "04_prefetch.cu")


def test_arguments_are_checked(card: Any) -> None:
    q, k = at((1, 8, 7, 64)), at((1, 2, 9, 64))
    with pytest.raises(ValueError, match="k: expected q's head dimension 64"):
        fastattention.explain(q, at((1, 2, 9, 32)), k)
    for backend in ("cpu", "reference"):
        with pytest.raises(TypeError, match=f"q: backend='{backend}' needs arrays in CPU memory"):
            fastattention.explain(q, k, k, backend=backend)


def test_nothing_to_compute(card: Any) -> None:
    q = at((1, 8, 7, 64))
    plan = explained(q, at((1, 8, 0, 64)), at((1, 8, 0, 64)))
    assert (plan.kernel, plan.items, plan.nbytes) == ("none", 0, 0)
    assert "none (no query, or no key)" in str(plan)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_of_a_cache(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from .. import pretended

    if reason := pretended.why_not():
        pytest.skip(reason)
    pretended.pretend(monkeypatch)
    cache = DeviceCache(1, 2, 64, dtype=dtype, max_length=5000, page_size=16)
    q = np.zeros((1, 8, 40, 64), np.float16)
    assert cache.explain(q).kernel == "none"
    k = np.zeros((1, 2, 4000, 64), np.float32)
    cache.append(k, k)
    plan = cache.explain(q[:, :, :1])
    assert (plan.kernel, plan.macros["PAGED"]) == ("decode", "1")
    assert plan.key_splits * plan.split_keys >= 4000
    assert "prefill's kernels do not take pages" in cache.explain(q).why
    with pytest.raises(ValueError, match="q: expected shape"):
        cache.explain(q[..., :4])


@pytest.mark.gpu
@pytest.mark.parametrize("q_len", [1, 100])
def test_on_a_gpu(q_len: int, gpu_engine: Engine) -> None:
    q, k = (to_device(np.zeros((1, 8, n, 64), np.float16)) for n in (q_len, 3000))
    plan = explained(q, k, k, causal=True)
    assert plan.atom == gpu_engine.atom
    assert plan.reason == "asked for by set_gpu_atom"
    assert 0 < plan.registers <= 255
    assert plan.kernel == ("decode" if q_len <= DECODE_ROWS else "prefill")
    cache = DeviceCache(1, 8, 64, dtype="int8", max_length=3000, page_size=64)
    cache.append(k.get(), k.get())
    assert cache.explain(q.get()).file == "05_decode.cu"
