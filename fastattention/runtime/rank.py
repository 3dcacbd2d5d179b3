"""Runs a script as one rank: ``python -m fastattention.runtime.rank PARENT [--exec SIGNAL] script ...``.

The process ends with the one that started it, whatever ends that: on Linux the kernel sees to it. An
exception in the script ends MPI on all ranks; otherwise this rank would wait in MPI_Finalize for the others,
and they for it. With ``--exec`` the rest is a command to become instead of a script, and SIGNAL what it gets
when its parent ends.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import traceback

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Run what the command line says; it does not return but after a script that ended well."""
    parent, *rest = arguments
    if rest[0] == "--exec":
        _end_with_parent(signal.Signals[rest[1]], int(parent))
        os.execv(rest[2], rest[2:])
    _end_with_parent(signal.SIGKILL, int(parent))
    sys.argv = rest
    sys.path.insert(0, os.path.dirname(os.path.abspath(rest[0])))  # as `python script` has it
    try:
        runpy.run_path(rest[0], run_name="__main__")
    except SystemExit as error:
        if error.code is None or error.code == 0:
            raise
        if not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        _end(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        trace = traceback.format_exc()
        print(f"fastattention launch: {_who()} failed:\n{trace}", file=sys.stderr, end="")
        _end(1)


def _end_with_parent(with_signal: signal.Signals, parent: int) -> None:
    """Ask Linux for a signal when the parent ends; `parent` is who it should be, 0 for whoever it is."""
    if sys.platform != "linux":
        return
    before = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != (parent or before):  # it ended before it was asked for
        sys.exit(1)


def _mpi() -> object | None:
    module = sys.modules.get("mpi4py.MPI")
    return module if module is not None and module.Is_initialized() and not module.Is_finalized() else None


def _who() -> str:
    mpi = _mpi()
    if mpi is not None:
        return f"rank {mpi.COMM_WORLD.rank} of {mpi.COMM_WORLD.size}"  # type: ignore[attr-defined]
    names = ("FASTATTENTION_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
    return f"rank {next((os.environ[name] for name in names if name in os.environ), '?')}"


def _end(code: int) -> None:
    """End this process, and MPI everywhere; no destructor waits for a rank that is not coming."""
    sys.stdout.flush()
    sys.stderr.flush()
    mpi = _mpi()
    if mpi is not None:
        mpi.COMM_WORLD.Abort(code)  # type: ignore[attr-defined]
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
