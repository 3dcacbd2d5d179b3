"""Calls that are captured into a CUDA graph: what they use must be there whenever the graph runs.

Decode counts its CTAs in counters that are zero and that it leaves at zero. A call on a plain stream clears
its own first: another launch, which nobody notices beside what the host needs. In a graph it would be felt at
each replay. There a call gets counters that no other call has or will have, from memory that
was cleared before; a graph is never run twice at a time, so that they are zero whenever it starts.
"""

from __future__ import annotations

import threading
from typing import Any

from .device import load_cupy

__all__ = ["capturing", "keep", "reserve"]

#: Counters that captured calls of a process share out, on each device: a mebibyte.
RESERVE = 1 << 18

_lock = threading.Lock()
_reserves: dict[int, tuple[Any, int]] = {}  # device: memory, and how many are given away
_kept: list[Any] = []


def capturing() -> bool:
    """Return whether what is queued on the current stream becomes part of a graph."""
    return bool(load_cupy().cuda.get_current_stream().is_capturing())


def reserve(device: int, count: int, captured: bool) -> int:
    """Return the address of counters that are zero and stay with a captured call; 0 where there are none.

    That is where nothing is being captured, or where captured calls used them all up.
    """
    if not captured and device in _reserves:
        return 0
    cupy = load_cupy()
    with _lock:
        if device not in _reserves:
            if captured:  # nothing can be cleared outside the graph now
                return 0
            memory = cupy.cuda.alloc(4 * RESERVE)
            memory.memset_async(0, 4 * RESERVE)
            cupy.cuda.get_current_stream().synchronize()  # once: a graph may run on any stream
            _reserves[device] = memory, 0
        memory, given = _reserves[device]
        if not captured or given + count > RESERVE:
            return 0
        _reserves[device] = memory, given + count
        return int(memory.ptr) + 4 * given


def keep(memory: Any) -> None:
    """Keep CuPy's memory from other uses, for good: nobody says when a graph is gone.

    Memory of other libraries is theirs to keep: PyTorch does so for its graphs.
    """
    if not isinstance(memory.mem, load_cupy().cuda.UnownedMemory):
        _kept.append(memory)
