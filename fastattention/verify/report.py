"""What came of it: as data, as JSON, and as text."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["SCHEMA", "Failure", "Report", "Result"]

#: Raised whenever a field changes its meaning.
SCHEMA = "verify-1"


@dataclass
class Result:
    """One case in one data type.

    Attributes
    ----------
    case, group, dtype : str
    sizes : dict of str to int
        Fields of `Sizes`.
    error : float
        Largest error in units of the tolerance: above 1 is wrong.
    finding : dict, optional
        Fields of `Finding`; None where nothing is wrong.
    """

    case: str
    group: str
    dtype: str
    sizes: dict[str, int]
    error: float
    finding: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.finding is None


@dataclass
class Failure:
    """The first failing case at its smallest, and a map of the errors of the whole one."""

    result: Result
    heat_map: dict[str, Any] | None = None


@dataclass
class Report:
    """A kernel held to the reference.

    Attributes
    ----------
    kernel, date, note : str
    seed : int
        Which random numbers: the same seed makes the same cases.
    environment : dict
        Processor, system, versions.
    features, not_declared, dtypes : list of str
        What was tried, and what was not since the kernel does not declare it.
    tiles : list of int
        Lengths of the kernel's first key tile, for many queries and for one, as far as they could be told.
    results : list of Result
    left_out : dict of str to str
        Cases that were not tried, and why.
    repeats, threads : dict of str to bool or None
        By data type whether a call gives the same bits again, and with any number of threads; None where that
        could not be tried.
    smallest : Failure, optional
    seconds : float
    """

    kernel: str
    date: str
    seed: int
    note: str
    environment: dict[str, Any]
    features: list[str]
    dtypes: list[str]
    not_declared: list[str]
    tiles: list[int]
    results: list[Result]
    left_out: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, bool | None] = field(default_factory=dict)
    threads: dict[str, bool | None] = field(default_factory=dict)
    smallest: Failure | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every case that was tried is right."""
        return all(result.passed for result in self.results)

    @property
    def failures(self) -> list[Result]:
        """The cases that are wrong, in the order from simple to hard."""
        return [result for result in self.results if not result.passed]

    @property
    def first(self) -> Result | None:
        """The simplest case that is wrong."""
        return next(iter(self.failures), None)

    @property
    def groups(self) -> dict[str, list[Result]]:
        """The results by what they are about."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.group, []).append(result)
        return found

    def __str__(self) -> str:
        bad = len(self.failures)
        text = f"{self.kernel}: {len(self.results) - bad} of {len(self.results)} cases right"
        if self.first is not None:
            text += f"; {self.first.group} breaks first: {describe(self.first)}"
        return text

    def summary(self) -> str:
        """Return the outcome in a few lines: how many cases are right, what breaks first, at its smallest."""
        bad = len(self.failures)
        lines = [f"{self.kernel}: {len(self.results) - bad} of {len(self.results)} cases right"]
        if self.first is not None:
            lines += [f"what breaks first: {self.first.group}", describe(self.first, "\n  ")]
        if self.smallest is not None:
            lines += ["at its smallest:", describe(self.smallest.result, "\n  ")]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON: infinite errors are the text "inf"."""
        found = _plain({"schema": SCHEMA, **asdict(self), "passed": self.passed})
        assert isinstance(found, dict)
        return found

    def save(self, path: Path | str) -> None:
        """Write the report as JSON."""
        data = self.to_json()
        # A line for each result: a file that people read, and that differs where results do.
        lines = [json.dumps(result, allow_nan=False) for result in data.pop("results")]
        text = json.dumps(data | {"results": []}, indent=1, allow_nan=False)
        whole = ",\n  ".join(lines).join(("[\n  ", "\n ]")) if lines else "[]"
        Path(path).write_text(text[: text.rindex("[]")] + whole + "\n}\n", encoding="utf-8")


def describe(result: Result, gap: str = " ") -> str:
    """Return a case and what is wrong with it, in parts with `gap` between them."""
    sizes = ", ".join(f"{_SHORT[name]} {value}" for name, value in result.sizes.items())
    text = f"{result.case} ({result.dtype}; {sizes})"
    finding = result.finding
    if finding is None:
        return text
    if finding["message"]:
        return f"{text}:{gap}{finding['message']}"
    names = ("batch", "head", "query", "feature")
    place = ", ".join(f"{name} {index}" for name, index in zip(names, finding["place"], strict=False))
    return (
        f"{text}:{gap}{finding['what']} {finding['actual']:.6g} where {finding['expected']:.6g} is right, "
        f"{amount(finding['error'])} tolerances off,{gap}at {place}"
    )


def amount(error: float) -> str:
    """Return an error in three digits."""
    return "infinitely many" if math.isinf(error) else f"{error:.3g}"


_SHORT = {
    "batch": "B", "q_heads": "Hq", "kv_heads": "Hkv", "q_len": "Sq", "k_len": "Sk", "head_dim": "D",
    "v_dim": "Dv",
}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
