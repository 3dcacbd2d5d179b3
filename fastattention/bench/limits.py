"""What this machine can do at best, measured by the probes that ship with the kernels.

A shared machine drifts, so limits are probed around every row, and a row is judged by the mean of the two
probes next to it: one just before its timing, one just after.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cpu_kernels import ISAS
from ..cpu_kernels._native import ffi, lib
from .cases import Case

__all__ = ["Limits", "arithmetic_limit", "probe", "probe_arithmetic", "probe_read"]

_SECONDS = 0.06  # each probe
_READ_REPEATS = 2  # for each of the probe's nine ways to read


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


def probe_arithmetic(threads: int, isa: str, seconds: float = _SECONDS) -> Limits:
    """Run the arithmetic probes on `threads` threads at the same time and add up.

    Parameters
    ----------
    threads : int
    isa : str
        One of `fastattention.cpu_kernels.ISAS`.
    seconds : float
        Time for each of the three probes.
    """
    if isa not in ISAS:
        raise ValueError(f"isa: expected one of {', '.join(ISAS)}, got {isa!r}")
    code = ISAS.index(isa)
    with ThreadPoolExecutor(threads) as pool:

        def total(function: Callable[..., float], *arguments: float) -> float:
            # cffi releases the GIL, so the probes run side by side.
            calls = [pool.submit(function, *arguments) for _ in range(threads)]
            return sum(call.result() for call in calls)

        return Limits(
            threads=threads,
            isa=isa,
            fma_gflops=total(lib.fa_probe_fma_gflops, code, seconds),
            bf16_dot_gflops=total(lib.fa_probe_bf16_dot_gflops, seconds),
            int8_dot_gops=total(lib.fa_probe_int8_dot_gops, seconds),
        )


def probe_read(buffer: NDArray[Any], threads: int, repeats: int = _READ_REPEATS) -> float:
    """Return the best rate, in GB/s (1e9 bytes), at which `threads` threads read `buffer` from end to end.

    The benchmark passes the very keys and values of the row it judges: whatever part of them the caches hold,
    they hold for the kernel and for the probe alike.
    """
    flat = buffer.reshape(-1).view(np.uint8)
    address = ffi.cast("void *", flat.ctypes.data)
    return float(lib.fa_probe_read_gbps(address, flat.nbytes, threads, repeats))


def arithmetic_limit(limits: Limits, dtype: str) -> tuple[str, float]:
    """Return name and value of the fastest arithmetic that may be used for `dtype`.

    float16 is widened to float32. For bfloat16 it is whichever is faster on this machine, the dot instruction
    or float32: some processors run the first at half the rate of the second.
    """
    if dtype == "bfloat16" and limits.isa == "avx512" and limits.bf16_dot_gflops > limits.fma_gflops:
        return "bf16 dot", limits.bf16_dot_gflops
    return f"{limits.isa} FMA" if limits.isa != "baseline" else "baseline mul+add", limits.fma_gflops


def probe(case: Case, kv: NDArray[Any], isa: str) -> tuple[str, float, Limits | None]:
    """Probe what limits `case`: (name, GFLOP/s or GB/s, all arithmetic probes where they were run)."""
    if case.kind == "decode":
        return "read", probe_read(kv, case.threads), None
    limits = probe_arithmetic(case.threads, isa)
    name, value = arithmetic_limit(limits, case.dtype)
    return name, value, limits
