"""Feeds the public functions with what atheris makes of the coverage: attention_input.py, other_input.py.

python -m tests.fuzz.fuzz_python_attention CORPUS -max_total_time=60
"""

from __future__ import annotations

import resource
import sys

import atheris

with atheris.instrument_imports(include=["fastattention"]):
    from .attention_input import attend
    from .other_input import call
    from .source import Source

ROOM = 2 << 30  # bytes


def main() -> None:
    """Run until told to stop, or until something is found."""
    # Strides of 0 make inputs of any size; results of any size must be refused where there is no room.
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


def once(data: bytes) -> None:
    """An even first byte is a call of attention, an odd one of another function."""
    if data[:1] and data[0] % 2:
        call(Source(data[1:]))
    else:
        attend(data[1:])


if __name__ == "__main__":
    main()
