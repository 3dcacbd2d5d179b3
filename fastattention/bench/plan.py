"""What the kernels would do with a case, asked without its arrays: whose kernels run, how much memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..cpu_kernels import ISAS
from ..cpu_kernels._native import ffi, lib
from .cases import Case

__all__ = ["Plan", "explain"]

_CODE = {
    "float32": lib.FA_FLOAT32,
    "float16": lib.FA_FLOAT16,
    "bfloat16": lib.FA_BFLOAT16,
    "int8": lib.FA_INT8,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A part of ``fa_plan``.

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


def explain(case: Case, isa: str) -> Plan:
    """Ask the kernels of `isa` for their plan.

    Raises
    ------
    ValueError
        When this build has no kernels for the case in `isa`.
    """
    p = ffi.new("fa_problem *")
    p.batch, p.q_heads, p.kv_heads = case.batch, case.q_heads, case.kv_heads
    p.q_len, p.k_len, p.head_dim, p.v_dim = case.q_len, case.k_len, case.head_dim, case.value_dim
    p.q_dtype, p.kv_dtype = _CODE[case.q_dtype], _CODE[case.dtype]
    p.window_left, p.window_right = case.window or (-1, -1)
    if case.causal:
        p.window_right = 0
    if case.mask:
        p.mask_kind = lib.FA_MASK_BOOL if case.mask == "bool" else lib.FA_MASK_FLOAT32
    # Nothing behind a pointer is read; that there is one tells pages and int8 from the rest.
    somewhere = ffi.new("int64_t *")
    if case.dtype == "int8":
        p.k_scales = p.v_scales = ffi.cast("float *", somewhere)
    if case.page_size:
        p.block_table = ffi.cast("int32_t *", somewhere)
        p.page_size, p.block_table_stride = case.page_size, case.k_len // case.page_size
    rows = case.page_size or case.k_len
    p.q_strides = (case.q_heads * case.q_len * case.head_dim, case.q_len * case.head_dim, case.head_dim)
    p.k_strides = (case.kv_heads * rows * case.head_dim, rows * case.head_dim, case.head_dim)
    p.v_strides = (case.kv_heads * rows * case.value_dim, rows * case.value_dim, case.value_dim)
    p.num_threads, p.isa = case.threads, ISAS.index(isa)
    plan = ffi.new("fa_plan *")
    if lib.fa_explain(p, plan) != lib.FA_OK:
        raise ValueError(f"isa: {isa!r}: no kernels for {case.name} here")
    return Plan(ISAS[plan.isa], int(plan.threads), int(plan.thread_bytes), int(plan.shared_bytes))
