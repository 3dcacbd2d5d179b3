"""What a call costs before and after the kernel.

The bound is generous, so that a busy machine does not fail it: it catches an `inspect`, an import or a copy
that slips into every call, not a microsecond. For the figure itself, run this file on a quiet core::

    taskset -c 0 python tests/api/test_overhead.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np

import fastattention
from fastattention import cpu_kernels
from fastattention.validate import validate


def measure(call, repeats=20_000):
    """Return the median and the fastest time of a call, in microseconds."""
    for _ in range(100):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3, min(times) / 1e3


def tiny():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 1, 1, 64)).astype(np.float32)
    k = rng.standard_normal((1, 1, 16, 64)).astype(np.float32)
    return q, k, k.copy()


def test_a_tiny_call_costs_microseconds():
    q, k, v = tiny()
    _, fastest = measure(lambda: fastattention.attention(q, k, v, num_threads=1), repeats=2000)
    assert fastest < 300


if __name__ == "__main__":
    q, k, v = tiny()
    out = np.empty_like(q)
    options = [None] * 8  # window ... q_offset
    cache = fastattention.KVCache(1, 1, 64, dtype=np.float32, max_length=64)
    cache.append(k, v)
    one = np.ones((1, 3, 1, 64), np.float32)
    appends = {}
    for dtype in ("float32", "float16", "int8"):
        for page_size in (None, 16):
            kept = fastattention.KVCache(1, 3, 64, dtype=dtype, max_length=10**6, page_size=page_size)
            name = f"append one token, {dtype}{', pages' if page_size else ''}"
            appends[name] = lambda kept=kept: kept.append(one, one)
    for name, call in {
        "nothing (the clock)": lambda: None,
        "attention": lambda: fastattention.attention(q, k, v, num_threads=1),
        "attention, causal, lse, out": lambda: fastattention.attention(
            q, k, v, causal=True, return_lse=True, out=out, num_threads=1
        ),
        "of it, validate": lambda: validate(q, k, v, False, *options, False, None, "auto", 1),
        "of it, cpu_kernels.attention": lambda: cpu_kernels.attention(
            q, k, v, out, scale=0.125, isa=fastattention.get_isa()
        ),
        "KVCache.attend": lambda: cache.attend(q, num_threads=1),
        **appends,
    }.items():
        median, fastest = measure(call)
        print(f"{name:<34} median {median:6.2f} us, fastest {fastest:6.2f} us")
