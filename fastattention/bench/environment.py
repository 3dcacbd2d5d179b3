"""The machine and the software a run took place on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, cpu_kernels

__all__ = ["cpu_name", "describe"]


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux: the platform module knows
    return platform.processor() or platform.machine()


def describe(isa: str) -> dict[str, Any]:
    """Return hardware and versions, ready for JSON.

    Parameters
    ----------
    isa : str
        The instruction set the kernels of this run use.
    """
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "allowed_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cache_bytes": list(cpu_kernels.cache_bytes()),
        "system": f"{platform.system()} {platform.release()}",
        "isa": isa,
        "compiler": cpu_kernels.compiler(),
        "versions": {
            "fastattention": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }
