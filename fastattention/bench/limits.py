"""What this machine can do at best, measured by the probes that ship with the kernels.

A shared machine drifts within seconds, so a row is timed in rounds, with a short probe of its limit between
any two (see `rounds`). What the probe of a row runs, which instruction or which way to read, is chosen once.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cpu_kernels import ISAS, default_isa
from ..cpu_kernels._native import ffi, lib
from .cases import Case, useful_flops
from .plan import explain

__all__ = [
    "AMX_BF16",
    "BF16_DOT",
    "INT8_DOT",
    "READ_WAYS",
    "Limits",
    "Probe",
    "Roofline",
    "Unit",
    "arithmetic_name",
    "choose_probe",
    "probe_arithmetic",
    "probe_read",
    "units",
]

_SECONDS = 0.03  # of a probe between two rounds, a third of it a warm-up
_SURVEY_SECONDS = 0.06  # of a probe that no row waits for
_SWEEPS = 2  # over the ways to read, when the best is chosen
_NEGLIGIBLE = 0.35  # of the time of reading: what takes less is no limit, whatever the machine does meanwhile

#: How many ways to read `probe_read` has.
READ_WAYS = int(lib.FA_READ_WAYS)


@dataclass(frozen=True, slots=True)
class Limits:
    """Arithmetic peaks of several threads at once, in 1e9 operations a second; 0: no such instruction.

    Attributes
    ----------
    threads : int
    isa : str
        Instruction set of the float32 probe.
    fma_gflops : float
        float32 multiply-add, counted as two.
    bf16_dot_gflops : float
        bfloat16 dot product into float32 (AVX512-BF16).
    int8_dot_gops : float
        int8 dot product into int32 (AVX512-VNNI).
    amx_bf16_gflops, amx_int8_gops : float
        Products of tiles (AMX), likewise.
    """

    threads: int
    isa: str
    fma_gflops: float
    bf16_dot_gflops: float
    int8_dot_gops: float
    amx_bf16_gflops: float = 0.0
    amx_int8_gops: float = 0.0


@dataclass(frozen=True, slots=True)
class Unit:
    """A kind of arithmetic, and its probe: from threads and seconds to GFLOP/s; 0: not on this machine."""

    name: str
    measure: Callable[[int, float], float]


@dataclass(frozen=True, slots=True)
class Probe:
    """What limits a case, and how to measure it.

    Attributes
    ----------
    name : str
        Such as "avx512 FMA", "AMX bf16" or "read".
    measure : callable
        Takes some hundredths of a second; returns GFLOP/s (prefill), or, for decode, the GB/s of keys and
        values at which the limit would have them done.
    """

    name: str
    measure: Callable[[], float]
    times: dict[str, float] = field(default_factory=dict)  # as in `Roofline`; prefill has but one limit


@dataclass(slots=True)
class Roofline:
    """Several limits at once: at each moment the lowest counts.

    Attributes
    ----------
    probes : tuple of Probe
        Those that may count, all in GB/s of keys and values.
    times : dict of str to float
        Milliseconds that reading and that computing would take by themselves, when the limits were first
        tried.
    """

    probes: tuple[Probe, ...]
    times: dict[str, float]
    _counted: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The limit that counted most often."""
        return statistics.mode(self._counted or [max(self.times, key=lambda name: self.times[name])])

    def measure(self) -> float:
        """Run the probes; return the lowest rate."""
        found = [(probe.measure(), probe.name) for probe in self.probes]
        rate, name = min(found)
        self._counted.append(name)
        return rate


def _total(threads: int, function: Callable[..., float], *arguments: float) -> float:
    if threads == 1:
        return function(*arguments)
    # One core each: two new threads may share one for longer than a probe lasts before the system parts them.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    together = threading.Barrier(threads)

    def on_core(number: int) -> float:
        if cores:
            os.sched_setaffinity(0, {cores[number % len(cores)]})  # of this thread, which ends with the pool
        together.wait()
        return function(*arguments)  # cffi releases the GIL, so the probes run side by side

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(on_core, range(threads)))


def _fma(threads: int, isa: str, seconds: float) -> float:
    if isa not in ISAS:
        raise ValueError(f"isa: expected one of {', '.join(ISAS)}, got {isa!r}")
    return _total(threads, lib.fa_probe_fma_gflops, ISAS.index(isa), seconds)


BF16_DOT = Unit("bf16 dot", lambda threads, seconds: _total(threads, lib.fa_probe_bf16_dot_gflops, seconds))
INT8_DOT = Unit("int8 dot", lambda threads, seconds: _total(threads, lib.fa_probe_int8_dot_gops, seconds))
AMX_BF16 = Unit("AMX bf16", lambda threads, seconds: _total(threads, lib.fa_probe_amx_bf16_gflops, seconds))


def probe_arithmetic(threads: int, isa: str, seconds: float = _SURVEY_SECONDS) -> Limits:
    """Run every arithmetic probe, each on `threads` threads at the same time, and add up.

    Parameters
    ----------
    threads : int
    isa : str
        One of `fastattention.cpu_kernels.ISAS`.
    seconds : float
        Time for each of the probes.
    """
    return Limits(
        threads=threads,
        isa=isa,
        fma_gflops=_fma(threads, isa, seconds),
        bf16_dot_gflops=BF16_DOT.measure(threads, seconds),
        int8_dot_gops=INT8_DOT.measure(threads, seconds),
        amx_bf16_gflops=AMX_BF16.measure(threads, seconds),
        amx_int8_gops=_total(threads, lib.fa_probe_amx_int8_gops, seconds),
    )


