"""The audit's bank model against the specification's."""

from __future__ import annotations

import numpy as np
import pytest
from fastattention.gpu.audit.banks import wavefronts

from reference.volta import bank_conflicts

ALL = np.ones(32, bool)


@pytest.mark.parametrize(
    ("stride", "size", "taken"),
    [(4, 4, 1), (128, 4, 32), (8, 8, 2), (16, 16, 4), (256, 16, 32), (272, 16, 4), (0, 16, 4)],
)
def test_strides(stride: int, size: int, taken: int) -> None:
    ideal = max(size // 4, 1)
    assert wavefronts(stride * np.arange(32), ALL, size) == (taken, ideal)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_random_accesses(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(200):
        addresses = size * rng.integers(0, rng.choice([8, 64, 4096]), 32)
        active = rng.random(32) < rng.choice([0.2, 0.7, 1.0])
        found = wavefronts(addresses, active, size)
        assert found[0] == bank_conflicts.wavefronts(addresses, size, active=active)
        assert found[1] == bank_conflicts.ideal(size, active=active)
