"""A GPU as the benchmark needs one: CuPy's current device, one stream, its limits, its memory."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ... import get_isa, gpu
from ..environment import describe
from .cases import GpuCase
from .check import expected_rows, tolerance
from .clock import Way
from .contenders import Ours, atoms_of, limit_of
from .data import device_bytes, make_data
from .measure import Field
from .pytorch import load

__all__ = ["GpuDevice"]

_QUERY = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"
_COPY_SHARE = 16  # the array that is copied takes at most this part of the memory


class GpuDevice:
    """CuPy's current device.

    Parameters
    ----------
    with_pytorch : bool
        Whether PyTorch takes part, where it is installed.
    seed : int
        Of the arrays, and of which rows of the output are checked.

    Raises
    ------
    ImportError, RuntimeError, ValueError
        There is no CuPy, no GPU, or none that this can run on; the text says what to install.
    """

    def __init__(self, with_pytorch: bool = True, seed: int = 0) -> None:
        self.card = gpu.card()
        cupy = gpu.load_cupy()
        self.capability, self.seed = self.card.capability, seed
        properties = cupy.cuda.runtime.getDeviceProperties(self.card.number)
        self.l2_bytes, self.memory_bytes = int(properties["l2CacheSize"]), int(properties["totalGlobalMem"])
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.stream.__enter__()
        self.absent_peers: dict[str, str] = {}
        self.pytorch = None
        if with_pytorch:
            self.pytorch, why = load(self.stream, self.card.number)
            if why:
                self.absent_peers["PyTorch"] = why
        copied = min(gpu.rates.COPY_BYTES, self.memory_bytes // _COPY_SHARE // 2**20 * 2**20)
        self.rates = gpu.rates.Rates(self.card, copied)
        self._clocks: list[dict[str, str]] = []

    def environment(self) -> dict[str, Any]:
        """Describe GPU, driver, libraries and machine."""
        cupy = gpu.load_cupy()
        runtime = cupy.cuda.runtime
        found = describe(get_isa())
        found |= {
            "gpu": self.card.name,
            "compute_capability": list(self.capability),
            "sms": self.card.sms,
            "l2_bytes": self.l2_bytes,
            "memory_bytes": self.memory_bytes,
            "driver": self._smi("driver_version").get("driver_version", "unknown"),
            "cuda_driver": int(runtime.driverGetVersion()),
            "cuda_runtime": int(runtime.runtimeGetVersion()),
            "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
            "absent_peers": self.absent_peers,
            "clocks": self._clocks,
        }
        found["versions"]["CuPy"] = str(cupy.__version__)
        if self.pytorch is not None:
            found["versions"]["PyTorch"] = self.pytorch.version
        return found

    def note_clocks(self, when: str) -> None:
        """Keep what nvidia-smi says of clocks, power and temperature now."""
        self._clocks.append({"when": when, **self._smi(_QUERY)})

    def _smi(self, fields: str) -> dict[str, str]:
        """Ask nvidia-smi, which only reads; {"problem": ...} where it cannot say."""
        where = str(gpu.load_cupy().cuda.runtime.deviceGetPCIBusId(self.card.number))
        command = ["nvidia-smi", f"--id={where}", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError) as problem:
            return {"problem": str(problem)}
        values = done.stdout.strip().split(", ")
        return dict(zip(fields.split(","), values, strict=False))

    def limit_names(self) -> list[str]:
        """Return the names of all limits of the card."""
        return [*self.rates.names, "copy"]

    def missing(self, case: GpuCase) -> str | None:
        """Return why the card cannot do a case, or None."""
        if not atoms_of(case, self.capability):
            return f"{case.dtype} needs compute capability 8.0 or newer"
        needed = device_bytes(case, self.l2_bytes)
        free = self._free()
        if needed > free:
            return f"it needs {needed / 2**30:.1f} GiB of the GPU's memory, {free / 2**30:.1f} are free"
        return None

    def _free(self) -> int:
        cupy = gpu.load_cupy()
        pool = cupy.get_default_memory_pool()
        return int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())

    def compile(self, cases: Sequence[GpuCase]) -> dict[str, float]:
        """Compile all kernels that the cases need, several at a time."""
        cupy = gpu.load_cupy()
        wanted = {
            gpu.configure(
                atom,
                case.q_dtype,
                case.dtype,
                case.head_dim,
                case.value_dim,
                case.q_heads // case.kv_heads * case.q_len,
                aligned=True,
                modified=False,
                paged=case.page_size is not None,
            )
            for case in cases
            for atom in atoms_of(case, self.capability)
        }

        def one(configuration: gpu.Configuration) -> None:
            with cupy.cuda.Device(self.card.number):
                gpu.compiled(configuration, self.card)

        start = time.perf_counter()
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            list(pool.map(one, sorted(wanted, key=str)))
        kernels = time.perf_counter() - start
        for name in self.limit_names():
            self.rates.prepare(name)
        return {
            "kernels": len(wanted), "seconds": kernels,
            "probes_seconds": time.perf_counter() - start - kernels,
        }  # fmt: skip

    def probe(self, name: str, seconds: float = 0.004) -> float:
        """Return a limit now."""
        return self.rates.measure(name, seconds)

    @contextmanager
    def open(self, case: GpuCase) -> Iterator[Field]:
        """Make the arrays of a case, and give who takes part."""
        self._release()  # what the row before has held until now
        data = make_data(case, self.card, self.l2_bytes, self.seed)
        checked = {0, len(data.caches) - 1}
        expected = {
            number: expected_rows(case, data, data.caches[number], self.seed + 1)
            for number in sorted(checked)
        }
        ours = []
        for atom in atoms_of(case, self.capability):
            limit = limit_of(case, atom)
            instruction = gpu.rates.LIMITS.get(limit)
            emulated = instruction is not None and instruction.emulated(self.capability)
            ours.append((Way(Ours(case, data, atom, expected)), limit, emulated))
        peers = {} if self.pytorch is None else self.pytorch.ways(case, data, expected)
        try:
            yield Field(
                len(data.caches),
                tolerance(case),
                ours,
                {name: [Way(calls) for calls in ways] for name, ways in peers.items()},
                lambda way: bool(getattr(getattr(way, "calls", None), "last_resort", False)),
            )
        finally:
            ours.clear()
            peers.clear()
            self._release()

    def _release(self) -> None:
        self.stream.synchronize()
        gpu.load_cupy().get_default_memory_pool().free_all_blocks()
        if self.pytorch is not None:
            self.pytorch.release()

    def close(self) -> None:
        """Leave the stream."""
        self.stream.synchronize()
        self.stream.__exit__(None, None, None)
