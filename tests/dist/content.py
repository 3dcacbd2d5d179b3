"""What is in the sdist and in the wheel, and what must not be."""

from __future__ import annotations

import json
import re
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from .build import Place
from .steps import ROOT, Failed, output

#: Rooms whose every file is installed, and where to.
_WHOLE = {
    "fastattention": "fastattention",
    "reference": "fastattention/reference",
    "gpu": "fastattention/gpu",
}
#: Rooms that are compiled: what of them is installed beside their libraries.
_PARTS = {
    "fastattention/cpu_kernels": ("__init__.py", "interrupt.py", "fastattention.h", "_native.abi3.so"),
    "fastattention/cpu_kernels/ladder": ("__init__.py", "ladder.h", "_ladder.abi3.so"),
}
_PLUGIN = "fastattention/_fastattention_pytest.py"
_ABOUT = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
#: Libraries of the system that ours may need: a wheel cannot bring what it does not hold.
_SYSTEM = re.compile(r"(libc|libm|libstdc\+\+|libgcc_s|libgomp|libomp|libpthread|ld-linux.*)\.so(\.\d+)?")


def _tracked(place: Place) -> set[str]:
    return set(output("git", "ls-files", "-z", cwd=place.clone).split("\0")) - {""}


def _same(what: str, found: set[str], expected: set[str]) -> None:
    said = [f"{what} lacks {name}" for name in sorted(expected - found)]
    said += [f"{what} holds {name}, which it must not" for name in sorted(found - expected)]
    if said:
        raise Failed("\n".join(said))


def sdist(place: Place) -> str:
    """The sdist holds what git knows, and PKG-INFO, byte for byte."""
    with tarfile.open(place.sdist) as archive:
        members = {member.name: member for member in archive.getmembers() if not member.isdir()}
        top = place.sdist.name.removesuffix(".tar.gz")
        expected = {f"{top}/{name}" for name in _tracked(place)} | {f"{top}/PKG-INFO"}
        _same("The sdist", set(members), expected)
        for name, member in members.items():
            if not member.isfile():
                raise Failed(f"{name} is neither a file nor a folder")
            original = place.clone / name.removeprefix(f"{top}/")
            content = archive.extractfile(member)
            if original.name != "PKG-INFO" and (content is None or content.read() != original.read_bytes()):
                raise Failed(f"{name} differs from the committed file")
    return f"{len(members)} files"


def wheel(place: Place) -> str:
    """The wheel holds the package's files, its libraries and its licence, and nothing else."""
    name, version, *tags = place.wheel.stem.split("-")
    if tags[:2] != ["cp311", "abi3"]:
        raise Failed(f"{place.wheel.name} is not for the stable interface of Python 3.11: cp311-abi3")
    expected = {
        installed + path.removeprefix(room)
        for path in _tracked(place)
        for room, installed in _WHOLE.items()
        if path.startswith(f"{room}/")
    }
    # pytest's plugin stands beside the package, which it must not import.
    expected = {path.removeprefix("fastattention/") if path == _PLUGIN else path for path in expected}
    expected |= {f"{folder}/{part}" for folder, parts in _PARTS.items() for part in parts}
    expected |= {f"{name}-{version}.dist-info/{part}" for part in _ABOUT}
    with zipfile.ZipFile(place.wheel) as archive:
        found = {entry.filename for entry in archive.infolist() if not entry.is_dir()}
        _same("The wheel", found, expected)
        if "fastattention/py.typed" not in found:
            raise Failed("the wheel has no py.typed: type checkers would take nothing in it for typed")
        licence = archive.read(f"{name}-{version}.dist-info/licenses/LICENSE")
        if licence != (place.clone / "LICENSE").read_bytes():
            raise Failed("the wheel's licence is not LICENSE")
    return f"{len(found)} files"


def libraries(place: Place) -> str:
    """The shared libraries name no folder of this machine, and need nothing but the system's libraries."""
    from elftools.elf.elffile import ELFFile  # comes with abi3audit

    # Any of these would tell the world about this machine, and change from one build to the next.
    homes = (ROOT, place.folder, tempfile.gettempdir(), Path.home(), sys.prefix, sys.base_prefix)
    folders = {f"{home}/" for home in homes} - {"//", "/usr/", "/usr/local/"}
    needed: set[str] = set()
    with zipfile.ZipFile(place.wheel) as archive:
        for name in (name for name in archive.namelist() if name.endswith(".so")):
            content = archive.read(name)
            for folder in sorted(folders):
                if (at := content.find(folder.encode())) >= 0:
                    text = content[at : at + 80].split(b"\0")[0].decode(errors="replace")
                    raise Failed(f"{name} holds a path of this machine: {text}")
            with archive.open(name) as file:
                tags = list(ELFFile(file).get_section_by_name(".dynamic").iter_tags())
            if paths := [tag for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]:
                raise Failed(f"{name} looks for libraries in {paths}")
            needed |= {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    if strange := sorted(name for name in needed if not _SYSTEM.fullmatch(name)):
        raise Failed(f"the libraries need {strange}, which no system has to have")
    return "need " + ", ".join(sorted(needed))


def stable_interface(place: Place) -> str:
    """Ask abi3audit whether the libraries keep to what every Python from 3.11 on has."""
    report = place.folder / "abi3.json"
    output(
        sys.executable, "-m", "abi3audit", "--strict", "--report", "--output", report, place.wheel,
        cwd=place.folder,
    )  # fmt: skip
    (found,) = json.loads(report.read_text(encoding="utf-8"))["specs"].values()
    libraries = {entry["name"]: entry["result"] for entry in found["wheel"]}
    wanted = {part for parts in _PARTS.values() for part in parts if part.endswith(".so")}
    _same("The audit", set(libraries), wanted)
    for name, result in libraries.items():
        if not (result["is_abi3"] and result["is_abi3_baseline_compatible"] and result["baseline"] == "3.11"):
            raise Failed(f"{name}: {json.dumps(result, indent=1)}")
    return f"{len(libraries)} libraries"


def system_libraries(place: Place) -> str:
    """Ask auditwheel how old a system may be that the wheel runs on."""
    said = " ".join(output(sys.executable, "-m", "auditwheel", "show", place.wheel, cwd=place.folder).split())
    found = re.search(r'constrains the platform tag to "([^"]+)"', said)
    found = found or re.search(r'consistent with the following platform tag: "([^"]+)"', said)
    if found is None:
        raise Failed(said)
    return f"built here, it is {found[1]}"
