"""A GPU and its host as the benchmark needs them: runtime, planner and decoder put together for a case."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import get_isa
from ...models.device_llama import DeviceLlama
from ...models.offloaded import OffloadedSession
from ...offload.detect import detect
from ...offload.hardware import Hardware
from ...offload.plan import DoesNotFit, OffloadPlan
from ...offload.shapes import ModelShape, model_shape
from ...runtime.available import available_bytes
from ...runtime.cooperative import CooperativeCache
from ...runtime.layers import cpu_threads
from ..environment import describe
from . import hugging_face
from .arena import Arena
from .cases import ALL_GPU, WAYS, OffloadCase
from .limits import HostLimits, Sizes, l3_bytes, sizes
from .long_run import MODEL, run_long
from .measure import LeftOutError
from .plans import plan_way
from .results import LongRun, Outcome

__all__ = ["CAPACITY", "OffloadMachine", "host_bytes"]

#: Tokens that a cache has room for beyond the case's context: more than are timed.
CAPACITY = 64

_DTYPE = "float16"
_HUGE = 2**21
_SHARPNESS = 3  # of queries: a few keys of thousands decide each output, so that a lost one shows
_HOST_RESERVE = 6 * 2**30  # of what is free: left to the system, Python, the probes, the peer
_HOST_SHARE = 0.95  # of the rest: the planner leaves as much alone
_GPU_RESERVE = 4 * 2**30  # beside an all-GPU cache: buffers, libraries


class OffloadMachine:
    """A device of the runtime, and this host.

    Parameters
    ----------
    device : Device
        From `fastattention.runtime.open_device`.
    threads : int, optional
        Of CPU attention; default: what the planner says.
    hardware : Hardware, optional
        What the planner is to predict from; by default it measures this machine (`offload.detect`).
    host_bytes : int, optional
        Host memory that caches may take; default: what is free, less a reserve.
    probed : Sizes, optional
        What the probes of the limits read.
    seed : int
        Of weights, caches and tokens.
    """

    def __init__(
        self,
        device: Any,
        threads: int | None = None,
        *,
        hardware: Hardware | None = None,
        host_bytes: int | None = None,
        probed: Sizes | None = None,
        seed: int = 0,
    ) -> None:
        self._device = device
        self.seed = seed
        self._threads = threads
        if host_bytes is None:
            host_bytes = int(_HOST_SHARE * (available_bytes() - _HOST_RESERVE))
        self._host_bytes = host_bytes
        # The planner is told the same as the benchmark, with what it leaves alone on top.
        told = math.ceil(max(0, host_bytes) / _HOST_SHARE)
        if hardware is None:
            hardware = detect(host_memory=told, host_reserved=0)
        self._hardware = dataclasses.replace(hardware, host_memory=told, host_reserved=0)
        self._limits = HostLimits(device, probed or sizes(l3_bytes()), threads or cpu_threads())
        self._arena: Arena | None = None
        self._model: tuple[tuple[ModelShape, str], DeviceLlama] | None = None

    def environment(self) -> dict[str, Any]:
        """Describe GPU, host and libraries."""
        free, total = self._device.memory()
        found = describe(get_isa())
        found |= {
            "device": self._device.name,
            "gpu": self._device.name,
            "gpu_memory_bytes": total,
            "gpu_free_bytes": free,
            "host_bytes": self._host_bytes,
            "threads": self._limits.threads,
        }
        if self._device.name != "numpy":
            found |= _describe_gpu(self._device)
            found["versions"]["CuPy"] = str(self._device.xp.__version__)
        return found

    def hardware(self) -> dict[str, Any]:
        """Return what the planner predicts from, but that each row measures bus and host memory anew."""
        return dataclasses.asdict(self._hardware)

    def limits(self, seconds: float, *names: str) -> dict[str, float]:
        """Return limits now."""
        return self._limits.measure(seconds, *names)

    def foretell_from(self, limits: dict[str, float]) -> None:
        """Let the planner count with limits measured just now: others may use the same host's memory."""
        both = limits["bus up, both at once"] + limits["CPU attention, both at once"]
        self._hardware = self._hardware.replace(
            bus=1e9 * limits["bus up"], cpu=1e9 * limits["CPU attention"], host_bandwidth=1e9 * both
        )

    def fit(self, case: OffloadCase) -> tuple[OffloadCase, str]:
        """Return the case with as many layers as host memory holds, and why they are fewer."""
        held = self._host_bytes // (host_bytes(case) // case.layers)
        if held >= case.layers:
            return case, ""
        if held < 2:
            raise LeftOutError(
                f"a layer takes {host_bytes(case) / case.layers / 2**30:.1f} GiB, "
                f"{self._host_bytes / 2**30:.1f} GiB of host memory are free"
            )
        fewer = dataclasses.replace(case, layers=int(held))
        free = f"{self._host_bytes / 2**30:.0f} GiB of host memory are free"
        return fewer, f"{free}, so {held} of {case.layers} layers take part: {fewer.name}"

    def reserve(self, cases: list[OffloadCase]) -> float:
        """Take the host memory of the largest case."""
        start = time.perf_counter()
        self._arena = Arena(self._device, max(map(host_bytes, cases)))
        return time.perf_counter() - start

    @contextmanager
    def open(self, case: OffloadCase) -> Iterator[_Field]:
        """Prepare a case: its model's weights come to the device."""
        shape = dataclasses.replace(model_shape(case.model), layers=case.layers)
        try:
            plan, _ = self.plan(case, shape, "classical")
        except DoesNotFit as problem:
            raise LeftOutError(str(problem)) from problem
        wanted = shape, plan.embedding
        if self._model is None or self._model[0] != wanted:
            self._model = None
            self._release()
            model = DeviceLlama.random(shape, self._device, _DTYPE, self.seed, embedding=plan.embedding)
            self._model = wanted, model
        yield _Field(self, case, shape, self._model[1])

    def plan(self, case: OffloadCase, shape: ModelShape, way: str) -> tuple[OffloadPlan, float | None]:
        """Return the plan for a way, and the seconds a token that it foretells."""
        return plan_way(
            shape, self._hardware, context=case.context + CAPACITY, batch=case.batch, place=WAYS[way],
            threads=self._threads, dtype=_DTYPE,
        )  # fmt: skip

    def long(
        self, threads: int | None, say: Callable[[str], None], progress: Callable[[int, int], None]
    ) -> LongRun:
        """Do the long run."""
        self._limits.close()  # its memory is not the run's
        self._release()
        shape = model_shape(MODEL)
        return run_long(
            self._device, shape, self._hardware, threads=threads, seed=self.seed, say=say, progress=progress
        )

    def _release(self) -> None:
        self._device.wait()
        if self._device.name != "numpy":
            self._device.xp.get_default_memory_pool().free_all_blocks()

    def close(self) -> None:
        """Give everything back."""
        self._model = None
        self._limits.close()
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        self._release()


