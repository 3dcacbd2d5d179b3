"""The fixture `attention_oracle` for everybody's tests, found by pytest wherever FastAttention is installed.

This module is installed by itself, outside the package: pytest loads it for every run in the environment, and
a run that does not ask for the fixture must not have to import the package, let alone fail where it cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastattention.verify import AttentionOracle


@pytest.fixture(scope="session")
def attention_oracle() -> AttentionOracle:
    """Attention in float64, and assertions that hold a kernel to it: fastattention.verify.AttentionOracle."""
    from fastattention.verify import AttentionOracle

    return AttentionOracle()
