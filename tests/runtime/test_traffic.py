"""Traffic in words."""

from __future__ import annotations

import doctest

from fastattention.runtime import traffic


def test_the_examples():
    result = doctest.testmod(traffic)
    assert result.attempted == 2
    assert result.failed == 0


def test_small_and_untimed():
    numbers = {"seconds": 0.0, "up_bytes": 900, "down_bytes": 0, "cpu_bytes": 2e3, "cpu_seconds": 0.0}
    assert traffic.traffic(numbers) == "up 900 bytes, CPU attention 2.00 kB (0.0 GB/s)"
