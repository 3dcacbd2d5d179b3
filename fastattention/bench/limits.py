"""What this machine can do at best, measured by the probes that ship with the kernels.

A shared machine drifts within seconds, so a row is timed in rounds, with a short probe of its limit between
any two (see `rounds`). What the probe of a row runs, which instruction or which way to read, is chosen once.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cpu_kernels import ISAS
from ..cpu_kernels._native import ffi, lib
from .cases import Case

__all__ = [
    "READ_WAYS",
    "Limits",
    "Probe",
    "arithmetic_name",
    "choose_probe",
    "probe_arithmetic",
    "probe_read",
]

_SECONDS = 0.03  # of a probe between two rounds, a third of it a warm-up
_SURVEY_SECONDS = 0.06  # of a probe that no row waits for
_SWEEPS = 2  # over the ways to read, when the best is chosen

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
    """

    threads: int
    isa: str
    fma_gflops: float
    bf16_dot_gflops: float
    int8_dot_gops: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What limits a case, and how to measure it.

    Attributes
    ----------
    name : str
        Such as "avx512 FMA", "bf16 dot" or "read".
    measure : callable
        Takes some hundredths of a second; returns GFLOP/s or GB/s.
    """

    name: str
    measure: Callable[[], float]


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


def _bf16_dot(threads: int, seconds: float) -> float:
    return _total(threads, lib.fa_probe_bf16_dot_gflops, seconds)


def probe_arithmetic(threads: int, isa: str, seconds: float = _SURVEY_SECONDS) -> Limits:
    """Run every arithmetic probe, each on `threads` threads at the same time, and add up.

    Parameters
    ----------
    threads : int
    isa : str
        One of `fastattention.cpu_kernels.ISAS`.
    seconds : float
        Time for each of the three probes.
    """
    return Limits(
        threads=threads,
        isa=isa,
        fma_gflops=_fma(threads, isa, seconds),
        bf16_dot_gflops=_bf16_dot(threads, seconds),
        int8_dot_gops=_total(threads, lib.fa_probe_int8_dot_gops, seconds),
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
    return f"{isa} FMA" if isa != "baseline" else "baseline mul+add"


def choose_probe(case: Case, kv: NDArray[Any], isa: str) -> Probe:
    """Return the probe that `case` is judged by, after trying those that might be.

    Decode is limited by reading, in the fastest of the ways on these very keys and values. Prefill is limited
    by arithmetic. float16 is widened to float32. For bfloat16 it is whichever is faster on this machine, the
    dot instruction or float32: some processors run the first at half the rate of the second.
    """
    threads = case.threads
    if case.kind == "decode":
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
        way = rates.index(best)
        repeats = max(1, math.ceil(_SECONDS * best * 1e9 / kv.nbytes))
        return Probe("read", lambda: probe_read(kv, threads, way, repeats))
    if (
        case.dtype == "bfloat16"
        and isa == "avx512"
        and _bf16_dot(threads, _SECONDS) > _fma(threads, isa, _SECONDS)
    ):
        return Probe("bf16 dot", lambda: _bf16_dot(threads, _SECONDS))
    return Probe(arithmetic_name(isa), lambda: _fma(threads, isa, _SECONDS))
