"""CUDA kernels for Volta and its neighbours, compiled by CuPy at run time, and the launcher of them.

``fastattention.attention(..., backend="gpu")`` validates and is what people call. Kernel authors who measure
one call with no validation around it find `attention` here, on CuPy arrays. CuPy is imported by the first
call that needs it.
"""

from __future__ import annotations

from . import rates
from .cache_rows import append, upload, zeros
from .carry import carry, mapped
from .choose import ATOMS, DECODE_ROWS, Configuration, atom_of, configure
from .compile import KERNELS, compiled
from .device import Card, available, card, describe, forced_atom, get_atom, load_cupy, set_atom, why_not
from .launch import attention, configuration_of, explain, no_room
from .merge import MOST_PARTS, merge
from .plan import Explained, Plan

__all__ = [
    "ATOMS", "DECODE_ROWS", "KERNELS", "MOST_PARTS", "Card", "Configuration", "Explained", "Plan", "append",
    "atom_of", "attention", "available", "card", "carry", "compiled", "configuration_of", "configure",
    "describe", "explain", "forced_atom", "get_atom", "load_cupy", "mapped", "merge", "no_room", "rates",
    "set_atom", "upload", "why_not", "zeros",
]  # fmt: skip
