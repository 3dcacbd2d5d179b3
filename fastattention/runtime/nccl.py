"""GPUs through NCCL: CuPy's binding, one process a GPU.

Sums run on a stream of their own, non-blocking and of high priority, so that their few CTAs get
multiprocessors as soon as any are free. A sum waits for an event behind what made the block; what reads it
waits for an event behind the sum. The host waits for nothing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import socket
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .. import gpu
from .communicator import Handle, check_root, require

__all__ = ["ADDRESS", "KEY", "LISTENER", "RANK", "SIZE", "WHEELS", "Nccl", "load_nccl"]

# What `fastattention launch --gpus` tells its ranks.
RANK, SIZE = "FASTATTENTION_RANK", "FASTATTENTION_SIZE"
ADDRESS, KEY = "FASTATTENTION_ADDRESS", "FASTATTENTION_KEY"
LISTENER = "FASTATTENTION_LISTENER"  # rank 0 alone: the open socket at that address

WHEELS = (
    "CuPy with NCCL is needed: pip install cupy-cuda12x nvidia-nccl-cu12, "
    "or with CUDA 13 cupy-cuda13x nvidia-nccl-cu13"
)
_BFLOAT16 = 9  # ncclBfloat16, for which CuPy has no name
_HIGHEST_PRIORITY = -5  # of any card; CUDA takes the highest that there is
_PATIENCE = 120.0  # seconds for a rank that lives to come: CuPy loads slowly from a cold disk


def load_nccl() -> Any:
    """Import CuPy's NCCL.

    Raises
    ------
    ImportError
        CuPy or NCCL is missing.
    """
    gpu.load_cupy()
    # CuPy looks for libnccl.so.2 where the system does, so not in NVIDIA's wheel; once loaded, it is found.
    spec = importlib.util.find_spec("nvidia.nccl") if importlib.util.find_spec("nvidia") else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        library = Path(folder) / "lib" / "libnccl.so.2"
        if library.exists():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            break
    return require("cupy.cuda.nccl", WHEELS)


class _Sum:
    def __init__(self, cupy: Any, done: Any, array: Any) -> None:
        self._cupy, self._done, self._array = (
            cupy,
            done,
            array,
        )  # the array lives as long as NCCL writes to it

    def poll(self) -> None:
        """NCCL needs no help."""

    def wait(self) -> None:
        """Let the current stream wait; the host does not."""
        self._cupy.cuda.get_current_stream().wait_event(self._done)


class Nccl:
    """The processes that ``fastattention launch --gpus`` started, each with the GPU of its rank.

    Raises
    ------
    ImportError
        CuPy or NCCL is missing.
    RuntimeError
        This process was not launched so, there are fewer GPUs than ranks, or ranks do not find each other.
    """

    def __init__(self) -> None:
        try:
            self.rank, self.size = int(os.environ[RANK]), int(os.environ[SIZE])
            host, _, port = os.environ[ADDRESS].rpartition(":")
            if self.rank == 0:
                int(os.environ[LISTENER])
            key = bytes.fromhex(os.environ[KEY])
        except (KeyError, ValueError) as error:
            raise RuntimeError(
                f"this process is no rank ({error}): start it with fastattention launch --gpus"
            ) from error
        self._nccl = load_nccl()
        self.xp = cupy = gpu.load_cupy()
        count = cupy.cuda.runtime.getDeviceCount()
        if self.size > count:
            raise RuntimeError(f"{self.size} ranks need a GPU each; there are {count}")
        cupy.cuda.Device(self.rank).use()
        identity = self._meet((host, int(port)), key) if self.size > 1 else self._nccl.get_unique_id()
        self._comm = self._nccl.NcclCommunicator(self.size, identity, self.rank)
        self._stream = cupy.cuda.Stream(non_blocking=True, priority=_HIGHEST_PRIORITY)
        n = self._nccl
        self._types = {
            "float16": n.NCCL_FLOAT16, "float32": n.NCCL_FLOAT32, "float64": n.NCCL_FLOAT64,
            "bfloat16": _BFLOAT16,
        }  # fmt: skip

    def _meet(self, address: tuple[str, int], key: bytes) -> Any:
        """Return NCCL's identity of the group, which rank 0 makes and hands to the others."""
        if self.rank:
            try:
                with Client(address, authkey=key) as connection:  # the launcher opened it before any rank
                    if not connection.poll(_PATIENCE):
                        raise RuntimeError(f"rank {self.rank}: rank 0 said nothing in {_PATIENCE:.0f} s")
                    return connection.recv()
            except (OSError, EOFError) as error:
                raise RuntimeError(f"rank {self.rank} found no rank 0 at {address}: {error!r}") from error
        identity = self._nccl.get_unique_id()
        missing = self.size - 1
        with socket.socket(fileno=int(os.environ[LISTENER])) as listener:
            listener.settimeout(_PATIENCE)
            while missing:
                try:
                    caller, _ = listener.accept()
                except TimeoutError as error:
                    raise RuntimeError(f"{missing} of {self.size} ranks did not come") from error
                caller.settimeout(None)
                strangers = suppress(AuthenticationError, OSError, EOFError)
                with strangers, Connection(caller.detach()) as connection:
                    deliver_challenge(connection, key)  # a stranger is sent away
                    answer_challenge(connection, key)
                    connection.send(identity)
                    missing -= 1
        return identity

    def sum_dtype(self, dtype: Any) -> Any:
        """Return the dtype itself: NCCL sums every floating type."""
        return dtype

    def all_reduce_start(self, array: Any) -> Handle:
        """Start ncclAllReduce in place, behind what the current stream has queued.

        Raises
        ------
        TypeError, ValueError
            No CuPy array of a floating type, or not C-contiguous.
        """
        cupy = self.xp
        if not isinstance(array, cupy.ndarray) or array.dtype.name not in self._types:
            raise TypeError(
                f"array: expected CuPy's, of {', '.join(self._types)}; got {type(array).__name__}"
            )
        if not array.flags.c_contiguous:
            raise ValueError("array: expected a C-contiguous one")
        ready, done = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        ready.record(cupy.cuda.get_current_stream())
        self._stream.wait_event(ready)
        pointer, kind = array.data.ptr, self._types[array.dtype.name]
        self._comm.allReduce(pointer, pointer, array.size, kind, self._nccl.NCCL_SUM, self._stream.ptr)
        done.record(self._stream)
        return _Sum(cupy, done, array)

    def _gather(self, row: Any) -> Any:
        """Return the bytes (n,) of every rank, (size, n), in CPU memory."""
        cupy = self.xp
        mine, all_rows = cupy.asarray(row), cupy.empty((self.size, row.size), np.uint8)
        stream = cupy.cuda.get_current_stream()
        ready = cupy.cuda.Event(disable_timing=True)
        ready.record(stream)
        self._stream.wait_event(ready)
        self._comm.allGather(
            mine.data.ptr, all_rows.data.ptr, row.size, self._nccl.NCCL_UINT8, self._stream.ptr
        )
        self._stream.synchronize()
        return cupy.asnumpy(all_rows)

    def all_gather(self, item: Any) -> list[Any]:
        """Return the small object of each rank, in order: JSON, its length first, then padded alike."""
        text = np.frombuffer(json.dumps(item).encode(), np.uint8)
        lengths = self._gather(np.array([text.size], np.int64).view(np.uint8)).view(np.int64)[:, 0]
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: text.size] = text
        rows = self._gather(padded)
        return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]

    def broadcast(self, item: Any, root: int = 0) -> Any:
        """Return the small object of rank `root`."""
        check_root(root, self.size)
        return self.all_gather(item if self.rank == root else None)[root]

    def barrier(self) -> None:
        """Return when every rank has called it, and this one's GPU is done."""
        self.synchronize()
        self.all_gather(None)

    def synchronize(self) -> None:
        """Wait for the current stream and for the sums."""
        self.xp.cuda.get_current_stream().synchronize()
        self._stream.synchronize()

    def close(self) -> None:
        """Wait for the others and leave; a second time is allowed."""
        if self._comm is not None:
            self.barrier()
            self._comm.destroy()
            self._comm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; after an error at once, without the others, whom the launcher stops."""
        if kind is None:
            self.close()
        elif self._comm is not None:
            self._comm.abort()
            self._comm = None
