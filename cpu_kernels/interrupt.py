"""Lets signals stop a long call, as Ctrl-C does.

Python runs a signal's handler on its main thread, between two of its own instructions: not while that thread
is inside the kernels. So a call of the main thread asks back some twenty times a second (``fa_set_watch``),
and that alone lets a handler run. What the handler raises stops the call, and is raised from it.

A call from another thread asks nobody: signals are not for it, and the main thread is free to take them.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from ._native import ffi, lib

__all__ = ["reason"]

_raised: list[BaseException] = []


def _keep(_: Any, raised: BaseException, __: Any) -> None:
    _raised.append(raised)


@ffi.def_extern(error=0, onerror=_keep)  # type: ignore[untyped-decorator]
def fa_python_goes_on() -> int:
    """Return 1; on the way here, Python has run the handlers of signals that came."""
    return 1


def reason() -> BaseException:
    """Return what stopped the call that has just ended."""
    return _raised.pop()


def _watch() -> None:
    lib.fa_set_watch(lib.fa_python_goes_on, threading.main_thread().ident)


_watch()
os.register_at_fork(after_in_child=_watch)  # the thread that forked is the child's main thread
