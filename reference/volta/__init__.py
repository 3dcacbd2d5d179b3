"""Attention on Volta's tensor cores, as an executable specification: every lane, register and bank.

A fast kernel for these GPUs is an arrangement: which lane holds which element, where tiles lie in shared
memory, what passes between lanes. Each of these is a function of small integers, so NumPy can run it, tests
can prove it, and the CUDA kernels can be compared with it. Read in this order:

`layout`
    Functions from coordinates to addresses, as shapes and strides, and how they compose.
`swizzle`
    Permutations of addresses by XOR.
`fragments`
    Which lane holds which element of the operands of m8n8k4, m16n8k8 and m16n8k16, and what ldmatrix does.
`warp`
    Registers, shuffles and matrix instructions.
`bank_conflicts`
    How many cycles an access to shared memory takes.
`shared_memory`
    Loads and stores, counted as they happen.
`shared_layouts`
    Where Q, K, V and P lie in shared memory: the index functions of the kernels.
`atoms`, `quad_pairs`, `two_by_two`, `mma16`
    What a warp's scores and outputs are made of: two ways for Volta, one for its successors.
`search`
    How the layouts were found: paddings and swizzles against all accesses of a dataflow.
`kernel`, `tile`
    Attention of CTAs, lane by lane, equal to `standard.attention`.
`counts`
    The same work in closed form, to hold machine code against.

Examples
--------
>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> q, k, v = (rng.standard_normal((n, 64)).astype(np.float16) for n in (32, 96, 96))
>>> result = attention(q, k, v, kernel=Kernel(TwoByTwo(), warps=1), causal=True)
>>> result.out.shape, result.counts.wavefronts() - result.counts.ideal()  # no bank conflict
((32, 64), 0)
"""

from __future__ import annotations

from . import (
    atoms,
    bank_conflicts,
    counts,
    fragments,
    kernel,
    layout,
    mma16,
    quad_pairs,
    search,
    shared_layouts,
    shared_memory,
    swizzle,
    tile,
    two_by_two,
    warp,
)
from .kernel import Kernel
from .mma16 import Mma16
from .quad_pairs import QuadPairs
from .tile import attention
from .two_by_two import TwoByTwo

__all__ = [
    "Kernel",
    "Mma16",
    "QuadPairs",
    "TwoByTwo",
    "atoms",
    "attention",
    "bank_conflicts",
    "counts",
    "fragments",
    "kernel",
    "layout",
    "mma16",
    "quad_pairs",
    "search",
    "shared_layouts",
    "shared_memory",
    "swizzle",
    "tile",
    "two_by_two",
    "warp",
]
