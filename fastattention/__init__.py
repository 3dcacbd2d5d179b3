"""Exact attention, readable, proven and fast.

`attention` computes it, `attention_varlen` over packed sequences; `KVCache` holds a decoder's keys and
values; `merge` joins attention over parts of the keys; `explain` says what a call would do. `reference` is
the specification that every kernel is tested against; `verify` holds anybody's kernel to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from . import cpu_kernels, reference
except ImportError as _error:
    if not (Path(__file__).parent / "cpu_kernels").is_dir():
        raise ImportError(
            "fastattention is being imported from its source checkout, where its kernels are not built. "
            "Install it (`pip install .` in the checkout; `make dev` to work on it), or start Python in "
            "another directory."
        ) from _error
    raise

from .attention import attention, attention_varlen
from .cache import KVCache
from .config import get_gpu_atom, get_isa, num_threads, set_gpu_atom, set_isa, show_config
from .explain import Explanation, GpuExplanation, explain
from .merge import merge
from .offload.plan import OffloadPlan, plan_offload
from .verify import verify

__all__ = [
    "Explanation",
    "GpuExplanation",
    "KVCache",
    "OffloadPlan",
    "attention",
    "attention_varlen",
    "cpu_kernels",
    "explain",
    "get_gpu_atom",
    "get_isa",
    "merge",
    "num_threads",
    "plan_offload",
    "reference",
    "set_gpu_atom",
    "set_isa",
    "show_config",
    "verify",
]


if TYPE_CHECKING:  # with __getattr__ in sight, a type checker would take any name for one that is there
    __version__: str
else:

    def __getattr__(name: str) -> Any:
        # Read when asked for: importlib.metadata takes longer to import than all the rest.
        if name == "__version__":
            from importlib.metadata import version

            return version("fastattention")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
