"""``fastattention launch``: one process a rank, CPU ranks by MPI's own mpiexec, GPU ranks by this module."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .communicator import ENGINE
from .mpi import WHEELS
from .nccl import ADDRESS, KEY, LISTENER, RANK, SIZE

__all__ = ["add_arguments", "launch_gpus", "launch_mpi", "main"]

_GRACE = 3.0  # seconds for a rank to end by itself, once it is asked to, or once another has failed
_LOOK = 0.05  # seconds between looks at the ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-n", dest="ranks", type=int, required=True, metavar="N", help="how many ranks")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--mpi", action="store_true", help="CPU ranks, by MPI (the default)")
    engine.add_argument("--gpus", action="store_true", help="GPU ranks, by NCCL: rank r has device r")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="with --gpus: the address by which ranks find each other (default: %(default)s)",
    )
    parser.add_argument("script", type=Path, help="a Python file, run by every rank")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")


def main(args: argparse.Namespace) -> int:
    """Run the ranks; return 0, the first failed rank's exit code, or 2 where nothing can be started."""
    if args.ranks < 1:
        return _refuse(f"-n: expected at least 1, got {args.ranks}")
    if not args.script.is_file():
        return _refuse(f"{args.script}: no such file")
    try:
        if args.gpus:
            return launch_gpus(args.ranks, args.script, args.arguments, host=args.host)
        return launch_mpi(args.ranks, args.script, args.arguments)
    except (ImportError, OSError) as error:
        return _refuse(str(error))


def launch_mpi(ranks: int, script: Path, arguments: Sequence[str] = ()) -> int:
    """Run a script on CPU ranks; return 0 or the exit code of mpiexec.

    Raises
    ------
    ImportError
        There is no mpiexec, or it is none of MPICH's or Open MPI's; or mpi4py cannot be used.
    """
    mpiexec = _mpiexec()
    check = [sys.executable, "-P", "-c", "from fastattention.runtime.mpi import load_mpi; load_mpi()"]
    probe = subprocess.run(check, capture_output=True, text=True, check=False)  # MPI starts once a process
    if probe.returncode:
        raise ImportError(probe.stderr.strip().rpartition("\n")[2].removeprefix("ImportError: "))
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False).stdout
    if "HYDRA" in version:
        options = ["-launcher", "fork", "-iface", "lo"]
    elif "Open MPI" in version or "OpenRTE" in version:
        options = ["--oversubscribe", "--bind-to", "none"]
    else:
        raise ImportError(f"{mpiexec} is neither MPICH's nor Open MPI's: {WHEELS}")
    # mpiexec gets no terminal's Ctrl-C: it is stopped below. When this process is killed, it is told.
    start = [*_rank(os.getpid(), "--exec", "SIGTERM"), mpiexec, *options, "-n", str(ranks)]
    command = [*start, *_rank(0), str(script), *arguments]
    process = _start(command, {ENGINE: "mpi"})
    return _watch([process], "mpiexec")


def launch_gpus(ranks: int, script: Path, arguments: Sequence[str] = (), *, host: str = "127.0.0.1") -> int:
    """Run a script on GPU ranks of this machine; return 0 or the first failed rank's exit code.

    Once a rank fails the others get a few seconds to end, then are killed.
    """
    # NCCL's own sockets too stay on this machine, where they can; a choice of the user's stands.
    network = (
        {} if "NCCL_SOCKET_IFNAME" in os.environ or host != "127.0.0.1" else {"NCCL_SOCKET_IFNAME": "lo"}
    )
    processes: list[subprocess.Popen[bytes]] = []
    # Rank 0 gets the socket, open: nobody else can take the port, and ranks that come before it wait in line.
    with socket.create_server((host, 0), backlog=ranks) as server:
        shared = {
            ENGINE: "nccl",
            SIZE: str(ranks),
            ADDRESS: f"{host}:{server.getsockname()[1]}",
            KEY: secrets.token_hex(16),
            **network,
        }
        try:
            for rank in range(ranks):
                command = [*_rank(os.getpid()), str(script), *arguments]
                own, passed = {RANK: str(rank)}, [server.fileno()] if rank == 0 else []
                if passed:
                    own[LISTENER] = str(passed[0])
                processes += [_start(command, {**shared, **own}, passed)]
        except BaseException:
            _stop(processes)
            raise
    return _watch(processes, "rank")


def _watch(processes: Sequence[subprocess.Popen[bytes]], name: str) -> int:
    """Wait for all processes, or the first that fails; leave none behind, whatever happens."""
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = [(index, code) for index, code in enumerate(codes) if code]
            if failed:
                index, code = failed[0]
                which = f"{name} {index}" if len(processes) > 1 else name
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                print(f"fastattention launch: {which} {how}; all ranks are stopped", file=sys.stderr)
                return code if code > 0 else 128 - code
            if all(code == 0 for code in codes):
                return 0
            time.sleep(_LOOK)
    finally:
        _stop(processes)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs, by the process groups that `_start` made: politely, then not."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, kind)
        end = time.monotonic() + _GRACE
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.0))


def _start(
    command: Sequence[str], environment: dict[str, str], passed: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process at the head of a process group of its own, with some of this one's open files."""
    return subprocess.Popen(
        command, env={**os.environ, **environment}, start_new_session=True, pass_fds=passed
    )


def _rank(parent: int, *options: str) -> list[str]:
    """Return the command that runs a script as a rank; `parent` is who starts it, 0 for somebody else."""
    return [sys.executable, "-P", "-m", f"{__package__}.rank", str(parent), *options]


def _mpiexec() -> str:
    """Return mpiexec, that of this environment before others."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    found = shutil.which("mpiexec", path=path)
    if found is None:
        raise ImportError(f"there is no mpiexec: {WHEELS}")
    return found


def _refuse(message: str) -> int:
    print(f"fastattention launch: error: {message}", file=sys.stderr)
    return 2
