"""Kernels, compiled when they are first needed: once a process and device, and kept on disk by CuPy.

CuPy's cache on disk knows a kernel by its source, its options and the card, but not by the headers it
includes; so what they hold goes into the source, as a number in a comment.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .choose import Configuration
from .device import WHEELS, Card, load_cupy

__all__ = ["KERNELS", "Compiled", "compiled", "options"]

#: Where the CUDA sources are.
KERNELS = Path(__file__).with_name("kernels")

#: Beyond this many bytes, a kernel has to ask for its dynamic shared memory.
_PLAIN_SHARED = 48 * 1024

_compiled: dict[tuple[int, Configuration], Compiled] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Compiled:
    """A kernel that can be launched."""

    function: Any  # cupy.RawKernel
    registers: int  # of a thread


def options(configuration: Configuration) -> tuple[str, ...]:
    """Return what the compiler is told."""
    macros = (f"-DFA_{name}={value}" for name, value in configuration.macros)
    return ("-std=c++17", "-default-device", f"-I{KERNELS}", *macros)


@cache
def _headers() -> str:
    """Return a number that changes with any header."""
    digest = hashlib.sha256()
    for path in sorted(KERNELS.glob("*.cuh")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def source(configuration: Configuration) -> str:
    """Return the source of a kernel."""
    return f"// headers {_headers()}\n{(KERNELS / configuration.file).read_text(encoding='utf-8')}"


def compiled(configuration: Configuration, card: Card) -> Compiled:
    """Return a kernel for the current device, which is `card`.

    Raises
    ------
    RuntimeError
        CuPy finds no compiler, or the compiler refuses the kernel or the card.
    """
    key = card.number, configuration
    found = _compiled.get(key)
    if found is None:
        with _lock:  # two threads that need the same kernel compile it once
            found = _compiled.get(key)
            if found is None:
                found = _compiled[key] = _compile(configuration, card)
    return found


def _compile(configuration: Configuration, card: Card) -> Compiled:
    if configuration.shared > card.block_shared:
        raise RuntimeError(
            f"backend: 'gpu': {configuration.file} needs {configuration.shared} bytes of shared memory for "
            f"these head dimensions, and {card.name} gives a block {card.block_shared}"
        )
    cupy = load_cupy()
    try:
        module = cupy.RawModule(code=source(configuration), options=options(configuration), backend="nvrtc")
        function = module.get_function(configuration.entry)
        if configuration.shared > _PLAIN_SHARED:
            function.max_dynamic_shared_size_bytes = configuration.shared
        return Compiled(function, int(function.num_regs))
    except (cupy.cuda.compiler.CompileException, RuntimeError, OSError, ImportError) as error:
        capability = f"{card.capability[0]}.{card.capability[1]}"
        raise RuntimeError(
            f"backend: 'gpu': {configuration.file} cannot be compiled for {card.name} (compute capability "
            f"{capability}) by CuPy {cupy.__version__}: {error}\nWhere CuPy finds no compiler (NVRTC), or "
            f"one that does not know this GPU: {WHEELS}"
        ) from error
