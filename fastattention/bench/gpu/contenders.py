"""Our side of a case: the public function; the launcher for what that takes in a `KVCache` only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ... import attention, gpu
from ..measure import Expected
from .cases import GpuCase
from .check import deviation, poison
from .clock import Graph
from .data import Cache, Data

__all__ = ["Ours", "atoms_of", "limit_of"]


def atoms_of(case: GpuCase, capability: tuple[int, int]) -> list[int]:
    """Return the atoms whose kernels can do a case on a card, the card's own first.

    float32 runs on the CUDA cores whatever the atom.
    """
    own = gpu.atom_of(*capability)
    if case.dtype == "float32":
        return [own]
    atoms = [atom for atom in reversed(gpu.ATOMS) if atom <= own]
    return [atom for atom in atoms if atom >= 80 or case.dtype != "bfloat16"]


def limit_of(case: GpuCase, atom: int) -> str:
    """Return the name of what limits a kernel: an instruction of `gpu.rates`, or "copy" of memory."""
    if case.kind == "decode":
        return "copy"
    if case.dtype == "float32":
        return "float32 FMA"
    return {80: "m16n8k16", 75: "m16n8k8", 70: "m8n8k4"}[atom] + " bfloat16" * (case.dtype == "bfloat16")


class Ours:
    """Calls of the kernels of one atom.

    Memory for parts comes from a pool of its own, which lives as long as the graph that refers to it.
    """

    def __init__(self, case: GpuCase, data: Data, atom: int, expected: dict[int, Expected]) -> None:
        cupy = gpu.load_cupy()
        self.case, self.data, self.atom, self.expected = case, data, atom, expected
        self.caches = len(data.caches)
        self.name = "CUDA cores" if case.dtype == "float32" and case.kind == "prefill" else f"atom {atom}"
        self.out = cupy.empty((case.batch, case.q_heads, case.q_len, case.value_dim), data.q.dtype)
        self._pool = cupy.cuda.MemoryPool()
        cache = data.caches[0]
        configuration = gpu.configuration_of(
            atom, data.q, cache.k, cache.v, scale=self._scale, block_table=cache.block_table
        )
        self.detail = configuration.file
        self._direct = case.dtype == "int8" or case.page_size is not None

    @property
    def _scale(self) -> float:
        return float(self.case.head_dim**-0.5)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Force the atom; take memory from the pool."""
        cupy = gpu.load_cupy()
        before = gpu.forced_atom()
        gpu.set_atom(self.atom)
        try:
            with cupy.cuda.using_allocator(self._pool.malloc):
                yield
        finally:
            gpu.set_atom(before)

    def call(self, number: int) -> None:
        """Queue one call."""
        cache, q = self.data.caches[number], self.data.q
        if self._direct:
            gpu.attention(q, cache.k, cache.v, self.out, **self._options(cache))
        else:
            attention(q, cache.k, cache.v, causal=self.case.causal, out=self.out, backend="gpu")

    def _options(self, cache: Cache) -> dict[str, Any]:
        options: dict[str, Any] = {"scale": self._scale, "window_right": 0 if self.case.causal else -1}
        if cache.k_scales is not None:
            options |= {"k_scales": cache.k_scales, "v_scales": cache.v_scales}
        if cache.block_table is not None:
            # On the device already: what lies in CPU memory would be copied again by each call.
            options |= {
                "block_table": cache.block_table, "kv_lengths": cache.kv_lengths,
                "page_size": self.case.page_size, "max_seqlen_k": self.case.k_len,
            }  # fmt: skip
        return options

    def capture(self, count: int) -> Graph:
        """Capture calls on the current stream. The calls before have warmed the pool."""
        stream = gpu.load_cupy().cuda.get_current_stream()
        stream.begin_capture()
        try:
            for number in range(count):
                self.call(number % self.caches)
        except BaseException:
            _abandon(stream)
            raise
        graph: Graph = stream.end_capture()
        return graph

    def check(self, number: int, graph: Graph | None) -> float:
        """Return the error of a call or a replay."""
        poison(self.out)
        if graph is None:
            self.call(number)
        else:
            graph.launch()
        return deviation(self.case, self.expected[number], self.out)


def _abandon(stream: Any) -> None:
    """End a capture in which something was raised: that is the error, whatever this says."""
    with suppress(RuntimeError):
        stream.end_capture()
