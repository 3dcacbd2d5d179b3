"""The option ``--seed`` of the commands that draw random numbers."""

from __future__ import annotations

import argparse

__all__ = ["read_seed"]


def read_seed(text: str) -> int:
    """Read a seed: a whole number, 0 or more, as NumPy's generators take it."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return number
