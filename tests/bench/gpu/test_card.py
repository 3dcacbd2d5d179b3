"""The whole way of a row on a device of NumPy: arrays, checks, calls, graphs, PyTorch's CPU kernels."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fastattention.gpu import rates
from fastattention.gpu.compile import Compiled

from fastattention import gpu, reference
from fastattention.bench.gpu import check, clock, contenders, data, pytorch
from fastattention.bench.gpu.card import GpuDevice
from fastattention.bench.gpu.cases import GpuCase
from fastattention.bench.gpu.measure import WrongOutputError, measure_case

from .numpy_cupy import Array, Clock, Stream, make

PREFILL = GpuCase("prefill", "float16", 2, 2, 64, 64, 32, batch=2)
DECODE = GpuCase("decode", "float16", 4, 2, 1, 128, 32, batch=2)
CASES = [
    *(replace(PREFILL, dtype=dtype, causal=causal)
      for dtype in ("float16", "bfloat16", "float32") for causal in (False, True)),
    *(replace(DECODE, dtype=dtype, page_size=size)
      for dtype in ("float16", "int8", "bfloat16") for size in (None, 16)),
]  # fmt: skip


def probes(clock: Clock, name: str, macros: tuple[tuple[str, str], ...]) -> Any:
    """What the probes compute, each step in a microsecond."""

    def normal(grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
        out, count, seed = arguments
        assert out.size == count
        numbers = np.random.default_rng(int(seed)).standard_normal(out.size).astype(np.float32)
        kind = int(dict(macros)["TYPE"])
        halves = {1: np.float16, 2: ml_dtypes.bfloat16}
        out[:] = numbers if kind == 0 else numbers.astype(halves[kind]).view(np.uint16)

    def tensor_rate(grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
        _, sums, steps = arguments
        settings = dict(macros)
        _, wanted, _ = rates.operands(int(settings["ATOM"]), settings["BFLOAT"] == "1")
        sums.reshape(-1, 32)[:] = wanted * int(steps)
        clock.now += 1e-6 * int(steps)

    def fma_rate(grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
        factor, addend, sums, steps = arguments
        x = np.arange(16, dtype=np.float32)
        for _ in range(min(int(steps), rates.CHECK_STEPS)):
            x = x * factor + addend
        sums[:] = x.sum()
        clock.now += 1e-6 * int(steps)

    return {"normal": normal, "tensor_rate": tensor_rate, "fma_rate": fma_rate}[name]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `GpuDevice` over NumPy; each of our calls takes 100 microseconds. `wrong` spoils their outputs."""
    ticks = Clock()
    cupy = make(ticks)
    state = types.SimpleNamespace(clock=ticks, wrong=False, cupy=cupy, card=None)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    rates_card = gpu.device._card
    rates_card.cache_clear()
    monkeypatch.setattr(
        rates, "compiled_probe", lambda name, macros, card: Compiled(probes(ticks, name, macros), 64)
    )
    monkeypatch.setattr(rates, "COPY_BYTES", 2**12)
    monkeypatch.setattr(data, "_LEAST_PASSED", 100_000)

    def compute(q: Any, k: Any, v: Any, out: Any, causal: bool) -> None:
        def run() -> None:
            right, _ = reference.attention(*(np.asarray(x) for x in (q, k, v)), causal=causal)
            out[...] = np.nan if state.wrong else right.astype(out.dtype)
            ticks.now += 1e-4

        Stream.current.queue(run)

    def attention(q: Any, k: Any, v: Any, *, causal: bool, out: Any, backend: str) -> None:
        assert backend == "gpu"
        compute(q, k, v, out, causal)

    def launched(q: Any, k: Any, v: Any, out: Any, **options: Any) -> None:
        table = options.get("block_table")
        rows = []
        for x, scales in ((k, options.get("k_scales")), (v, options.get("v_scales"))):
            wide = np.asarray(x).astype(np.float64)
            wide = wide if scales is None else wide * np.asarray(scales)[..., None]
            if table is not None:
                wide = np.stack([np.concatenate([wide[p] for p in own], axis=1) for own in np.asarray(table)])
                assert options["kv_lengths"].tolist() == [options["max_seqlen_k"]] * len(table)
            rows.append(wide)
        compute(q, *rows, out, options["window_right"] == 0)

    monkeypatch.setattr(contenders, "attention", attention)
    monkeypatch.setattr(gpu, "attention", launched)
    state.card = GpuDevice(with_pytorch=False)
    yield state
    gpu.set_atom(None)
    rates_card.cache_clear()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_from_arrays_to_times(case: GpuCase, device: Any) -> None:
    row = measure_case(case, device.card, 2)
    assert row.ours
    for name in row.ours:
        who = row.contenders[name]
        assert who.error is not None
        assert who.error < check.tolerance(case)
        assert who.not_captured == ""
        assert who.graph == pytest.approx([1e-4, 1e-4])
        assert who.launches == pytest.approx([1e-4, 1e-4])
    assert gpu.forced_atom() is None, "what was forced is free again"
    assert (row.caches > 1) == (case.kind == "decode")


