"""What ranks say to each other, whichever engine carries it: MPI between CPU ranks, NCCL between GPUs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

__all__ = ["ENGINE", "Communicator", "Handle", "Single", "agree", "connect", "require"]

ENGINE = "FASTATTENTION_RANKS"  # set by `fastattention launch`: "mpi" or "nccl"
_ENGINES = {"mpi": "Mpi", "nccl": "Nccl"}


class Handle(Protocol):
    """A sum that is under way."""

    def poll(self) -> None:
        """Let it get on, where the engine works only while it is called; return at once."""

    def wait(self) -> None:
        """Let what follows in this thread (on a GPU, in its current stream) find the sum."""


class Communicator(Protocol):
    """A group of ranks that call the same methods in the same order.

    Attributes
    ----------
    rank, size : int
        Of this process, and how many.
    xp : module
        NumPy or CuPy: whose arrays are summed.
    """

    rank: int
    size: int
    xp: Any

    def sum_dtype(self, dtype: Any) -> Any:
        """Return what numbers of a dtype are summed in."""

    def all_reduce_start(self, array: Any) -> Handle:
        """Start to sum a C-contiguous array over ranks, in place; nobody touches it until `Handle.wait`."""

    def all_gather(self, item: Any) -> list[Any]:
        """Return the small object (of JSON's kinds) of each rank, in order."""

    def broadcast(self, item: Any, root: int = 0) -> Any:
        """Return the small object (of JSON's kinds) of rank `root`."""

    def barrier(self) -> None:
        """Return when every rank has called it."""

    def synchronize(self) -> None:
        """Return when what this rank queued is done; for timing."""

    def close(self) -> None:
        """Leave the group; all ranks together, once all is done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Done:
    def poll(self) -> None:
        """Nothing is under way."""

    def wait(self) -> None:
        """Nothing is under way."""


class Single:
    """A group of one, whose sums are what they are.

    Parameters
    ----------
    xp : module
        NumPy, or CuPy.
    """

    def __init__(self, xp: Any = np) -> None:
        self.rank, self.size, self.xp = 0, 1, xp

    def sum_dtype(self, dtype: Any) -> Any:
        """Return float32 for half precision in CPU memory, which is summed there in nothing less."""
        return host_sum_dtype(dtype) if self.xp is np else dtype

    def all_reduce_start(self, array: Any) -> Handle:
        """Return a sum that is done."""
        return _Done()

    def all_gather(self, item: Any) -> list[Any]:
        """Return the object, in a list."""
        return [item]

    def broadcast(self, item: Any, root: int = 0) -> Any:
        """Return the object."""
        check_root(root, self.size)
        return item

    def barrier(self) -> None:
        """Return."""

    def synchronize(self) -> None:
        """Wait for the device, where there is one."""
        if self.xp is not np:
            self.xp.cuda.get_current_stream().synchronize()

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""


def connect() -> Communicator:
    """Return this process's group: the one that ``fastattention launch`` started it in, or a group of one.

    Raises
    ------
    ImportError
        MPI, or CuPy with NCCL, is not installed; the message names the wheel.
    RuntimeError
        The environment names no engine, or the ranks do not find each other.
    """
    engine = os.environ.get(ENGINE)
    if engine is None:
        return Single()
    if engine not in _ENGINES:
        raise RuntimeError(f"{ENGINE}: expected one of {sorted(_ENGINES)}, got {engine!r}")
    module = importlib.import_module(f".{engine}", __package__)
    communicator: Communicator = getattr(module, _ENGINES[engine])()
    return communicator


def agree(communicator: Communicator, facts: Mapping[str, str], problem: str | None = None) -> None:
    """Raise on every rank, unless all are of one mind and none has a problem. All ranks call it together.

    Parameters
    ----------
    communicator : Communicator
    facts : mapping of str to str
        What must be the same everywhere: the name of an argument, and what this rank has.
    problem : str, optional
        What this rank cannot go on with; the others must not wait for it.

    Raises
    ------
    ValueError
        Ranks differ, or one has a problem: who has what.
    """
    said = communicator.all_gather([problem, dict(facts)])
    problems = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(said) if text is not None]
    if problems:
        raise ValueError("; ".join(problems))
    names = dict.fromkeys(name for _, other in said for name in other)
    for name in names:
        values = [other.get(name, "nothing") for _, other in said]
        if len(set(values)) > 1:
            by_value = {value: _ranks([r for r, x in enumerate(values) if x == value]) for value in values}
            raise ValueError(
                f"{name}: expected the same on every rank, got "
                + ", ".join(f"{value} on {who}" for value, who in by_value.items())
            )


def require(module: str, wheels: str) -> Any:
    """Import an engine's package.

    Raises
    ------
    ImportError
        It is missing, or the library beneath it is; what to install is `wheels`.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # mpi4py without an MPI: RuntimeError
        first = str(error).partition("\n")[0]
        raise ImportError(f"{module} cannot be used ({first}): {wheels}") from error


def host_sum_dtype(dtype: Any) -> Any:
    """Return the dtype in which host ranks multiply and sum: float32, or float64 for itself."""
    return np.dtype(np.float64) if np.dtype(dtype) == np.float64 else np.dtype(np.float32)


def check_root(root: int, size: int) -> None:
    """Raise unless there is such a rank."""
    if not 0 <= root < size:
        raise ValueError(f"root: expected a rank from 0 to {size - 1}, got {root}")


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
