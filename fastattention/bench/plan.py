"""What the kernels would do with a case, asked without its data: whose kernels run, how much memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import cpu_kernels
from .cases import DTYPES, Case

__all__ = ["Plan", "explain", "kernel_options"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A part of what `cpu_kernels.explain` returns.

    Attributes
    ----------
    isa : str
        Whose kernels run: the set asked for, or an older one where that has none for the case.
    threads : int
        That will work, at most the case's.
    thread_bytes, shared_bytes : int
        Memory beyond inputs and output: of each thread, and of all together.
    """

    isa: str
    threads: int
    thread_bytes: int
    shared_bytes: int


def kernel_options(case: Case, isa: str) -> dict[str, Any]:
    """Return the arguments of `cpu_kernels.attention` that are no arrays."""
    left, right = case.window or (-1, -1)
    options: dict[str, Any] = {
        "scale": case.head_dim**-0.5,
        "window_left": left,
        "window_right": 0 if case.causal else right,
        "num_threads": case.threads,
        "isa": isa,
    }
    if case.page_size is not None:
        options |= {"page_size": case.page_size, "max_seqlen_k": case.k_len}
    return options


def explain(case: Case, isa: str) -> Plan:
    """Ask the kernels of `isa` for their plan.

    Raises
    ------
    ValueError
        When this build has no kernels for the case in `isa`, or the machine cannot run them.
    """

    def empty(*shape: int, dtype: str, last: int = 1) -> np.ndarray:
        # One row stands for all, by strides of 0: no gigabytes are taken to ask a question.
        return np.broadcast_to(np.empty(last, DTYPES[dtype]), (*shape, last))

    options = kernel_options(case, isa)
    places = (case.batch, case.kv_heads, case.k_len)
    if case.page_size is not None:
        count = case.k_len // case.page_size
        places = (case.batch * count, case.kv_heads, case.page_size)
        options["block_table"] = np.zeros((case.batch, count), np.int32)
        options["kv_lengths"] = np.full(case.batch, case.k_len, np.int64)
    if case.dtype == "int8":
        scales = np.broadcast_to(np.empty(1, np.float32), places)
        options |= {"k_scales": scales, "v_scales": scales}
    if case.mask is not None:
        mask = np.empty(1, bool if case.mask == "bool" else np.float32)
        options["mask"] = np.broadcast_to(mask, (case.batch, case.q_heads, case.q_len, case.k_len))
    queries = (case.batch, case.q_heads, case.q_len)
    plan = cpu_kernels.explain(
        empty(*queries, dtype=case.q_dtype, last=case.head_dim),
        empty(*places, dtype=case.dtype, last=case.head_dim),
        empty(*places, dtype=case.dtype, last=case.value_dim),
        empty(*queries, dtype=case.q_dtype, last=case.value_dim),
        **options,
    )
    return Plan(plan["isa"], plan["threads"], plan["thread_bytes"], plan["shared_bytes"])
