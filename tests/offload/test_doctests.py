"""The examples in the planner's docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["plan"])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"fastattention.offload.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
