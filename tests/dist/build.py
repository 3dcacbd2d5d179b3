"""From the last commit to the two files that would be published."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

from .steps import ROOT, Failed, output


class Place:
    """The temporary folder of one check, and what is in it once it is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clone = folder / "clone"
        self.unpacked = folder / "unpacked"
        self.dist = folder / "dist"

    @property
    def sdist(self) -> Path:
        """The source distribution."""
        return _only(self.dist, "*.tar.gz")

    @property
    def wheel(self) -> Path:
        """The wheel built from it."""
        return _only(self.dist, "*.whl")

    @property
    def source(self) -> Path:
        """The folder that the unpacked sdist holds."""
        return _only(self.unpacked, "*")


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise Failed(f"expected one {pattern} in {folder}, found {sorted(path.name for path in found)}")
    return found[0]


def clone(place: Place) -> str:
    """Clone the last commit, as a newcomer has it: nothing that git ignores, nothing that is not committed."""
    output("git", "clone", "--quiet", "--no-hardlinks", ROOT, place.clone, cwd=place.folder)
    head = output("git", "rev-parse", "HEAD", cwd=ROOT).strip()
    output("git", "checkout", "--quiet", "--detach", head, cwd=place.clone)
    return output("git", "log", "-1", "--format=%h %s", cwd=place.clone).strip()


def sdist(place: Place) -> str:
    """Build the sdist from the clone, with no more than pyproject.toml asks for."""
    _build("--sdist", place.clone, place)
    return f"{place.sdist.name}, {place.sdist.stat().st_size / 1e6:.1f} MB"


def wheel(place: Place) -> str:
    """Build the wheel from the sdist, where somebody has run its Python code already."""
    with tarfile.open(place.sdist) as archive:
        archive.extractall(place.unpacked, filter="data")
    rooms = ("fastattention", "reference", "gpu", "cpu_kernels")
    output(sys.executable, "-m", "compileall", "-q", *rooms, cwd=place.source)
    _build("--wheel", place.source, place)
    return f"{place.wheel.name}, {place.wheel.stat().st_size / 1e6:.1f} MB"


def _build(what: str, source: Path, place: Place) -> None:
    output(sys.executable, "-m", "build", what, "--outdir", place.dist, source, cwd=place.folder)


def metadata(place: Place, *files: Path) -> str:
    """Ask twine whether an index would take the files and show their description."""
    said = output(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files, cwd=place.folder)
    if said.count("PASSED") != len(files):
        raise Failed(said)
    return ""