def probe_read(buffer: NDArray[Any], threads: int, way: int, repeats: int = 1) -> float:
    """Return the mean rate, in GB/s (1e9 bytes), at which `threads` threads read `buffer` from end to end.

    The benchmark passes the very keys and values of the row it judges: whatever part of them the caches hold,
    they hold for the kernel and for the probe alike.

    Parameters
    ----------
    buffer : ndarray
        Contiguous.
    threads : int
    way : int
        From 0 to `READ_WAYS` - 1: how many places are read at once, and how far ahead lines are prefetched.
    repeats : int
        Passes over the buffer.
    """
    if not 0 <= way < READ_WAYS:
        raise ValueError(f"way: expected 0 to {READ_WAYS - 1}, got {way}")
    flat = buffer.reshape(-1).view(np.uint8)
    address = ffi.cast("void *", flat.ctypes.data)
    return float(lib.fa_probe_read_gbps(address, flat.nbytes, threads, way, repeats))


def arithmetic_name(isa: str) -> str:
    """Return what the float32 probe of an instruction set is called."""
    return f"{_float32_isa(isa)} FMA" if isa != "baseline" else "baseline mul+add"


def _float32_isa(isa: str) -> str:
    # The newer sets add 16-bit and 8-bit products only.
    return isa if ISAS.index(isa) < ISAS.index("avx512") else "avx512"


def units(case: Case, isa: str) -> list[Unit]:
    """Return the arithmetic units of which the fastest is the case's peak.

    float32 is multiplied and added as it is; float16 and int8 are widened to it. bfloat16 has units of its
    own on some machines, and so has int8 in decode. Prefill in the set that is the machine's default is
    judged by all that the machine has, whether the kernels use it or not; in a set that somebody forced, and
    in decode, whose kernels may be an older set's, by what that set has.

    Parameters
    ----------
    case : Case
    isa : str
        Instruction set in force.
    """
    fma = Unit(arithmetic_name(isa), lambda threads, seconds: _fma(threads, isa, seconds))
    judged = explain(case, isa).isa if case.kind == "decode" else isa
    if case.dtype == "int8" and judged == "avx512_vnni":
        return [INT8_DOT]
    tiled = case.dtype == "int8" and judged == "amx"  # int8 widens to bfloat16 without loss
    if case.dtype != "bfloat16" and not tiled:
        return [fma]
    if case.kind == "prefill" and isa == default_isa():
        return [fma, BF16_DOT, AMX_BF16]
    return [{"avx512_bf16": BF16_DOT, "amx": AMX_BF16}.get(judged, fma)]


def _peak(case: Case, isa: str) -> tuple[Unit, float]:
    """Return the fastest of the case's units and its GFLOP/s now."""
    rates = [(unit, unit.measure(case.threads, _SECONDS)) for unit in units(case, isa)]
    return max(rates, key=lambda found: found[1])


def _read_way(kv: NDArray[Any], threads: int) -> tuple[int, float]:
    """Return the fastest way to read these very bytes, and its GB/s."""
    # Whole sweeps, not the same way twice running: a neighbour's burst then spoils one pass of a way, and
    # the best pass of each is compared.
    rates = [
        max(found)
        for found in zip(
            *([probe_read(kv, threads, way) for way in range(READ_WAYS)] for _ in range(_SWEEPS)),
            strict=True,
        )
    ]
    best = max(rates)
    return rates.index(best), best


def choose_probe(case: Case, kv: NDArray[Any], isa: str) -> Probe | Roofline:
    """Return the probe that `case` is judged by, after trying those that might be.

    Prefill is limited by arithmetic: the fastest of `units`. Decode takes the roofline's time, the longer of
    reading `kv` in the fastest of the ways and of computing at the peak.

    Parameters
    ----------
    case : Case
    kv : ndarray
        See `data.Data.kv`.
    isa : str
        Instruction set in force.
    """
    threads = case.threads
    unit, peak = _peak(case, isa)
    if case.kind != "decode":
        return Probe(unit.name, lambda: unit.measure(threads, _SECONDS))
    way, best = _read_way(kv, threads)
    repeats = max(1, math.ceil(_SECONDS * best * 1e9 / kv.nbytes))
    flops_per_byte = useful_flops(case) / case.kv_bytes
    peak = max(peak, unit.measure(threads, _SECONDS))
    read = Probe("read", lambda: probe_read(kv, threads, way, repeats))
    compute = Probe(unit.name, lambda: unit.measure(threads, _SECONDS) / flops_per_byte)
    times = {
        name: 1e-6 * case.kv_bytes / rate
        for name, rate in (("read", best), (unit.name, peak / flops_per_byte))
    }
    if times[unit.name] < _NEGLIGIBLE * times["read"]:
        return Roofline((read,), times)
    return Roofline((read, compute), times)
