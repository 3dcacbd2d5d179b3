"""The limits are real, and a row is judged by the one that binds it."""

from __future__ import annotations

import numpy as np
import pytest
from fastattention.cpu_kernels import available_isas, default_isa

import fastattention
from fastattention.bench import limits
from fastattention.bench.cases import Case, useful_flops
from fastattention.bench.data import make_data
from fastattention.bench.limits import Roofline, Unit, choose_probe, probe_arithmetic, probe_read
from fastattention.bench.plan import Plan, explain


def test_limits_are_positive_and_ordered() -> None:
    for isa in available_isas():
        found = probe_arithmetic(1, isa, seconds=0.02)
        assert found.fma_gflops > 0.1, isa
        assert found.bf16_dot_gflops >= 0
        assert found.int8_dot_gops >= 0
        assert found.amx_bf16_gflops >= 0
        assert (found.amx_int8_gops > 0) == (found.amx_bf16_gflops > 0)


def test_probe_of_a_missing_isa_is_not_invented() -> None:
    with pytest.raises(ValueError, match="avx1024"):
        probe_arithmetic(1, "avx1024")


@pytest.mark.parametrize("threads", [1, 2])
def test_read_probe(threads: int) -> None:
    buffer = np.ones(1 << 20, dtype=np.float32)
    for way in range(limits.READ_WAYS):
        assert 0.01 < probe_read(buffer, threads, way) < 1e5
    assert probe_read(buffer[1:2001], threads, 0, repeats=2) > 0  # not aligned to a line
    assert probe_read(buffer[:8], threads, 0) == 0  # less than a line for each
    for way in (-1, limits.READ_WAYS):
        with pytest.raises(ValueError, match=f"got {way}"):
            probe_read(buffer, threads, way)


def test_decode_is_judged_by_the_fastest_way_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def fake(buffer: np.ndarray, threads: int, way: int, repeats: int = 1) -> float:
        asked.append((way, repeats))
        if way == 5:
            return 20.0 if asked.count((5, 1)) > 1 else 5.0  # somebody else, in the first sweep
        return 10.0 + 0.1 * way

    monkeypatch.setattr(limits, "probe_read", fake)
    monkeypatch.setattr(limits, "_fma", lambda threads, isa, seconds: 1e6)  # arithmetic is no limit
    case = Case("decode", "float32", 4, 2, 1, 4096, 64)
    data = make_data(case)
    probe = choose_probe(case, data.kv, fastattention.get_isa())
    assert probe.name == "read"
    assert {way for way, _ in asked} == set(range(limits.READ_WAYS))
    assert [probe.measure(), probe.measure()] == [20.0, 20.0]
    (way, repeats), again = asked[-2:]
    assert again == (way, repeats)
    assert way == 5
    assert repeats * data.kv.nbytes / 20e9 == pytest.approx(0.03, rel=0.1)  # seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine whose rates the test sets: its FMA, bf16 dot, AMX and read, and whose kernels run."""
    rates = {"fma": 100.0, "dot": 0.0, "int8": 0.0, "amx": 0.0, "read": 10.0}
    monkeypatch.setattr(limits, "_fma", lambda threads, isa, seconds: rates["fma"])
    monkeypatch.setattr(limits, "BF16_DOT", Unit("bf16 dot", lambda threads, seconds: rates["dot"]))
    monkeypatch.setattr(limits, "INT8_DOT", Unit("int8 dot", lambda threads, seconds: rates["int8"]))
    monkeypatch.setattr(limits, "AMX_BF16", Unit("AMX bf16", lambda threads, seconds: rates["amx"]))
    monkeypatch.setattr(limits, "probe_read", lambda kv, threads, way, repeats=1: rates["read"])
    monkeypatch.setattr(limits, "default_isa", lambda: "amx")
    monkeypatch.setattr(limits, "explain", lambda case, isa: Plan(isa, 1, 0, 0))
    return rates