@pytest.mark.parametrize("case", [PREFILL, CASES[-1]], ids=lambda case: case.name)
def test_a_row_that_is_wrong_stops(case: GpuCase, device: Any) -> None:
    device.wrong = True
    with pytest.raises(WrongOutputError, match="error nan"):
        measure_case(case, device.card, 2)


def test_what_is_compiled_is_what_runs(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = set()
    monkeypatch.setattr(gpu, "compiled", lambda configuration, card: made.add(configuration))
    monkeypatch.setattr(device.cupy.cuda, "Device", lambda number: contextlib.nullcontext(), raising=False)
    assert device.card.compile(CASES)["kernels"] == len(made)
    for case in CASES:
        arrays = data.make_data(case, device.card.card, 1024)
        cache = arrays.caches[0]
        for atom in contenders.atoms_of(case, (9, 0)):
            options = {"scale": case.head_dim**-0.5, "block_table": cache.block_table}
            assert gpu.configuration_of(atom, arrays.q, cache.k, cache.v, **options) in made, (
                case.name,
                atom,
            )


def test_limits_are_checked_and_measured(device: Any) -> None:
    card = device.card
    assert card.limit_names() == [*rates.LIMITS, "copy"]
    blocks = 2 * 4  # SMs, CTAs on each
    wanted = 1e-12 * rates.LIMITS["m16n8k16"].flops * blocks * 8 / 1e-6
    assert card.probe("m16n8k16") == pytest.approx(wanted)
    assert card.probe("float32 FMA") == pytest.approx(1e-12 * 32 * 16 * 2 * blocks * 8 / 1e-6)


def test_a_probe_of_something_else_is_no_limit(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = rates.operands

    def other(atom: int, bfloat: bool = False, seed: int = 0) -> Any:
        words, sums, magnitudes = operands(atom, bfloat, seed)
        return words, sums * 1.1, magnitudes

    probe = Compiled(probes(device.clock, "tensor_rate", (("ATOM", "75"), ("BFLOAT", "0"))), 64)
    monkeypatch.setattr(rates, "compiled_probe", lambda *arguments: probe)
    calls = iter([other, operands])
    monkeypatch.setattr(rates, "operands", lambda *arguments: next(calls)(*arguments))
    with pytest.raises(RuntimeError, match="the probe of m16n8k8 computes something else"):
        device.card.rates.prepare("m16n8k8")


def test_the_environment_is_described(device: Any) -> None:
    device.card.note_clocks("start")
    found = device.card.environment()
    assert found["gpu"] == "A card of NumPy"
    assert found["compute_capability"] == [9, 0]
    assert found["versions"]["CuPy"] == "14.2.0"
    assert found["clocks"][0]["when"] == "start"
    assert found["driver"] == "unknown", "there is no nvidia-smi here that knows this card"


def test_what_does_not_fit_is_said(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.card.missing(PREFILL) is None
    monkeypatch.setattr(device.cupy.cuda.runtime, "memGetInfo", lambda: (2**28, 2**34))
    text = device.card.missing(PREFILL)
    assert "it needs 0.5 GiB of the GPU's memory, 0.2 are free" in text


def test_arrays_are_random_and_caches_differ(device: Any) -> None:
    for case in CASES:
        arrays = data.make_data(case, device.card.card, 1024)
        everything = [arrays.q, *(x for cache in arrays.caches for x in (cache.k, cache.v))]
        for x in everything:
            numbers = np.asarray(x).astype(np.float64)
            assert np.abs(numbers.mean()) < 0.1 * numbers.std()
            assert (numbers != 0).mean() > 0.95
        seen = {np.asarray(x).tobytes() for x in everything}
        assert len(seen) == len(everything)
        if case.dtype == "int8":
            k, _ = arrays.caches[0].head(0, 1)
            assert np.asarray(k).std() == pytest.approx(1, abs=0.05)
        if case.page_size:
            table = np.asarray(arrays.caches[0].block_table)
            assert sorted(table.ravel().tolist()) == list(range(table.size))


def test_enough_passes_before_a_cache_is_read_again() -> None:
    case = GpuCase("decode", "float16", 32, 8, 1, 8192, 128)
    mebi = 2**20
    for l2, passed in ((6 * mebi, 256 * mebi), (100 * mebi, 400 * mebi)):
        count = data.caches_of(case, l2)
        assert (count - 1) * case.kv_bytes >= passed > (count - 2) * case.kv_bytes
        assert data.device_bytes(case, l2) > count * case.kv_bytes
    assert data.caches_of(replace(case, k_len=131072), 60 * mebi) == 1
    assert data.caches_of(replace(PREFILL), 60 * mebi) == 1


def test_unwritten_elements_outside_the_sample_show(device: Any) -> None:
    for dtype in ("float16", "bfloat16"):
        case = replace(PREFILL, dtype=dtype)
        arrays = data.make_data(case, device.card.card, 1024)
        expected = check.expected_rows(case, arrays, arrays.caches[0])
        right, _ = reference.attention(
            *(np.asarray(x) for x in (arrays.q, arrays.caches[0].k, arrays.caches[0].v))
        )
        out = right.astype(arrays.q.dtype).view(Array)
        assert check.deviation(case, expected, out) < check.tolerance(case)
        places = set(zip(expected.sequences, expected.heads, expected.queries, strict=True))
        b, h, i = next(place for place in np.ndindex(2, 2, 64) if place not in places)
        out[b, h, i, 5] = np.nan
        assert np.isnan(check.deviation(case, expected, out))
        assert check.deviation(case, expected, out[:, :, 1:]) == float("inf")
        check.poison(out)
        assert np.isnan(out.astype(np.float64)).all()


class Calls:
    """Somebody whose calls take a set time."""

    name, detail, caches = "somebody", "somehow", 3

    def __init__(self, ticks: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.seen = ticks, seconds, []
        self.problem: Exception | None = None

    def around(self) -> Any:
        return contextlib.nullcontext()

    def call(self, number: int) -> None:
        self.seen.append(number)
        self.clock.now += self.seconds

    def capture(self, count: int) -> Any:
        if self.problem:
            raise self.problem
        return types.SimpleNamespace(launch=lambda: [self.call(n % self.caches) for n in range(count)])

    def check(self, number: int, graph: Any) -> float:
        self.call(number) if graph is None else graph.launch()
        assert self.seen[-1] == number
        return 0.25 * number


def test_batches_take_turns_over_caches(device: Any) -> None:
    calls = Calls(device.clock, 1e-5)
    way = clock.Way(calls)
    assert way.check() == 0.5
    calls.seen.clear()
    start = device.clock.now
    assert way.time("launches") == pytest.approx(1e-5)
    assert device.clock.now - start >= clock.BATCH_SECONDS
    assert calls.seen == [n % 3 for n in range(len(calls.seen))]
    way.capture()
    assert (way.not_captured, way.graph_calls % 3) == ("", 0)
    assert way.check_graph() == 0.5
    calls.seen.clear()
    assert way.time("graph") == pytest.approx(1e-5)
    assert len(calls.seen) * 1e-5 >= clock.BATCH_SECONDS
    assert calls.seen == [n % 3 for n in range(len(calls.seen))]


def test_long_calls_are_made_once_a_batch(device: Any) -> None:
    calls = Calls(device.clock, 0.3)
    way = clock.Way(calls)
    way.time("launches")
    calls.seen.clear()
    assert way.time("launches") == pytest.approx(0.3)
    assert len(calls.seen) == 1


def test_a_failed_capture_is_recorded(device: Any) -> None:
    calls = Calls(device.clock, 1e-4)
    calls.problem = RuntimeError("not now\nnor ever")
    way = clock.Way(calls)
    way.capture()
    assert (way.not_captured, way.graph_calls) == ("RuntimeError: not now", 0)
    with pytest.raises(ValueError, match="there is no graph"):
        way.time("graph")


def test_our_failed_capture_leaves_the_stream(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with device.card.open(PREFILL) as field:
        way = field.ours[0][0]
        real = contenders.attention
        seen = []

        def fail(*args: Any, **options: Any) -> None:
            if Stream.current.captured is not None:
                seen.append(1)
                raise RuntimeError("cannot be captured")
            real(*args, **options)

        monkeypatch.setattr(contenders, "attention", fail)
        way.capture()
        assert seen == [1]
        assert way.not_captured == "RuntimeError: cannot be captured"
        assert Stream.current.captured is None


def test_graphs_hold_whole_turns() -> None:
    assert clock.plan_calls(1.0, 1) == 1
    assert clock.plan_calls(1e-5, 9) % 9 == 0
    assert clock.plan_calls(1e-7, 9) <= 256
    assert clock.plan_calls(1e-3, 300) == 300


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyTorch's CPU kernels in the GPU's place."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class OnCpu(pytorch.PyTorch):
        def __init__(self) -> None:
            self.torch, self.attention = torch, importlib.import_module("torch.nn.attention")

        def tensor(self, array: Any) -> Any:
            host = np.asarray(array)
            if host.dtype.name == "bfloat16":
                return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(host)

        def array(self, tensor: Any) -> Any:
            if tensor.dtype == torch.bfloat16:
                return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).view(Array)
            return tensor.numpy().view(Array)

        @contextlib.contextmanager
        def around(self, backend: str) -> Iterator[None]:
            with torch.no_grad(), self.attention.sdpa_kernel([getattr(self.attention.SDPBackend, backend)]):
                yield

    return OnCpu()


@pytest.mark.peers
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pytorch_is_asked_for_the_same(case: GpuCase, device: Any, library: Any) -> None:
    arrays = data.make_data(case, device.card.card, 1024)
    expected = {
        number: check.expected_rows(case, arrays, arrays.caches[number])
        for number in (0, len(arrays.caches) - 1)
    }
    ways = library.ways(case, arrays, expected)
    if case.dtype == "int8" or case.page_size:
        assert ways == {}
        return
    names = ["memory-efficient", "flash"] if case.kind == "prefill" else ["PyTorch", pytorch.GROUPED_ROWS]
    assert list(ways) == names
    right = 0
    for calls in (calls for group in ways.values() for calls in group):
        with contextlib.suppress(pytorch.UnsupportedError):
            assert clock.Way(calls).check() < check.tolerance(case)
            right += 1
    assert right >= len(ways) // 2
