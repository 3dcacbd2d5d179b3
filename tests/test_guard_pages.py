"""No kernel touches memory outside its arrays, which lie next to a forbidden page here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Engine


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect on anonymous maps")
def test_nothing_outside_the_arrays_is_touched(cpu_engine: Engine) -> None:
    script = Path(__file__).with_name("guard_pages.py")
    done = subprocess.run(
        [sys.executable, str(script), str(cpu_engine.isa)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = done.stdout.rstrip().rpartition("\n")[2]
    assert done.returncode == 0, f"exit code {done.returncode} at: {last}\n{done.stderr[-2000:]}"
    assert "shorter than it says" in done.stdout
