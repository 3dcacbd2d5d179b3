"""How far a result may lie from the float64 oracle: the table of `fastattention verify`."""

from fastattention.verify.tolerances import (
    DTYPES,
    PAIRS,
    TOLERANCES,
    Error,
    Expected,
    Problem,
    Rounding,
    error_in_tolerances,
    independent_attention,
    rounding_of,
    tolerances,
)

__all__ = [
    "DTYPES", "PAIRS", "TOLERANCES", "Error", "Expected", "Problem", "Rounding", "error_in_tolerances",
    "independent_attention", "rounding_of", "tolerances",
]  # fmt: skip
