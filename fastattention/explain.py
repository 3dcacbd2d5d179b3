"""What a call would do: which kernels, in which tiles, with how much memory. Nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import cuda_kind
from .backends import nothing_to_compute, plan, plan_on_device
from .config import get_isa, isa_source
from .device import device_of, scope
from .explain_gpu import GpuExplanation, nothing, of_call
from .table import kib, table
from .validate import Problem, validate

__all__ = ["Explanation", "GpuExplanation", "explain", "explanation"]


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """The plan of one call on the CPU; it prints as a table.

    Attributes
    ----------
    isa : str
        The instruction set whose kernels run.
    reason : str
        Why that one.
    kernel : str
        "decode": few query rows, bound by reading K and V; "prefill": many, bound by arithmetic; "none":
        nothing to compute.
    lanes : int
        float32 numbers of a vector.
    sub_rows : int
        Query rows of a register block.
    item_rows, key_tile : int
        Query rows (of all heads that share a KV head) and keys that are worked on at a time.
    key_splits, split_keys : int
        Into how many parts the keys are split, and how many keys each has at most.
    items, threads : int
        Pieces of work, and the threads that take them in turn.
    thread_bytes, shared_bytes : int
        Memory beyond inputs and outputs: of each thread, and of all together.
    l1_bytes, l2_bytes : int
        The cache sizes that the tiles were chosen for.
    """

    isa: str
    reason: str
    kernel: str
    lanes: int = 0
    sub_rows: int = 0
    item_rows: int = 0
    key_tile: int = 0
    key_splits: int = 0
    split_keys: int = 0
    items: int = 0
    threads: int = 0
    thread_bytes: int = 0
    shared_bytes: int = 0
    l1_bytes: int = 0
    l2_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Memory beyond inputs and outputs in all, in bytes."""
        return self.threads * self.thread_bytes + self.shared_bytes

    def __repr__(self) -> str:
        lines = [("instruction set", f"{self.isa} ({self.reason})"), ("kernel", _KERNELS[self.kernel])]
        if self.kernel != "none":
            lines += [
                ("tile", f"{self.item_rows} query rows x {self.key_tile} keys"),
                ("register block", f"{self.sub_rows} rows, vectors of {self.lanes} float32"),
                ("chosen for", f"L1 {kib(self.l1_bytes)}, L2 {kib(self.l2_bytes)}"),
                ("keys split in", f"{self.key_splits} x {self.split_keys}" if self.key_splits > 1 else "1"),
                ("pieces of work", f"{self.items} for {self.threads} thread{'s' * (self.threads != 1)}"),
                ("memory", f"{kib(self.thread_bytes)} a thread + {kib(self.shared_bytes)} shared"),
            ]
        return table(lines)


_KERNELS = {
    "decode": "decode (few query rows: bound by reading K and V)",
    "prefill": "prefill (many query rows: bound by arithmetic)",
    "none": "none (no query, or no key)",
}


def explain(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Any = None,
    alibi_slopes: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    kv_lengths: Any = None,
    q_offset: Any = None,
    return_lse: bool = False,
    out: Any = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Explanation | GpuExplanation:
    """Say what `attention` would do with these arguments, without doing it.

    Parameters
    ----------
    q, k, v, causal, window, mask, alibi_slopes, scale, softcap, sinks, kv_lengths, q_offset, return_lse, out
        As in `attention`. Only shapes, dtypes and the machine matter; contents are not read.
    backend : {"auto", "cpu", "gpu"}, default "auto"
        The reference has no plan.
    num_threads : int, optional
        As in `attention`.

    Returns
    -------
    Explanation, or GpuExplanation for arrays on a GPU
        A table when printed; its fields are numbers to work with.

    Raises
    ------
    TypeError, ValueError, ImportError, RuntimeError
        As in `attention`; ValueError for ``backend="reference"``.

    Notes
    -----
    For a GPU the kernel is compiled where it is not yet, as by the first call: into how many parts decode
    splits the keys depends on the registers that it takes. No result is computed, but memory for it is asked
    for, as the call would.

    See Also
    --------
    show_config : What the library runs on.

    Examples
    --------
    >>> import numpy as np
    >>> import fastattention
    >>> q = np.ones((1, 8, 1, 64), np.float32)
    >>> k = np.ones((1, 8, 4000, 64), np.float32)
    >>> fastattention.explain(q, k, k).kernel
    'decode'
    >>> fastattention.explain(k, k, k, causal=True).kernel
    'prefill'
    """
    arguments = (
        q, k, v, causal, window, mask, alibi_slopes, scale, softcap, sinks, kv_lengths, q_offset, return_lse,
        out, backend, num_threads,
    )  # fmt: skip
    if kind := cuda_kind(q):
        with scope(kind):
            return explanation(validate(*arguments), backend)
    return explanation(validate(*arguments), backend)


def explanation(problem: Problem, backend: str) -> Explanation | GpuExplanation:
    """Return the plan of a checked problem."""
    if backend == "reference":
        raise ValueError("backend: 'reference' runs no kernels, so there is nothing to explain; use 'cpu'")
    if isinstance(problem.q, np.ndarray):
        return _on_cpu(problem)
    if nothing_to_compute(problem):
        return nothing(device_of(problem.kind))
    return of_call(
        plan_on_device(problem), rows=problem.q.shape[1] // problem.k.shape[1] * problem.q.shape[2],
        q_dtype=problem.q.dtype.name, kv_dtype=problem.k.dtype.name, paged=problem.block_table is not None,
    )  # fmt: skip


def _on_cpu(problem: Problem) -> Explanation:
    asked, source = get_isa(), isa_source()
    how = f"asked for by {source}" if source else "the fastest here"
    if nothing_to_compute(problem):
        return Explanation(asked, how, "none")
    found = plan(problem)
    isa = found["isa"]
    kernel = "decode" if found["decode"] else "prefill"
    q_dtype, kv_dtype = str(problem.q.dtype), str(problem.k.dtype)
    dtypes = q_dtype if q_dtype == kv_dtype else f"{q_dtype} on {kv_dtype}"
    reason = how if isa == asked else f"better at {kernel} of {dtypes} than {asked}, {how}"
    return Explanation(
        isa, reason, kernel, found["lanes"], found["sub_rows"],
        found["item_rows"], found["key_tile"], found["splits"], found["key_split"], found["items"],
        found["threads"], found["thread_bytes"], found["shared_bytes"], found["l1_bytes"], found["l2_bytes"],
    )  # fmt: skip
