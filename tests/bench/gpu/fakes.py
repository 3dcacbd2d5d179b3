"""A GPU that is none: times and errors are set, and what was asked of it is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastattention.gpu import rates

from fastattention.bench.cases import useful_flops
from fastattention.bench.gpu.cases import GpuCase
from fastattention.bench.gpu.contenders import atoms_of, limit_of
from fastattention.bench.gpu.measure import Field
from fastattention.bench.peers import UnsupportedError

#: TFLOP/s, and GB/s of copying.
LIMITS = {
    "m16n8k16": 600.0, "m16n8k16 bfloat16": 600.0, "m16n8k8": 400.0, "m8n8k4": 20.0, "float32 FMA": 50.0,
    "copy": 4000.0,
}  # fmt: skip

#: What everybody reaches: TFLOP/s of prefill, GB/s of decode.
SPEEDS = {
    "atom 80": (300.0, 3600.0), "atom 75": (240.0, 3500.0), "atom 70": (10.0, 3400.0),
    "CUDA cores": (25.0, 0.0), "memory-efficient": (200.0, 0.0), "flash": (310.0, 0.0),
    "PyTorch": (0.0, 3000.0), "PyTorch, heads as rows": (0.0, 3300.0),
}  # fmt: skip


@dataclass
class FakeWay:
    """Somebody who takes a set time; launches take 2 microseconds more than a graph's call."""

    name: str
    detail: str
    seconds: float
    log: list[tuple[str, str]] = field(default_factory=list)
    error: float = 1e-4
    graph_error: float = 1e-4
    problem: Exception | None = None
    why_no_graph: str = ""
    last_resort: bool = False
    not_captured: str = "not tried"
    graph_calls: int = 0

    def check(self) -> float:
        self.log.append(("check", self.name))
        if self.problem is not None:
            raise self.problem
        return self.error

    def capture(self) -> None:
        self.not_captured = self.why_no_graph
        self.graph_calls = 0 if self.why_no_graph else 10

    def check_graph(self) -> float:
        self.log.append(("check graph", self.name))
        return self.graph_error

    def time(self, mode: str) -> float:
        self.log.append((mode, self.name))
        assert mode == "launches" or not self.not_captured
        return self.seconds + 2e-6 * (mode == "launches")


class FakeDevice:
    """A card of the capability, memory and speeds that a test sets; `change` may alter any way."""

    def __init__(
        self,
        capability: tuple[int, int] = (9, 0),
        memory_bytes: int = 141 * 2**30,
        change: Callable[[GpuCase, FakeWay], None] = lambda case, way: None,
        with_peers: bool = True,
    ) -> None:
        self.capability, self.memory_bytes, self.change = capability, memory_bytes, change
        self.with_peers = with_peers
        self.absent_peers = {} if with_peers else {"PyTorch": "not installed (No module named 'torch')"}
        self.log: list[tuple[str, str]] = []
        self.clocks: list[dict[str, str]] = []
        self.closed = False
        self.raises: dict[str, Exception] = {}  # by the row's name

    def environment(self) -> dict[str, Any]:
        return {
            "cpu": "A Processor", "gpu": "NVIDIA Test(R) 200", "compute_capability": list(self.capability),
            "sms": 132, "l2_bytes": 60 * 2**20, "memory_bytes": self.memory_bytes, "driver": "580.1",
            "cuda_driver": 13000, "cuda_runtime": 12090, "absent_peers": self.absent_peers,
            "clocks": self.clocks, "versions": {"fastattention": "0.1.0", "CuPy": "14.2.0"},
        }  # fmt: skip

    def note_clocks(self, when: str) -> None:
        self.clocks.append({"when": when, "clocks.sm": "1980 MHz"})

    def limit_names(self) -> list[str]:
        return [*rates.limits_of(self.capability), "copy"]

    def missing(self, case: GpuCase) -> str | None:
        if not atoms_of(case, self.capability):
            return f"{case.dtype} needs compute capability 8.0 or newer"
        if case.kv_bytes > self.memory_bytes:
            return "it needs more of the GPU's memory than is free"
        return None

    def compile(self, cases: Sequence[GpuCase]) -> dict[str, float]:
        self.log.append(("compile", str(len(cases))))
        return {"kernels": 25.0, "seconds": 9.5}

    def probe(self, name: str, seconds: float = 0.004) -> float:
        self.log.append(("probe", name))
        return LIMITS[name]

    def _way(self, case: GpuCase, name: str, detail: str) -> FakeWay:
        prefill, decode = SPEEDS[name]
        work = (
            1e-12 * useful_flops(case) / prefill if case.kind == "prefill" else 1e-9 * case.kv_bytes / decode
        )
        way = FakeWay(name, detail, work, self.log)
        self.change(case, way)
        return way

    @contextmanager
    def open(self, case: GpuCase) -> Iterator[Field]:
        if case.name in self.raises:
            raise self.raises[case.name]
        ours = []
        for atom in atoms_of(case, self.capability):
            cores = case.dtype == "float32" and case.kind == "prefill"
            limit = limit_of(case, atom)
            instruction = rates.LIMITS.get(limit)
            emulated = instruction is not None and instruction.emulated(self.capability)
            way = self._way(case, "CUDA cores" if cores else f"atom {atom}", f"file_{atom}.cu")
            ours.append((way, limit, emulated))
        peers: dict[str, list[FakeWay]] = {}
        if self.with_peers and case.kind == "prefill":
            peers = {
                name: [self._way(case, name, f"{name} backend")] for name in ("memory-efficient", "flash")
            }
            if case.dtype == "float32":
                peers["flash"][0].problem = UnsupportedError("no kernel of the flash backend for this case")
        elif self.with_peers and case.dtype != "int8" and case.page_size is None:
            names = ["PyTorch", "PyTorch, heads as rows"][: 1 + (case.q_heads > case.kv_heads)]
            peers = {name: [self._way(case, name, "flash backend")] for name in names}
        yield Field(2 if case.kind == "decode" else 1, 5e-3, ours, peers, lambda way: bool(way.last_resort))  # type: ignore[attr-defined]

    def close(self) -> None:
        self.closed = True
