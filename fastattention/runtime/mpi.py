"""CPU ranks through MPI: mpi4py, and the MPI that it finds."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np

from .communicator import Handle, check_root, host_sum_dtype, require

__all__ = ["WHEELS", "Mpi", "load_mpi"]

WHEELS = 'pip install "fastattention[distributed]" brings mpi4py and the wheel mpich'


def load_mpi() -> Any:
    """Import mpi4py's MPI, which starts MPI in this process.

    Raises
    ------
    ImportError
        mpi4py or an MPI library is missing.
    """
    return require("mpi4py.MPI", WHEELS)


class _Sum:
    """A request, and the array that MPI writes to."""

    def __init__(self, request: Any, array: Any) -> None:
        self._request, self._array = request, array

    def poll(self) -> None:
        """Let MPI work: without a thread of its own it does so only within calls."""
        self._request.Test()

    def wait(self) -> None:
        """Wait for the sum."""
        self._request.Wait()


class Mpi:
    """All processes that ``mpiexec`` started, or `fastattention launch --mpi`.

    Raises
    ------
    ImportError
        mpi4py or an MPI library is missing.
    """

    def __init__(self) -> None:
        self._mpi = load_mpi()
        # Errors of MPI are exceptions here; in a group of its own, our messages never meet the caller's.
        self._comm = self._mpi.COMM_WORLD.Dup()
        self.rank, self.size, self.xp = self._comm.rank, self._comm.size, np

    def sum_dtype(self, dtype: Any) -> Any:
        """Return float32, for float64 itself: MPI has no half precision that can be relied upon."""
        return host_sum_dtype(dtype)

    def all_reduce_start(self, array: Any) -> Handle:
        """Start MPI_Iallreduce in place.

        Raises
        ------
        TypeError, ValueError
            No array of float32 or float64, or not C-contiguous.
        """
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
            raise TypeError(f"array: expected NumPy's, of float32 or float64, got {_kind(array)}")
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError("array: expected a C-contiguous one that can be written to")
        return _Sum(self._comm.Iallreduce(self._mpi.IN_PLACE, array, op=self._mpi.SUM), array)

    def all_gather(self, item: Any) -> list[Any]:
        """Return the small object of each rank, in order."""
        found: list[Any] = self._comm.allgather(item)
        return found

    def broadcast(self, item: Any, root: int = 0) -> Any:
        """Return the small object of rank `root`."""
        check_root(root, self.size)
        return self._comm.bcast(item, root=root)

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._comm.Barrier()

    def synchronize(self) -> None:
        """Nothing is queued on a CPU."""

    def close(self) -> None:
        """Leave the group; a second time is allowed."""
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave, but after an error: the others do not come to leave together; the launcher stops them."""
        if kind is None:
            self.close()


def _kind(array: Any) -> str:
    return f"{type(array).__name__} of {array.dtype}" if hasattr(array, "dtype") else type(array).__name__