@pytest.mark.parametrize(
    ("dtype", "isa", "dot", "amx", "name"),
    [
        ("float32", "amx", 900.0, 3000.0, "avx512 FMA"),
        ("float16", "amx", 900.0, 3000.0, "avx512 FMA"),
        ("float32", "avx2", 900.0, 3000.0, "avx2 FMA"),
        # In the default set: the fastest unit that the machine has.
        ("bfloat16", "amx", 900.0, 3000.0, "AMX bf16"),
        ("bfloat16", "amx", 900.0, 0.0, "bf16 dot"),
        ("bfloat16", "amx", 50.0, 0.0, "avx512 FMA"),  # there is a dot product, but it is slow
        # In a set that somebody forced: its own.
        ("bfloat16", "avx512_bf16", 50.0, 3000.0, "bf16 dot"),
        ("bfloat16", "avx512", 900.0, 3000.0, "avx512 FMA"),
        ("bfloat16", "avx2", 900.0, 3000.0, "avx2 FMA"),
        ("bfloat16", "baseline", 900.0, 3000.0, "baseline mul+add"),
    ],
)
def test_prefill_is_judged_by_the_fastest_arithmetic(
    dtype: str, isa: str, dot: float, amx: float, name: str, machine: dict[str, float]
) -> None:
    machine |= {"dot": dot, "amx": amx}
    case = Case("prefill", dtype, 4, 2, 24, 40, 16)
    probe = choose_probe(case, make_data(case).kv, isa)
    assert (probe.name, probe.measure()) == (name, {"bf16 dot": dot, "AMX bf16": amx}.get(name, 100.0))


def decoding(dtype: str, queries: int) -> tuple[Case, np.ndarray]:
    case = Case("decode", dtype, 8, 2, queries, 1024, 64)
    return case, make_data(case).kv


@pytest.mark.parametrize(
    ("dtype", "queries", "isa", "name"),
    [
        ("float32", 1, "avx512", "read"),  # 4 FLOPs a byte, 40 of 100 GFLOP/s while it is read
        ("float32", 8, "avx512", "avx512 FMA"),  # 16 FLOPs a byte: 6.2 GB/s
        ("bfloat16", 8, "avx512", "avx512 FMA"),
        ("bfloat16", 8, "avx512_bf16", "bf16 dot"),
        ("bfloat16", 8, "amx", "read"),
        ("int8", 8, "avx512", "avx512 FMA"),
        ("int8", 8, "avx512_vnni", "int8 dot"),
        ("int8", 8, "amx", "read"),
    ],
)
def test_decode_is_judged_by_the_slower_of_reading_and_computing(
    dtype: str, queries: int, isa: str, name: str, machine: dict[str, float]
) -> None:
    machine |= {"dot": 50.0, "int8": 200.0, "amx": 3000.0}
    case, kv = decoding(dtype, queries)
    probe = choose_probe(case, kv, isa)
    peak = {"avx512 FMA": 100.0, "bf16 dot": 50.0, "int8 dot": 200.0, "read": np.inf}[name]
    flops_per_byte = useful_flops(case) / case.kv_bytes
    assert probe.name == name
    assert probe.measure() == pytest.approx(min(10.0, peak / flops_per_byte))
    assert probe.name == name
    assert probe.times["read"] == pytest.approx(1e3 * case.kv_bytes / 10e9)
    assert len(probe.times) == 2


def test_a_limit_that_falls_while_a_row_is_timed_counts(machine: dict[str, float]) -> None:
    case, kv = decoding("float32", 2)
    probe = choose_probe(case, kv, "avx512")
    assert isinstance(probe, Roofline)
    assert probe.measure() == 10.0
    machine["fma"] = 10.0
    flops_per_byte = useful_flops(case) / case.kv_bytes
    assert [probe.measure(), probe.measure()] == [10.0 / flops_per_byte] * 2
    assert probe.name == "avx512 FMA"  # twice of three times


def test_arithmetic_that_hides_behind_reading_is_not_probed(machine: dict[str, float]) -> None:
    machine["fma"] = 10000.0
    case, kv = decoding("float32", 1)
    probe = choose_probe(case, kv, "avx512")
    machine["fma"] = 0.001
    assert (probe.measure(), probe.name) == (10.0, "read")


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_probes_run(kind: str) -> None:
    case = Case(kind, "bfloat16", 4, 2, 1, 4096, 64)
    assert choose_probe(case, make_data(case).kv, fastattention.get_isa()).measure() > 0.01


def test_the_plan_is_the_kernels_own() -> None:
    case = Case("prefill", "float32", 8, 8, 4096, 4096, 128, threads=2)
    for isa in available_isas():
        plan = explain(case, isa)
        assert available_isas().index(plan.isa) <= available_isas().index(isa)  # its own, or an older one's
        assert plan.threads == 2
        assert plan.thread_bytes > 4 * 128
    assert explain(Case("prefill", "float32", 1, 1, 1, 1, 8, threads=2), default_isa()).threads == 1
