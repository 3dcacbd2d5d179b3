"""Our side of a case: the call that is timed, and whether this build and this machine can make it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from .. import attention, cpu_kernels, get_isa, set_isa
from .cases import Case
from .data import Data
from .plan import explain, kernel_options

__all__ = ["forced_isa", "make_out", "missing", "our_call"]


def missing(case: Case, only: str | None = None) -> str | None:
    """Return why the case has no row here, or None when it has one.

    Parameters
    ----------
    case : Case
    only : str, optional
        The instruction set that the whole run was forced to.
    """
    if case.isa is not None:
        if case.isa not in cpu_kernels.available_isas():
            return f"this machine or this build lacks {case.isa}"
        if only not in (None, case.isa):
            return f"the run is forced to {only}, the row to {case.isa}"
    try:
        explain(case, case.isa or get_isa())
    except ValueError as problem:
        return f"this build has no kernels for it: {problem}"
    return None


@contextmanager
def forced_isa(case: Case, run_isa: str | None) -> Iterator[str]:
    """Set the instruction set that the case names, give the one in force; at the end go back to the run's.

    Parameters
    ----------
    case : Case
    run_isa : str or None
        What the whole run was forced to.
    """
    if case.isa is not None:
        set_isa(case.isa)
    try:
        yield get_isa()
    finally:
        if case.isa is not None:
            set_isa(run_isa)


def make_out(case: Case, data: Data) -> np.ndarray:
    """Return an output full of NaN, so that what a kernel leaves out shows."""
    return np.full((*data.q.shape[:3], case.value_dim), np.nan, dtype=data.q.dtype)


def our_call(case: Case, data: Data, out: np.ndarray) -> Callable[[], object]:
    """Return the call that is timed: the public function, validation and all.

    Pages and int8, which the public function takes in a `KVCache` only, go to the kernels as the cache hands
    them on.
    """
    if case.page_size is not None or case.dtype == "int8":
        return _kernel_call(case, data, out)

    def call() -> object:
        return attention(
            data.q,
            data.k,
            data.v,
            causal=case.causal,
            window=case.window,
            mask=data.mask,
            out=out,
            backend="cpu",
            num_threads=case.threads,
        )

    return call


def _kernel_call(case: Case, data: Data, out: np.ndarray) -> Callable[[], object]:
    if case.mask is not None:
        raise ValueError(f"{case.name}: masks over pages or int8 are no row of the benchmark")
    options = kernel_options(case, get_isa())
    if case.dtype == "int8":
        options |= {"k_scales": data.k_scales, "v_scales": data.v_scales}
    if case.page_size is not None:
        options |= {
            "block_table": data.block_table,
            "kv_lengths": np.full(case.batch, case.k_len, dtype=np.int64),
        }

    def call() -> object:
        cpu_kernels.attention(data.q, data.k, data.v, out, **options)
        return out

    return call
