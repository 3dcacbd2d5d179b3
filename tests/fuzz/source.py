"""Choices out of bytes: the same bytes always make the same choices, and a fuzzer changes the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Source:
    """Bytes, read from the front; behind the end they are 0, which makes the plainest choice."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, count: int) -> int:
        """Return a number from 0 to `count` - 1, at most 65535."""
        width = 1 if count <= 256 else 2
        part = self._data[self._at : self._at + width]
        self._at += width
        return int.from_bytes(part, "little") % count

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.number(len(choices))]

    def seldom(self, one_in: int = 8) -> bool:
        """Return True once in `one_in` times, never behind the end."""
        return self.number(one_in) == one_in - 1

    def generator(self) -> np.random.Generator:
        """Return a generator of numbers, of 256 that there are."""
        return np.random.default_rng(self.number(256))
