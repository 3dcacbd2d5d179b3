"""Feeds the GGUF reader with what atheris makes of the coverage: see gguf_input.py.

python -m tests.fuzz.fuzz_gguf CORPUS -max_total_time=60
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastattention.models", "gguf"]):
    from .gguf_input import load


def main() -> None:
    """Run until told to stop, or until something is found."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder) / "fuzzed.gguf"
        atheris.Setup(sys.argv, lambda data: _once(data, path))
        atheris.Fuzz()


def _once(data: bytes, path: Path) -> None:
    load(data, path, measured=len(data) % 8 == 0)


if __name__ == "__main__":
    main()
