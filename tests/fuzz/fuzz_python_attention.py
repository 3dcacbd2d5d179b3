"""Feeds the public functions with what atheris makes of the coverage: attention_input.py, other_input.py.

python -m tests.fuzz.fuzz_python_attention CORPUS -max_total_time=60
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastattention"]):
    from .other_input import any_call

ROOM = 2 << 30  # bytes, beside what the interpreter and its libraries have taken


def main() -> None:
    """Run until told to stop, or until something is found."""
    # Strides of 0 make inputs of any size; results of any size must be refused where there is no room.
    atheris.Setup(sys.argv, any_call)
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # of its address space
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
