"""Memory beyond inputs and output: what the kernels plan, and what the system says they took.

A planned figure could forget a buffer, so a process of its own makes the call, and the system's own count
tells: the peak of its resident memory (VmHWM) after the call, less what was resident just before. The same
heads, rows and keys as in the plan, with a window of some keys instead of all: that changes neither tiles nor
buffers (which is checked) and takes a second, not minutes.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import attention, set_isa
from .cases import DTYPES, Case
from .plan import explain

__all__ = ["MIB", "Memory", "measure_memory"]

MIB = 2**20

_WINDOW = (128, 0)
_STATUS = Path("/proc/self/status")
_SECONDS = 300  # more means that the child hangs


@dataclass(frozen=True, slots=True)
class Memory:
    """What one case needs.

    Attributes
    ----------
    case : Case
    thread_bytes, shared_bytes : int
        As planned: of each thread, and of all threads together.
    measured_bytes : int, optional
        Growth of the peak of resident memory over the call, all threads together; None where the system does
        not tell.
    how : str
        How it was measured, or why it was not.
    """

    case: Case
    thread_bytes: int
    shared_bytes: int
    measured_bytes: int | None
    how: str

    @property
    def planned_per_thread(self) -> float:
        """Planned bytes a thread, what all share divided among them."""
        return self.thread_bytes + self.shared_bytes / self.case.threads

    @property
    def per_thread(self) -> float:
        """The larger of plan and measurement, in bytes a thread."""
        measured = (self.measured_bytes or 0) / self.case.threads
        return max(measured, self.planned_per_thread)


def measure_memory(case: Case, isa: str) -> Memory:
    """Plan the case, and run it with a narrow window in a process of its own.

    Raises
    ------
    RuntimeError
        When the child fails, or the window would change the plan.
    """
    plan = explain(case, isa)
    windowed = replace(case, window=_WINDOW)
    if explain(windowed, isa) != plan:
        raise RuntimeError(f"{case.name}: a window changes the plan, so it cannot stand for the case")
    how = f"growth of peak RSS in a process of its own, all rows, window of {_WINDOW[0] + 1} keys"
    if not _STATUS.exists():
        return Memory(case, plan.thread_bytes, plan.shared_bytes, None, "not measured: no /proc here")
    sizes = (case.q_heads, case.kv_heads, case.q_len, case.k_len, case.head_dim, case.threads)
    command = [sys.executable, "-m", __name__, isa, case.dtype, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{case.name}: measuring the memory failed: {done.stderr.strip()}")
    return Memory(case, plan.thread_bytes, plan.shared_bytes, int(done.stdout), how)


def resident(field: str) -> int:
    """Return a count of ``/proc/self/status`` in bytes: "VmRSS", or its peak, "VmHWM"."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"{_STATUS} has no {field}")


def growth(case: Case) -> int:
    """Make the case's call, with the window, and return by how much the peak of resident memory grew."""
    rng = np.random.default_rng(0)
    dtype = DTYPES[case.dtype]

    def array(heads: int, length: int) -> np.ndarray:
        # One head's rows serve all heads, by a stride of 0: kernels take any strides, and gigabytes less lie
        # here.
        rows = rng.standard_normal((1, 1, length, case.head_dim), dtype=np.float32).astype(dtype)
        return np.broadcast_to(rows, (1, heads, length, case.head_dim))

    q = array(case.q_heads, case.q_len)
    k, v = array(case.kv_heads, case.k_len), array(case.kv_heads, case.k_len)

    def call(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
        attention(q, k, v, causal=True, window=_WINDOW, out=out, backend="cpu", num_threads=case.threads)

    # A small call first: it loads code and starts threads, which stay for all calls to come.
    few = slice(512)
    call(q[:, :, few], k[:, :, few], v[:, :, few], np.empty((1, case.q_heads, 512, case.head_dim), dtype))
    out = np.zeros((1, case.q_heads, case.q_len, case.head_dim), dtype=dtype)
    out.fill(1)  # every page of it is resident before the call
    before = resident("VmRSS")
    call(q, k, v, out)
    return resident("VmHWM") - before


def _main() -> None:
    isa, dtype, *sizes = sys.argv[1:]
    q_heads, kv_heads, q_len, k_len, head_dim, threads = map(int, sizes)
    set_isa(isa)
    case = Case("memory", dtype, q_heads, kv_heads, q_len, k_len, head_dim, causal=True, threads=threads)
    print(growth(case))


if __name__ == "__main__":
    _main()
