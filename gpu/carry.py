"""Bytes between host memory and the GPU by a kernel, past the copy engines: kernels/11_carry.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from .choose import Configuration
from .compile import compiled
from .device import card, load_cupy
from .problem import address

__all__ = ["carry", "mapped"]

_THREADS = 256
_MOST_BLOCKS = 256  # as many bytes under way as the bus can use

CONFIGURATION = Configuration("11_carry.cu", "carry", (("THREADS", str(_THREADS)),), _THREADS, _THREADS, 1, 0)


def carry(to: Any, source: Any) -> None:
    """Copy an array's bytes on the current device and stream; nobody waits.

    Parameters
    ----------
    to, source : CuPy array
        Of equal sizes, without gaps: in the device's memory, or host memory that is `mapped`.

    Raises
    ------
    RuntimeError
        The kernel cannot be compiled.
    """
    nbytes = int(source.nbytes)
    kernel = compiled(CONFIGURATION, card())
    blocks = min(_MOST_BLOCKS, -(-nbytes // (16 * _THREADS)))
    arguments = np.uint64(address(to)), np.uint64(address(source)), np.int64(nbytes)
    kernel.function((blocks,), (_THREADS,), arguments)


def mapped(array: Any) -> Any:
    """Return registered host memory as an array that kernels on the current device read and write.

    Parameters
    ----------
    array : ndarray
        A part of what ``cudaHostRegister`` was told of, without gaps. It is held as long as the result is.

    Returns
    -------
    CuPy array
    """
    cupy = load_cupy()
    memory = cupy.cuda.UnownedMemory(array.ctypes.data, array.nbytes, array)
    return cupy.ndarray(array.shape, array.dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))
