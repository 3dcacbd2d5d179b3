"""The examples in the docstrings, all of them; every public module has some."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import reference
from reference import ascend, volta

MODULES = sorted(
    info.name.removeprefix("reference.") for info in pkgutil.walk_packages(reference.__path__, "reference.")
)


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("_")])
def test_examples(name):
    module = importlib.import_module(f"reference.{name}")
    result = doctest.testmod(module, report=True)
    assert result.attempted >= 1, f"reference.{name} has no example"
    assert result.failed == 0


@pytest.mark.parametrize("name", ["standard", "tiling", "decode"])
def test_attention_itself_has_an_example(name):
    """Decorators can hide a function from doctest."""
    module = importlib.import_module(f"reference.{name}")
    found = {test.name: test.examples for test in doctest.DocTestFinder().find(module)}
    assert found[f"reference.{name}.attention"]


def test_every_module_is_exported():
    public = {name for name in MODULES if not name.startswith("_")}
    assert {name for name in public if "." not in name} <= {*reference.__all__, "volta", "ascend"}
    for package in (ascend, volta):
        prefix = package.__name__.removeprefix("reference.") + "."
        assert {name.removeprefix(prefix) for name in public if name.startswith(prefix)} <= set(
            package.__all__
        )
    for package in (reference, ascend, volta):
        for name in package.__all__:
            assert hasattr(package, name)
