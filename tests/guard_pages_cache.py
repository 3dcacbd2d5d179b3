"""int8 and paged K and V that end at a page nobody may touch. A read too far kills this process.

    python guard_pages_cache.py ISA

Started by test_paged.py in a process of its own; prints what it is about to compute.
"""

from __future__ import annotations

import sys
from itertools import product

import ml_dtypes
import numpy as np
from fastattention.reference import standard
from guard_pages import fenced
from stored import Stored, attend, dequantized, paged, quantized


def ends_with_its_rows(x: np.ndarray | None, rows: int) -> np.ndarray | None:
    """The pool `x`, of one head, whose last page holds `rows` rows; what would follow is forbidden memory."""
    if x is None:
        return None
    flat = x.reshape(len(x) * x.shape[2], *x.shape[3:])
    missing = x.shape[2] - rows
    memory = fenced(flat[: len(flat) - missing], "end")
    return np.lib.stride_tricks.as_strided(memory, x.shape, x.strides)


def last_page_last(stored: Stored, length: int) -> Stored:
    """One sequence's pages in a pool that ends with its last row."""
    assert stored.table is not None
    pages = stored.table[0, : -(-length // stored.k.shape[2])]
    rows = length - (len(pages) - 1) * stored.k.shape[2]
    order = np.r_[np.arange(len(pages) - 1)[::-1], len(pages) - 1]  # the last one last, the others backwards

    def pool(x: np.ndarray | None) -> np.ndarray | None:
        return (
            None if x is None else ends_with_its_rows(np.ascontiguousarray(x[pages][np.argsort(order)]), rows)
        )

    k, v = pool(stored.k), pool(stored.v)
    assert k is not None
    assert v is not None
    table = fenced(order[None].astype(np.int32), "end")
    return Stored(k, v, pool(stored.k_scales), pool(stored.v_scales), table)


def main(isa: str) -> None:
    """Every type of rows, odd widths, lengths around page ends, few queries and many."""
    rng = np.random.default_rng(0)
    widths = (1, 5, 7, 8, 15, 16, 17, 33, 64, 65, 100, 129)
    lengths = (1, 2, 7, 8, 16, 17, 63, 64, 65, 130, 200)
    kinds = (np.float32, np.float16, ml_dtypes.bfloat16, np.int8)
    for turn, (kind, page_size, width) in enumerate(product(kinds, (None, 1, 3, 8, 16, 64), widths)):
        for i, q_len in enumerate((1, 3, 9, 30)):
            v_dim, length = widths[(turn * 5 + i) % len(widths)], lengths[(turn + 3 * i) % len(lengths)]
            q = fenced(rng.standard_normal((1, 2, q_len, width)).astype(np.float32), "end")
            k, v = (rng.standard_normal((1, 1, length, d)).astype(np.float32) for d in (width, v_dim))
            if kind is np.int8:
                stored = quantized(k, v)
                k, v = dequantized(stored)
            else:
                stored = Stored(k.astype(kind), v.astype(kind))
                k, v = stored.k, stored.v
            print(
                f"{np.dtype(kind)}, pages of {page_size}, D {width} {v_dim}, {q_len} x {length}", flush=True
            )
            given = {"kv_lengths": np.array([length])}
            if page_size is None:
                parts = (stored.k, stored.v, stored.k_scales, stored.v_scales)
                stored = Stored(*(None if x is None else fenced(x, "end") for x in parts))
            else:
                stored = last_page_last(paged(stored, given["kv_lengths"], page_size, rng), length)
            out, _ = attend(q, stored, given, isa=isa)
            expected, _ = standard.attention(q, k, v)
            np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])
