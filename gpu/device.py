"""CuPy and the card: found when first needed, and when not, an error that says what to install."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from .choose import ATOMS, atom_of

__all__ = ["Card", "available", "card", "describe", "get_atom", "load_cupy", "set_atom", "why_not"]

WHEELS = (
    "pip install 'cupy-cuda12x[ctk]' for compute capability below 7.5 (V100: CUDA 13 dropped Volta), "
    "'cupy-cuda13x[ctk]' or 'cupy-cuda12x[ctk]' for newer GPUs, as the driver allows"
)

_forced: int | None = None


@dataclass(frozen=True)
class Card:
    """What the launcher asks of a GPU."""

    number: int
    name: str
    capability: tuple[int, int]
    sms: int
    sm_threads: int
    sm_registers: int
    sm_shared: int
    block_shared: int  # bytes of shared memory that a CTA can have

    def shared_for(self, atom: int) -> int | None:
        """Return what `choose.configure` is told of shared memory: of another generation's atom, nothing.

        A forced atom so runs as on its own generation's cards, in their tiles.
        """
        return self.sm_shared if atom == atom_of(*self.capability) else None


def load_cupy() -> Any:
    """Import CuPy.

    Raises
    ------
    ImportError
        It is not installed, or cannot be imported.
    """
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"backend: 'gpu' needs CuPy, which cannot be imported ({error}): {WHEELS}"
        ) from error
    return cupy


def card(number: int | None = None) -> Card:
    """Return a GPU's properties; of the current device by default.

    Raises
    ------
    ImportError
        There is no CuPy.
    RuntimeError
        There is no driver or no GPU, or the installed CuPy cannot serve this one.
    ValueError
        The GPU is older than Volta.
    """
    cupy = load_cupy()
    try:
        current = int(cupy.cuda.runtime.getDevice()) if number is None else number
        return _card(current)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"backend: 'gpu' found no CUDA device that works: {error}") from error


@cache
def _card(number: int) -> Card:
    runtime = load_cupy().cuda.runtime
    p = runtime.getDeviceProperties(number)
    name = p["name"].decode() if isinstance(p["name"], bytes) else str(p["name"])
    capability = int(p["major"]), int(p["minor"])
    atom_of(*capability)
    cuda = int(runtime.runtimeGetVersion())
    if capability < (7, 5) and cuda >= 13000:
        raise RuntimeError(
            f"backend: 'gpu': {name} has compute capability {capability[0]}.{capability[1]}, which CUDA 13 "
            f"dropped, and the installed CuPy is built with CUDA {cuda // 1000}: "
            "pip uninstall cupy-cuda13x, then pip install 'cupy-cuda12x[ctk]'"
        )
    return Card(
        number, name, capability, int(p["multiProcessorCount"]), int(p["maxThreadsPerMultiProcessor"]),
        int(p["regsPerMultiprocessor"]), int(p["sharedMemPerMultiprocessor"]),
        int(p["sharedMemPerBlockOptin"]),
    )  # fmt: skip


def why_not() -> str:
    """Return why the GPU backend cannot run here; empty where it can."""
    try:
        card()
    except (ImportError, RuntimeError, ValueError) as error:
        return str(error)
    return ""


def available() -> bool:
    """Return whether the GPU backend can run here."""
    return not why_not()


def get_atom(number: int | None = None) -> int:
    """Return which kernels run on a GPU (by default the current device): 70, 75 or 80.

    Raises
    ------
    ImportError, RuntimeError, ValueError
        As `card`; ValueError also where `set_atom` asked for more than this GPU has.
    """
    here = card(number)
    own = atom_of(*here.capability)
    if _forced is not None and _forced > own:
        raise ValueError(f"set_gpu_atom: {here.name} has kernels up to {own}, {_forced} is in force")
    return own if _forced is None else _forced


def set_atom(atom: int | None) -> None:
    """Force the kernels of an atom, for the whole process; None goes back to each card's own.

    Raises
    ------
    ValueError
        There is none of that number, or the current GPU lacks it. What was in force stays in force.
    """
    global _forced
    if atom is not None:
        if isinstance(atom, bool) or atom not in ATOMS:
            raise ValueError(f"set_gpu_atom: expected None or one of {ATOMS}, got {atom!r}")
        here = card()
        own = atom_of(*here.capability)
        if atom > own:
            raise ValueError(f"set_gpu_atom: {here.name} has kernels up to {own}, got {atom}")
    _forced = atom


def forced_atom() -> int | None:
    """Return what `set_atom` asked for."""
    return _forced


def describe() -> dict[str, Any] | None:
    """Return what runs on the current device, or None where nothing can; `why_not` says why."""
    if why_not():
        return None
    here, cupy = card(), load_cupy()
    return {
        "name": here.name, "compute_capability": here.capability, "atom": get_atom(),
        "cupy": cupy.__version__, "cuda": int(cupy.cuda.runtime.runtimeGetVersion()),
    }  # fmt: skip
