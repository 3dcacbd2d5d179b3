"""What the library runs on: instruction set, threads and GPU. Settings of the process, and a report.

Settings hold for every thread of the process. They are read at the start of each call, so a change never
reaches a call that is already running.
"""

from __future__ import annotations

import os
import platform
import sys
from operator import index
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from . import cpu_kernels, gpu

__all__ = ["get_gpu_atom", "get_isa", "num_threads", "set_gpu_atom", "set_isa", "show_config"]

ISA_VARIABLE = "FASTATTENTION_ISA"

#: More threads than any machine has; a number beyond it is a mistake that would exhaust the system.
MAX_THREADS = 1024

_forced_isa: str | None = None  # by set_isa; then also in force
_isa: str | None = None  # in force; None until somebody needs it
_threads: int | None = None  # by num_threads; None: as many as OpenMP would start


def _check_isa(name: object, source: str) -> str:
    available = cpu_kernels.available_isas()
    if isinstance(name, str) and name in available:
        return name
    why = "this machine or this build lacks it" if name in cpu_kernels.ISAS else "no such instruction set"
    raise ValueError(f"{source}: {name!r}: {why}; available: {', '.join(available)}")


def get_isa() -> str:
    """Return the instruction set that the CPU kernels use.

    It is the one forced with `set_isa`; else the one that the environment variable ``FASTATTENTION_ISA``
    names; else the fastest that this build has and this machine runs. The environment is read
    once, at the first use.

    Returns
    -------
    str
        "baseline", "avx2", "avx512", ... as in ``fastattention.cpu_kernels.available_isas()``.

    Raises
    ------
    ValueError
        When ``FASTATTENTION_ISA`` names one that is not available.

    Examples
    --------
    >>> import fastattention
    >>> fastattention.get_isa() in fastattention.cpu_kernels.available_isas()
    True
    """
    global _isa
    if _isa is None:
        wanted = os.environ.get(ISA_VARIABLE)
        _isa = _check_isa(wanted, ISA_VARIABLE) if wanted else cpu_kernels.default_isa()
    return _isa


def set_isa(name: str | None) -> None:
    """Force the instruction set of the CPU kernels, for the whole process.

    Parameters
    ----------
    name : str or None
        One of ``fastattention.cpu_kernels.available_isas()``. None undoes an earlier call:
        ``FASTATTENTION_ISA`` where it is set, else the fastest available.

    Raises
    ------
    ValueError
        When this machine or this build lacks it; what was in force stays in force.

    Examples
    --------
    >>> import fastattention
    >>> fastattention.set_isa("baseline")
    >>> fastattention.get_isa()
    'baseline'
    >>> fastattention.set_isa(None)
    """
    global _forced_isa, _isa
    forced = None if name is None else _check_isa(name, "set_isa")
    _forced_isa, _isa = forced, forced


def get_gpu_atom() -> int:
    """Return which GPU kernels run on the current CUDA device, by the tensor-core instructions they use.

    Returns
    -------
    int
        70 (Volta), 75 (Turing) or 80 (Ampere and later): what was forced with `set_gpu_atom`, else the newest
        that the device has.

    Raises
    ------
    ImportError
        CuPy is not installed.
    RuntimeError
        There is no CUDA device, or the installed CuPy cannot serve it.
    ValueError
        The device is older than Volta.
    """
    return gpu.get_atom()


def set_gpu_atom(atom: int | None) -> None:
    """Force the GPU kernels of a generation, for the whole process: newer cards run those of older ones, too.

    They then run in the tiles that fit that generation's cards: what is tested is what those would run.

    Parameters
    ----------
    atom : {70, 75, 80} or None
        None undoes an earlier call.

    Raises
    ------
    ValueError
        There are no such kernels, or the device lacks what they need; what was in force stays in force.
    ImportError, RuntimeError
        As `get_gpu_atom`.
    """
    gpu.set_atom(atom)


def isa_source() -> str:
    """Return who asked for the instruction set in force: "set_isa", the variable's name, or "": nobody."""
    if _forced_isa is not None:
        return "set_isa"
    return ISA_VARIABLE if os.environ.get(ISA_VARIABLE) else ""


class _ThreadCount(int):
    """A number of threads that, used in a ``with`` statement, puts back what was set before it."""

    before: int | None

    def __enter__(self) -> _ThreadCount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _threads
        _threads = self.before


