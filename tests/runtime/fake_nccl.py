"""Pretends, in a rank's process, that there are two GPUs: CuPy is NumPy, and NCCL a folder of files.

What is pretended has the methods that `runtime.nccl` uses, with CuPy's names and arguments.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from fastattention import gpu
from fastattention.runtime import nccl

FOLDER = Path(os.environ["FAKE_NCCL"])


class Array(np.ndarray):
    """NumPy's, with CuPy's way to its address."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Event:
    def __init__(self, disable_timing=False):
        pass

    def record(self, stream=None):
        pass


class Stream:
    ptr = 1

    def __init__(self, non_blocking=False, priority=0):
        assert non_blocking
        assert priority < 0

    def wait_event(self, event):
        assert isinstance(event, Event)

    def synchronize(self):
        pass


class Device:
    def __init__(self, number):
        self.number = number

    def use(self):
        pass


class NcclCommunicator:
    def __init__(self, ndev, commId, rank):
        assert isinstance(commId, tuple)
        assert len(commId) == 128
        self.size, self.rank, self.calls = ndev, rank, 0
        self.prefix = "".join(f"{byte & 255:02x}" for byte in commId[:8])

    def _exchange(self, content: bytes) -> list[bytes]:
        self.calls += 1
        own = FOLDER / f"{self.prefix}-{self.calls}-{self.rank}"
        own.with_suffix(".draft").write_bytes(content)
        own.with_suffix(".draft").rename(own)
        found = []
        for rank in range(self.size):
            path = FOLDER / f"{self.prefix}-{self.calls}-{rank}"
            while not path.exists():  # a rank that is dead is waited for, as NCCL does
                time.sleep(0.001)
            found.append(path.read_bytes())
        return found

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802 - CuPy's name
        assert (op, stream) == (0, 1)
        dtype = {6: np.float16, 7: np.float32, 8: np.float64}[datatype]
        size = count * np.dtype(dtype).itemsize
        parts = [np.frombuffer(part, dtype) for part in self._exchange(ctypes.string_at(sendbuf, size))]
        ctypes.memmove(recvbuf, np.sum(parts, axis=0, dtype=dtype).tobytes(), size)

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):  # noqa: N802 - CuPy's name
        assert (datatype, stream) == (1, 1)
        whole = b"".join(self._exchange(ctypes.string_at(sendbuf, count)))
        ctypes.memmove(recvbuf, whole, len(whole))

    def destroy(self):
        self.size = 0

    def abort(self):
        self.size = 0


current = Stream(non_blocking=True, priority=-1)
cupy = SimpleNamespace(
    ndarray=Array,
    asarray=lambda x: np.array(x).view(Array),
    empty=lambda shape, dtype: np.empty(shape, dtype).view(Array),
    asnumpy=lambda x: np.array(x),
    cuda=SimpleNamespace(
        Device=Device,
        Event=Event,
        Stream=Stream,
        get_current_stream=lambda: current,
        runtime=SimpleNamespace(getDeviceCount=lambda: 2),
    ),
)
module = SimpleNamespace(
    NcclCommunicator=NcclCommunicator,
    get_unique_id=lambda: tuple(byte - 128 for byte in os.urandom(128)),  # C's char is signed
    NCCL_FLOAT16=6, NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_UINT8=1, NCCL_SUM=0,
)  # fmt: skip
gpu.load_cupy = lambda: cupy
nccl.load_nccl = lambda: module