def host_bytes(case: OffloadCase) -> int:
    """Return what the caches of all layers take in host memory, whole huge pages each."""
    shape = model_shape(case.model)
    plane = case.batch * shape.kv_heads * (case.context + CAPACITY) * shape.head_dim * 2
    small = 4 * _HUGE * 2  # what goes down and up for a token, of two halves at most
    return 2 * case.layers * math.ceil(plane / _HUGE) * _HUGE + small


def _describe_gpu(device: Any) -> dict[str, Any]:
    runtime = device.xp.cuda.runtime
    number = device.number
    properties = runtime.getDeviceProperties(number)
    where = runtime.deviceGetPCIBusId(number)
    where = where if isinstance(where, str) else where.decode()
    command = ["nvidia-smi", f"--id={where}", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        driver = done.stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        driver = f"unknown: {problem}"
    return {
        "gpu": properties["name"].decode(),
        "compute_capability": [properties["major"], properties["minor"]],
        "driver": driver,
        "cuda_driver": int(runtime.driverGetVersion()),
        "cuda_runtime": int(runtime.runtimeGetVersion()),
    }


def _another(device: Any) -> Any:
    """Return the same GPU without streams: waiting for it waits for one way's, not for all before."""
    return device if device.name == "numpy" else type(device)(device.number)


class _Field:
    def __init__(
        self, machine: OffloadMachine, case: OffloadCase, shape: ModelShape, model: DeviceLlama
    ) -> None:
        self._machine, self._case, self._shape, self._model = machine, case, shape, model
        rows = case.layers * case.batch * case.context
        self.cache_bytes = rows * shape.kv_heads * shape.head_dim * 2 * 2

    @contextmanager
    def open(self, way: str) -> Iterator[_Runner]:
        """Make and fill the caches of a way."""
        machine, case = self._machine, self._case
        machine._release()
        if way == ALL_GPU:
            free, _ = machine._device.memory()
            if free < self.cache_bytes + _GPU_RESERVE:
                raise LeftOutError(
                    f"the caches take {self.cache_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of the "
                    "GPU's memory are free"
                )
        try:
            plan, predicted = machine.plan(case, self._shape, way)
        except DoesNotFit as problem:
            raise LeftOutError(str(problem)) from problem
        assert machine._arena is not None
        device = _another(machine._device)
        lent = device if way == ALL_GPU else machine._arena.lend(device)
        cache = CooperativeCache.from_plan(plan, lent)
        try:
            cache.fill_random(case.context, machine.seed)
            with OffloadedSession(self._model, cache, device) as session:
                yield _Runner(device, cache, session, plan, predicted, case, machine.seed)
        finally:
            cache.close()

    def peer(self) -> dict[str, Any]:
        """Let transformers do the case."""
        self._machine._release()
        return hugging_face.ask(self._case, self._shape, self._machine.seed)


class _Runner:
    def __init__(
        self,
        device: Any,
        cache: CooperativeCache,
        session: OffloadedSession,
        plan: OffloadPlan,
        predicted: float | None,
        case: OffloadCase,
        seed: int,
    ) -> None:
        self._device, self._cache, self._session, self._case = device, cache, session, case
        shape = plan.model
        self.outcome = Outcome(
            "ok",
            placement={place: plan.placement.count(place) for place in sorted(set(plan.placement))},
            share=plan.share if "split" in plan.placement else None,
            halves=plan.halves,
            threads=plan.threads,
            predicted=predicted,
        )
        rows = (case.layers, case.batch, 1)
        with cache.stream():
            draft = device.normal((seed, 1), (*rows, shape.heads + 2 * shape.kv_heads, shape.head_dim))
            draft[..., : shape.heads, :] *= _SHARPNESS
            self._qkv = draft.astype(_DTYPE)
            self._out = device.xp.zeros((*rows, shape.heads, shape.head_dim), _DTYPE)
        device.wait()
        rng = np.random.default_rng(seed)
        self._tokens = rng.integers(0, shape.vocab_size, (CAPACITY, case.batch, 1))

    def attend(self) -> None:
        """Take one step of attention."""
        cache = self._cache
        with cache.step(1):
            for layer in range(self._case.layers):
                for part, rows in enumerate(cache.parts):
                    with cache.stream(part):
                        cache.attend(layer, self._qkv[layer, rows], self._out[layer, rows], part)

    def outputs(self) -> NDArray[Any]:
        """Return the last step's outputs."""
        found: NDArray[Any] = self._device.host(self._out)
        return found.astype(np.float32)

    def moved(self) -> tuple[float, float, float]:
        """Return bytes up, down, and read by the CPU."""
        found = self._cache.statistics()
        return found["up_bytes"], found["down_bytes"], found["cpu_bytes"]

    def rewind(self) -> None:
        """Forget all steps."""
        self._cache.truncate(self._case.context)

    def token(self, number: int) -> NDArray[Any]:
        """Decode a token."""
        return self._session.forward(self._tokens[number]).copy()  # the next call writes to the same array
