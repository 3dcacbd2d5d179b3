"""How OpenMP's threads wait between calls: settled when the kernels are loaded, unless the user chose."""

import os
import subprocess
import sys

import pytest

PROGRAM = (
    "import fastattention, os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
)


def load(**choice: str) -> tuple[str, str]:
    """Import the library in a new process; return what libgomp read, and what the environment held then."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | choice | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("the OpenMP library is not libgomp, or does not show its settings")
    spins = next(line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line)
    return spins.split("'")[1], done.stdout.strip()


def test_short_spin_by_default_and_no_trace() -> None:
    assert load() == ("5000", "None None")


def test_a_choice_of_the_user_stands() -> None:
    assert load(GOMP_SPINCOUNT="123") == ("123", "123 None")
    spins, environment = load(OMP_WAIT_POLICY="passive")
    assert (spins, environment) == ("0", "None passive")