def check_threads(n: Any) -> int:
    """Return a number of threads as an int; raise naming `num_threads` when it is none."""
    try:
        count = index(n)
    except Exception:  # whatever an object of somebody's raises instead
        count = 0
    if isinstance(n, (bool, np.bool_)) or not 1 <= count <= MAX_THREADS:
        raise ValueError(f"num_threads: expected an integer from 1 to {MAX_THREADS}, got {n!r}")
    return count


def threads() -> int:
    """Return how many threads a call takes that does not say."""
    return cpu_kernels.max_threads() if _threads is None else _threads


_ASK: Any = object()


def num_threads(n: int | None = _ASK) -> _ThreadCount:
    """Set, or ask for, the number of threads of the CPU kernels, for the whole process.

    Without a setting it is what OpenMP would start: ``OMP_NUM_THREADS`` where it is set, else the cores that
    the process may run on. A call's own ``num_threads=`` goes before either.

    Parameters
    ----------
    n : int or None, optional
        From 1 to 1024; None goes back to OpenMP's number. Left out: nothing is changed.

    Returns
    -------
    int
        The number now in force. As a context manager it puts the earlier setting back at the end of the
        block.

    Raises
    ------
    ValueError
        When `n` is no integer from 1 to 1024.

    Examples
    --------
    >>> import fastattention
    >>> with fastattention.num_threads(1):
    ...     int(fastattention.num_threads())
    1
    """
    global _threads
    before = _threads
    if n is not _ASK:
        _threads = None if n is None else check_threads(n)
    count = _ThreadCount(threads())
    count.before = before
    return count


def _tile(head_dim: int) -> tuple[int, int]:
    """Return the tile (query rows, keys) of a long prefill of eight heads."""
    from .explain import explain  # which reads the settings above

    q = np.broadcast_to(np.zeros(head_dim, np.float32), (1, 8, 4096, head_dim))
    plan = explain(q, q, q, causal=True)
    return plan.item_rows, plan.key_tile


def _gpu_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return f"none: {gpu.why_not()}"
    major, minor = found["compute_capability"]
    forced = " (set_gpu_atom)" if gpu.forced_atom() is not None else ""
    return (
        f"{found['name']}, compute capability {major}.{minor}, kernels {found['atom']}{forced}, "
        f"CuPy {found['cupy']} (CUDA {found['cuda'] // 1000}.{found['cuda'] % 1000 // 10})"
    )


def show_config() -> dict[str, Any]:
    """Print what the library runs on, and return it.

    Returns
    -------
    dict
        "version", "isa" (in force), "isas" (available), "threads", "compiler", "cache_bytes" (L1 data, L2,
        L3; 0 where unknown), "tiles" (by head dimension: (query rows, keys) that a long float32 prefill works
        on at a time), "machine", "python", "numpy", "ml_dtypes", "gpu" (None, or a dict of the current
        device: "name", "compute_capability", "atom", "cupy", "cuda").

    Raises
    ------
    ValueError
        When ``FASTATTENTION_ISA`` names an instruction set that is not available.
    """
    from . import __version__

    config: dict[str, Any] = {
        "version": __version__,
        "isa": get_isa(),
        "isas": cpu_kernels.available_isas(),
        "threads": threads(),
        "compiler": cpu_kernels.compiler(),
        "cache_bytes": cpu_kernels.cache_bytes(),
        "tiles": {head_dim: _tile(head_dim) for head_dim in (64, 128)},
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "gpu": gpu.describe(),
    }
    source = isa_source()
    reason = f" ({source})" if source else ""
    caches = ", ".join(
        f"L{level} {size // 1024} KiB" for level, size in enumerate(config["cache_bytes"], start=1) if size
    )
    tiles = (f"D={head_dim}: {rows} x {keys}" for head_dim, (rows, keys) in config["tiles"].items())
    lines = [
        ("fastattention", config["version"]),
        ("instruction set", config["isa"] + reason),
        ("available", ", ".join(config["isas"])),
        ("threads", str(config["threads"])),
        ("compiler", config["compiler"]),
        ("caches", caches or "unknown"),
        ("prefill tiles", f"{', '.join(tiles)} (query rows x keys, float32)"),
        ("machine", config["machine"]),
        ("python", config["python"]),
        ("numpy, ml_dtypes", f"{config['numpy']}, {config['ml_dtypes']}"),
        ("gpu", _gpu_line(config["gpu"])),
    ]
    sys.stdout.write("".join(f"{label:<17} {value}\n" for label, value in lines))
    return config
