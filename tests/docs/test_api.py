"""The pages of the API hold every public name, and the page of the command line every command."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastattention
from fastattention import cli

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted((DOCS / "api").glob("*.rst"))
# Packages whose `__all__` is public, and packages whose modules are.
NAMED = [
    "fastattention",
    "fastattention.cpu_kernels",
    "fastattention.gpu",
    "fastattention.offload",
    "fastattention.reference",
    "fastattention.reference.ascend",
    "fastattention.reference.volta",
    "fastattention.verify",
]
OF_MODULES = ["fastattention.models", "fastattention.runtime"]
TITLED = {"cpu_kernels", "reference"}  # modules in `__all__` that have a page of their own


def listed(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each name that a page lists, in full, and whether it is listed as a module with all it has."""
    package, options, inside = "", "", False
    for line in text.splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            package = match[1]
        elif line.startswith(".. autosummary::"):
            options, inside = "", True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and line.strip().startswith(":"):
            options += line
        elif inside and line.strip():
            yield f"{package}.{line.strip()}", "module.rst" in options


def look_up(name: str) -> Any:
    """Return what a full name stands for; a module, where a function hides it, in what follows it."""
    module, _, rest = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), rest)
    except AttributeError:
        return importlib.import_module(name)


def public(module: ModuleType) -> list[str]:
    """Return a module's public names: its `__all__`, else what it defines without an underscore."""
    return list(getattr(module, "__all__", ())) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


ENTRIES = {name: whole for page in PAGES for name, whole in listed(page.read_text(encoding="utf-8"))}


def documented(package: str, name: str) -> bool:
    """Whether `package.name` is listed by itself, as a module, or where it is defined."""
    if f"{package}.{name}" in ENTRIES:
        return True
    value = getattr(importlib.import_module(package), name)
    for entry, whole in ENTRIES.items():
        if whole:
            module = importlib.import_module(entry)
            if name in public(module) and getattr(module, name) is value:
                return True
        elif entry.rpartition(".")[2] == name and look_up(entry) is value:
            return True
    return False


@pytest.mark.parametrize("package", NAMED)
def test_every_public_name_is_on_a_page(package: str) -> None:
    names = set(importlib.import_module(package).__all__)
    if package == "fastattention":
        pages = {path.stem for path in PAGES}
        assert names & TITLED == TITLED <= pages
        names -= TITLED
    assert len(names) > 5
    assert sorted(name for name in names if not documented(package, name)) == []


@pytest.mark.parametrize("package", OF_MODULES)
def test_every_module_is_on_a_page(package: str) -> None:
    path = importlib.import_module(package).__path__
    modules = {f"{package}.{module.name}" for module in pkgutil.iter_modules(path)}
    assert len(modules) > 10
    assert sorted(name for name in modules if ENTRIES.get(name) is not True) == []


def test_what_is_listed_is_there_and_explained() -> None:
    assert len(ENTRIES) > 100
    silent = []
    for entry, whole in ENTRIES.items():
        value = importlib.import_module(entry) if whole else look_up(entry)
        names = [(entry, value)]
        if whole:
            names += [(f"{entry}.{name}", getattr(value, name)) for name in public(value)]
        for name, found in names:
            explains = inspect.isroutine(found) or inspect.isclass(found) or inspect.ismodule(found)
            if explains and not inspect.getdoc(found):
                silent.append(name)
    assert silent == []


def test_a_missing_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert documented("fastattention", "merge")
    assert documented("fastattention.offload", "plan_offload"), "listed as fastattention.plan_offload"
    assert documented("fastattention.gpu", "ATOMS"), "listed where it is defined"
    monkeypatch.setattr(fastattention, "newcomer", object(), raising=False)
    assert not documented("fastattention", "newcomer")
    monkeypatch.delitem(ENTRIES, "fastattention.merge")
    assert not documented("fastattention", "merge"), "gpu.merge is another function"


def test_pages_of_the_api_are_in_its_contents() -> None:
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    contents = text[text.index("```{toctree}") :].splitlines()
    assert {path.stem for path in PAGES} <= set(contents)
    assert [path.stem for path in PAGES if f"{{doc}}`{path.stem}`" not in text] == []


def test_the_page_of_the_command_line_has_every_command() -> None:
    [action] = [a for a in cli._parser()._actions if a.choices]
    assert action.choices is not None
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r'^help_of\("([a-z]+)"\)', text, flags=re.MULTILINE)) == set(action.choices)
    assert set(re.findall(r"^## fastattention ([a-z]+)", text, flags=re.MULTILINE)) == set(action.choices)
