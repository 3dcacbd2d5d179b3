"""Code compiled for a newer instruction set must not be reachable from an older path.

An inline function or a template that two objects define is a weak symbol, of which the linker keeps one. If
that is the one compiled with AVX-512, the baseline dies on the machine it is there for. So an object of an
instruction set may define one global symbol, its table of kernels, and no weak one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastattention import cpu_kernels


def _archives() -> dict[str, Path]:
    """The static library of each instruction set, where there is a build directory that still holds them."""
    spec = find_spec("fastattention.cpu_kernels._native")
    assert spec is not None
    assert spec.origin is not None
    places = [
        Path(spec.origin).resolve().parent,
        *sorted((Path(__file__).parents[1] / "build").glob("*/cpu_kernels")),
    ]
    for place in places:
        found = {path.stem.removeprefix("libfa_"): path for path in place.glob("libfa_*.a")}
        if found:
            return found
    return {}


ARCHIVES = _archives()
NEEDS_NM = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (GNU binutils) is not installed")


def _symbols(path: Path, *flags: str) -> list[tuple[str, str]]:
    """(type letter, name) of each symbol."""
    done = subprocess.run(["nm", "-P", *flags, str(path)], capture_output=True, text=True, check=True)
    lines = (line.split() for line in done.stdout.splitlines())
    return [(fields[1], fields[0]) for fields in lines if len(fields) >= 2 and len(fields[1]) == 1]


@NEEDS_NM
@pytest.mark.skipif(not ARCHIVES, reason="not an editable build: the objects of the kernels are not at hand")
@pytest.mark.parametrize("isa", cpu_kernels.ISAS)
def test_an_isa_defines_its_table_and_nothing_else(isa: str) -> None:
    if isa not in ARCHIVES:
        pytest.skip(f"this build has no {isa}")
    defined = [(kind, name) for kind, name in _symbols(ARCHIVES[isa]) if kind != "U"]
    weak = [name for kind, name in defined if kind in "wWvVu"]
    assert not weak, f"the linker may merge these with an older path's: {weak}"
    shared = [name for kind, name in defined if kind.isupper()]
    assert len(shared) == 1, f"one table expected, got {shared}"
    assert f"kernels_{isa}" in shared[0]


@NEEDS_NM
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF dynamic symbols")
def test_the_extension_exports_its_init_only() -> None:
    spec = find_spec("fastattention.cpu_kernels._native")
    assert spec is not None
    exported = [
        name for kind, name in _symbols(Path(str(spec.origin)), "-D", "--defined-only") if kind.isupper()
    ]
    stray = [name for name in exported if "fa_avx" in name or "fa_baseline" in name or "kernels_" in name]
    assert not stray, f"kernels visible outside the extension: {stray}"
    assert "PyInit__native" in exported
