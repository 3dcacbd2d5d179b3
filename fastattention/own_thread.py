"""A thread for a call, which ends with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_own_thread"]

T = TypeVar("T")


def in_own_thread(call: Callable[[], T]) -> T:
    """Return what a call returns that runs in a thread of its own; what it raises is raised here.

    OpenMP keeps a team of threads for each thread that has called a kernel, until that thread ends. With more
    of them in all than there are cores, none waits busily any more, and each call has to wake its team: some
    ten microseconds, which count where a step calls once a layer. So a probe should leave no team behind.
    """
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result()
