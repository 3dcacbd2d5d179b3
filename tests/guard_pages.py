"""Run attention on arrays that end, or begin, at a page nobody may touch. A read too far kills this process.

    python guard_pages.py ISA

Started by test_guard_pages.py in a process of its own; prints what it is about to compute, so that the last
line names what it died of.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
from fastattention.reference import standard

import fastattention

PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_kept: list[mmap.mmap] = []

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def fenced(x: np.ndarray, side: str) -> np.ndarray:
    """A copy of `x` whose last byte (side "end") or first byte ("start") lies next to a forbidden page."""
    room = -(-max(x.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    _kept.append(memory)
    whole = np.frombuffer(memory, dtype=np.uint8)
    base = whole.__array_interface__["data"][0]
    for page in (base, base + PAGE + room):
        if _libc.mprotect(page, PAGE, _PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    begin = PAGE + room - x.nbytes if side == "end" else PAGE
    view = whole[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def longer(x: np.ndarray, rows: int) -> np.ndarray:
    """The same memory called `rows` long: what follows the real rows must never be read."""
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:2], rows, x.shape[3]), x.strides)


def compute(
    text: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray | None, **options: Any
) -> None:
    """Call attention and compare coarsely: reading garbage instead of crashing shows as well."""
    print(text, flush=True)
    out = fastattention.attention(q, k, v, out=out, num_threads=1, **options)
    keys = int(options["kv_lengths"].max()) if "kv_lengths" in options else k.shape[2]
    real = {name: value for name, value in options.items() if name != "kv_lengths"}
    expected, _ = standard.attention(q, k[:, :, :keys], v[:, :, :keys], **real)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=2e-2, atol=2e-2)


def main(isa: str) -> None:
    """Every dtype, many sizes, both ends; then masks and lengths."""
    fastattention.set_isa(isa)
    rng = np.random.default_rng(0)
    dims = (1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129)
    keys = (1, 3, 4, 5, 7, 8, 33, 65, 97, 130)
    queries = (1, 2, 5, 9, 20, 50)
    for turn, (dtype, d) in enumerate(product((np.float32, np.float16, ml_dtypes.bfloat16), dims)):
        for i in range(4):
            side = ("end", "start")[(turn + i) % 2]
            v_dim, k_len, q_len = (
                dims[(turn * 5 + i) % 14],
                keys[(turn + 3 * i) % 10],
                queries[(turn + i) % 6],
            )
            shapes = ((1, 1, q_len, d), (1, 1, k_len, d), (1, 1, k_len, v_dim), (1, 1, q_len, v_dim))
            q, k, v, out = (fenced(rng.standard_normal(shape).astype(dtype), side) for shape in shapes)
            text = f"{np.dtype(dtype)} D={d} Dv={v_dim} Sq={q_len} Sk={k_len} {side}"
            compute(text, q, k, v, out)
            kind = (np.bool_, np.float32)[i % 2]
            mask = rng.random((1, 1, q_len, k_len)) < 0.8
            mask[..., 0] = True
            mask = fenced(mask if kind is np.bool_ else np.where(mask, 0, -np.inf).astype(np.float32), side)
            vectors = {"alibi_slopes": fenced(np.full(1, 0.1, np.float32), side)}
            compute(
                f"{text} mask", q, k, v, out, mask=mask, sinks=fenced(np.ones(1, np.float32), side), **vectors
            )
            if side == "end":
                k, v = longer(k, k_len + 400), longer(v, k_len + 400)
                # No `out` here: k and v now claim memory past their page, where `out` may happen to lie.
                compute(f"{text} shorter than it says", q, k, v, None, kv_lengths=np.array([k_len]))
            _kept.clear()


if __name__ == "__main__":
    main(sys.argv[1])
