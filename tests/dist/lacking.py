"""Machines that lack what a build needs: the build must end at once and say what to install."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .build import Place
from .steps import Failed, attempt, environment, output

#: Variables that would lead a build to a compiler that is not on PATH, or off the one that is.
_COMPILERS = ("CC", "CXX", "CC_LD", "CXX_LD", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")

# A compiler that lacks one thing: `check` decides on each argument, in "$a".
_WRAPPER = """\
#!/bin/sh
PATH={path}
for a; do
  {check}
done
exec {compiler} "$@"
"""
_WITHOUT_OPENMP = '[ "$a" = -fopenmp ] && exit 1'
_WITHOUT_HEADERS = 'case "$a" in *.c|*.cpp) grep -q "Python[.]h" "$a" && exit 1;; esac'
_OLD = """case "$a" in
    --version|-dM) {compiler} "$@" | sed -E 's/(__GNUC__|__clang_major__) .*/\\1 9/; s/[0-9]+[.][0-9.]+/9.4.0/g'
      exit;;
  esac"""


def _environment(path: str, **changes: str) -> dict[str, str]:
    kept = environment(PATH=path, **changes)
    return {name: value for name, value in kept.items() if name in changes or name not in _COMPILERS}


def _said(text: str, wanted: tuple[str, ...]) -> str:
    if missing := [word for word in wanted if word not in text]:
        raise Failed(f"a user is not told {missing}:\n{text}")
    return next(line.strip() for line in text.splitlines() if wanted[0] in line).partition("encountered: ")[2]


def pip_without_compiler(place: Place) -> str:
    """``pip install .`` in the clone, with nothing on PATH but Python."""
    folder = place.folder / "venv-bare"
    output(sys.executable, "-m", "venv", folder, cwd=place.folder)
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", ".")
    done = attempt(*pip, cwd=place.clone, env=_environment(str(folder / "bin")))
    if done.returncode == 0:
        raise Failed("it was built without a compiler")
    return _said(done.stdout, ("no C++ compiler was found", "apt install g++", "dnf install gcc-c++"))


def _meson(place: Place, name: str, env: dict[str, str], wanted: tuple[str, ...]) -> str:
    meson = (
        sys.executable,
        "-m",
        "mesonbuild.mesonmain",
        "setup",
        place.folder / f"lacks-{name}",
        place.clone,
    )
    done = attempt(*meson, cwd=place.folder, env=env)
    if done.returncode == 0:
        raise Failed(f"the build was set up all the same:\n{done.stdout}")
    return _said(done.stdout, wanted)


def _c_alone(place: Place) -> str:
    folder = place.folder / "c-alone"
    folder.mkdir()
    for name in ("as", "ld", "ar"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Failed("this machine has no C compiler; name one in CC")
    (folder / "cc").symlink_to(compiler)
    return _meson(place, "c++", _environment(str(folder)), ("no C++ compiler was found", "apt install g++"))


def _wrapped(place: Place, name: str, check: str, wanted: tuple[str, ...]) -> str:
    wrappers = {}
    for variable, usual in (("CC", "cc"), ("CXX", "c++")):
        compiler = shutil.which(os.environ.get(variable, usual))
        if compiler is None:
            raise Failed(f"this machine has no {usual}; name one in {variable}")
        wrapper = place.folder / f"{name}-{usual}"
        text = _WRAPPER.format(
            path=os.environ["PATH"], check=check.replace("{compiler}", compiler), compiler=compiler
        )
        wrapper.write_text(text, encoding="utf-8")
        wrapper.chmod(0o755)
        wrappers[variable] = str(wrapper)
    # pkg-config would answer for headers that the compiler is not let see.
    env = _environment(os.environ["PATH"], PKG_CONFIG=str(Path(os.devnull)), **wrappers)
    return _meson(place, name, env, wanted)


def cases(place: Place) -> dict[str, Callable[[], str]]:
    """Return the checks by name."""
    return {
        "pip install . without a compiler": partial(pip_without_compiler, place),
        "without a C++ compiler": partial(_c_alone, place),
        "with a compiler of long ago": partial(
            _wrapped, place, "old", _OLD, ("needs GCC 11 or Clang 14, or newer", "9.")
        ),
        "without the headers of Python": partial(
            _wrapped, place, "headers", _WITHOUT_HEADERS,
            ("Python.h was not found", "apt install python3-dev", "dnf install python3-devel"),
        ),
        "without OpenMP": partial(
            _wrapped, place, "openmp", _WITHOUT_OPENMP,
            ("by OpenMP", "apt install libomp-dev", "dnf install libomp-devel"),
        ),
    }  # fmt: skip
