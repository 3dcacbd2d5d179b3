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

__all__ = ["KERNELS", "PROBES", "Compiled", "compiled", "compiled_probe", "options"]

#: Where the CUDA sources are: of the kernels, and of the probes of a card's limits (rates.py).
KERNELS = Path(__file__).with_name("kernels")
PROBES = Path(__file__).with_name("probes")

#: Beyond this many bytes, a kernel has to ask for its dynamic shared memory.
_PLAIN_SHARED = 48 * 1024

_compiled: dict[tuple[int, Configuration], Compiled] = {}
_locks: dict[tuple[int, Configuration], threading.Lock] = {}


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
        # Two threads that need the same kernel compile it once; others compile theirs meanwhile.
        with _locks.setdefault(key, threading.Lock()):
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
    return _build(
        configuration.file, source(configuration), options(configuration), configuration.entry,
        configuration.shared, card,
    )  # fmt: skip


@cache
def compiled_probe(name: str, macros: tuple[tuple[str, str], ...], card: Card) -> Compiled:
    """Return a probe, ``probes/<name>.cu``, for the current device, which is `card`.

    Parameters
    ----------
    name : str
    macros : tuple of (str, str)
        Without their prefix ``FA_``.
    card : Card

    Raises
    ------
    RuntimeError
        As `compiled`.
    """
    code = (PROBES / f"{name}.cu").read_text(encoding="utf-8")
    defines = (f"-DFA_{key}={value}" for key, value in macros)
    return _build(f"{name}.cu", code, ("-std=c++17", "-default-device", *defines), name, 0, card)


def _build(
    file: str, code: str, arguments: tuple[str, ...], entry: str, shared: int, card: Card
) -> Compiled:  # fmt: skip
    cupy = load_cupy()
    try:
        module = cupy.RawModule(code=code, options=arguments, backend="nvrtc")
        function = module.get_function(entry)
        if shared > _PLAIN_SHARED:
            function.max_dynamic_shared_size_bytes = shared
        return Compiled(function, int(function.num_regs))
    except (cupy.cuda.compiler.CompileException, RuntimeError, OSError, ImportError) as error:
        capability = f"{card.capability[0]}.{card.capability[1]}"
        raise RuntimeError(
            f"backend: 'gpu': {file} cannot be compiled for {card.name} (compute capability "
            f"{capability}) by CuPy {cupy.__version__}: {error}\nWhere CuPy finds no compiler (NVRTC), or "
            f"one that does not know this GPU: {WHEELS}"
        ) from error
