"""The wheel installed and tried: by every Python, with the oldest and the newest of what it requires."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

from .build import Place
from .steps import ROOT, Failed, attempt, output

_HERE = Path(__file__).parent
#: Asks an interpreter for its version, and whether it has the stable interface and can make environments.
_ASK = """
import ensurepip, json, sys, sysconfig, venv
print(json.dumps([*sys.version_info[:2], bool(sysconfig.get_config_var("Py_GIL_DISABLED"))]))
"""


class Python(NamedTuple):
    """An interpreter of this machine."""

    program: Path
    version: tuple[int, int]

    def __str__(self) -> str:
        return "Python " + ".".join(map(str, self.version))


def pythons(place: Place) -> list[Python]:
    """Return one interpreter of each version that can use the wheel, the one that runs this first."""
    found: dict[tuple[int, int], Path] = {}
    for program in _candidates():
        asked = attempt(program, "-c", _ASK, cwd=place.folder)
        if asked.returncode == 0:  # a name on PATH may stand for an interpreter that is not there
            *version, no_gil = json.loads(asked.stdout.splitlines()[-1])
            if not no_gil and version >= [3, 11]:
                found.setdefault((version[0], version[1]), program)
    return [Python(program, version) for version, program in found.items()]


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    neighbours = Path(sys.base_prefix).parent  # where managers of Python versions keep them side by side
    for minor in range(11, 31):
        name = f"python3.{minor}"
        if on_path := shutil.which(name):
            yield Path(on_path)
        yield from sorted(neighbours.glob(f"*/bin/{name}"))


def _bounds(extra: str | None = None) -> dict[str, str]:
    """Return the oldest version that pyproject.toml allows of each package that it requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    bounds = {}
    for line in lines:
        if (found := re.fullmatch(r"([\w.-]+)>=([\w.]+)", line)) is None:
            raise Failed(f"pyproject.toml: {line!r} does not say what its oldest version is")
        bounds[found[1]] = found[2]
    return bounds


class Environment:
    """A fresh virtual environment that holds the wheel.

    Parameters
    ----------
    place : Place
    python : Python
    oldest : bool
        With the oldest version of each requirement that the wheel allows and that is there, compiled, for this
        Python; else with whatever pip chooses: the newest.
    """

    def __init__(self, place: Place, python: Python, oldest: bool) -> None:
        self.place, self.python, self.oldest = place, python, oldest
        self.name = f"{python}, {'oldest' if oldest else 'newest'} requirements"
        self.folder = (
            place.folder / f"venv-{'.'.join(map(str, python.version))}-{'oldest' if oldest else 'newest'}"
        )
        self.program = self.folder / "bin" / "python"

    def _pip(self, *arguments: str | Path) -> str:
        # Compiled packages or none: what is tried here is the wheel, not how to build NumPy.
        command = (self.program, "-m", "pip", "--disable-pip-version-check", *arguments)
        return output(*command, "--only-binary", ":all:", cwd=self.place.folder)

    def _pin(self, name: str, bound: str) -> str:
        """Return ``name==version`` of the oldest version that is there for this Python."""
        said = self._pip("index", "versions", name)
        listed = re.search(r"Available versions: (.*)", said)
        versions = [Version(text) for text in listed[1].split(", ")] if listed else []
        if not (allowed := [version for version in versions if version >= Version(bound)]):
            raise Failed(f"{self.python} finds no {name}>={bound}:\n{said}")
        return f"{name}=={min(allowed)}"

    def make(self) -> str:
        """Create it, install the wheel, and try it in an empty folder: `smoke.py`."""
        output(self.python.program, "-m", "venv", self.folder, cwd=self.place.folder)
        pins, rich = [], "rich>=" + _bounds("bench")["rich"]
        if self.oldest:
            pins = [self._pin(name, bound) for name, bound in _bounds().items()]
            rich = rich.replace(">=", "==")
        self._pip("install", self.place.wheel, *pins)
        output(self.program, "-m", "pip", "check", cwd=self.place.folder)
        outside = self.folder / "outside"
        outside.mkdir()
        for script in ("smoke.py", "typed_user.py"):
            shutil.copy(_HERE / script, outside)
        smoke = (self.program, "-W", "error", "smoke.py")
        remark = output(*smoke, *(pin.replace("==", "=") for pin in pins), cwd=outside)
        self._pip("install", rich)
        output(*smoke, "--verify", cwd=outside)
        return remark.strip()

    def types(self) -> str:
        """Let ``mypy --strict`` read a program that uses the installed package."""
        return output(
            sys.executable, "-m", "mypy", "--config-file=", "--strict", "--python-executable", self.program,
            "--cache-dir", self.place.folder / "mypy", "typed_user.py", cwd=self.folder / "outside",
        ).strip()  # fmt: skip
