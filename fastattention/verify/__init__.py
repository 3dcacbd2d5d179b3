"""Anybody's attention kernel held to the float64 reference.

`verify` runs it on `cases`; an `Adapter` says what the kernel takes, a `Report` what is wrong, and where.
"""

from .adapters import Adapter, adapt
from .cases import FEATURES, Case, Sizes, cases
from .oracle import AttentionOracle
from .report import Report, Result
from .run import verify
from .tolerances import Problem

__all__ = [
    "FEATURES", "Adapter", "AttentionOracle", "Case", "Problem", "Report", "Result", "Sizes", "adapt",
    "cases", "verify",
]  # fmt: skip
