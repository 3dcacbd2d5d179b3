"""The results of a run, and their JSON file: hardware, date, versions, every case."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import results as cpu_results
from .cases import ErrorCase

__all__ = [
    "KNOWN",
    "MORE",
    "MORE_OF_LARGE",
    "SCHEMA",
    "SLACK",
    "Errors",
    "Row",
    "Run",
    "from_json",
    "load",
    "save",
    "to_json",
]

#: Raised whenever a field changes its meaning, or a reader must know of a new one.
SCHEMA = "errors-1"

#: Up to how many times PyTorch's root mean square error counts as not more, which is what chance does with
#: other numbers of the same kind,
MORE = 1.1

#: and by how many units in the last place: what the order of a few additions makes.
SLACK = 0.25

#: Of large logits a few rows make nearly all of the error, so the geometric mean over all lengths is judged.
MORE_OF_LARGE = 1.25

#: Kernels that are less accurate, and why. 16 rows of a KV head are prefill to them, where a score is one sum
#: of D products; PyTorch's product of matrix and vector adds up 16 lanes, and then those.
KNOWN = {("group", "baseline"), ("group", "avx2")}


@dataclass(frozen=True, slots=True)
class Errors:
    """How far an output is from float64, over all elements that were compared.

    Attributes
    ----------
    largest, rms : float
        In units in the last place of the output's type, of the element or of its row's root mean square,
        whichever is larger: see `measure.unit_of`. Correctly rounded is 0.5 at most.
    own : float
        The largest in units of the element itself. Where values cancel it says little.
    of_tolerance : float
        The largest in parts of the element's tolerance, `fastattention.verify.tolerances`.
    of_bound : float, optional
        The largest in parts of the element's own bound, `fastattention.verify.budget`. Of our kernels only,
        as what follows.
    bound, bound_rms : float, optional
        The largest bound and the root mean square of all, in the units of `largest`.
    """

    largest: float
    rms: float
    own: float
    of_tolerance: float
    of_bound: float | None = None
    bound: float | None = None
    bound_rms: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One case.

    Attributes
    ----------
    case : ErrorCase
    rows : int
        Query rows that were compared, of `HEAD_DIM` elements each.
    kernels : dict of str to Errors
        By instruction set; those that have kernels of their own for the case.
    pytorch : Errors, optional
        None where it is not installed.
    """

    case: ErrorCase
    rows: int
    kernels: dict[str, Errors]
    pytorch: Errors | None

    def worse(self) -> list[str]:
        """Return the instruction sets whose kernels are less accurate than PyTorch, by more than chance.

        Of large logits that takes more than one case to say: `Run.worse`.
        """
        if self.pytorch is None or self.case.kind == "large":
            return []
        most = MORE * self.pytorch.rms + SLACK
        return [isa for isa, found in self.kernels.items() if found.rms > most]


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run.

    Attributes
    ----------
    date : str
        ISO 8601, UTC.
    environment : dict
        See `environment.describe`.
    options : dict
        How the benchmark was called.
    rows : list of Row
    """

    date: str
    environment: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def worse(self) -> list[tuple[str, str]]:
        """Return (case, instruction set) where we are less accurate than PyTorch by more than chance.

        Of large logits the name leaves out the number of keys.
        """
        found = [(row.case.name, isa) for row in self.rows for isa in row.worse()]
        logs: dict[tuple[str, str], list[float]] = {}
        for row in self.rows:
            if row.case.kind == "large" and row.case.keys > 1 and row.pytorch is not None:
                for isa, ours in row.kernels.items():
                    ratio = (ours.rms + SLACK) / (row.pytorch.rms + SLACK)
                    logs.setdefault((row.case.name.rpartition("/")[0], isa), []).append(math.log(ratio))
        return found + [
            name for name, ratios in logs.items() if statistics.fmean(ratios) > math.log(MORE_OF_LARGE)
        ]

    def unexpected(self) -> list[tuple[str, str]]:
        """Return those of `worse` that are not `KNOWN`."""
        return [(name, isa) for name, isa in self.worse() if (name.partition("/")[0], isa) not in KNOWN]


def to_json(run: Run) -> dict[str, Any]:
    """Return what the file holds: the fields of `Run`, plus a summary of each row."""
    content: dict[str, Any] = {"schema": SCHEMA, **asdict(run)}
    content["worse_than_pytorch"] = [f"{name} ({isa})" for name, isa in run.worse()]
    for row, entry in zip(run.rows, content["rows"], strict=True):
        entry["summary"] = {
            "name": row.case.name,
            "of_pytorch": {isa: found.rms / row.pytorch.rms for isa, found in row.kernels.items()}
            if row.pytorch and row.pytorch.rms
            else {},
        }
    return content


def from_json(content: dict[str, Any]) -> Run:
    """Return the run that `to_json` gave; ValueError for another schema."""
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"results have schema {content.get('schema')!r}; of errors, this version reads {SCHEMA!r}"
        )
    rows = [
        Row(
            ErrorCase(**entry["case"]),
            entry["rows"],
            {isa: Errors(**found) for isa, found in entry["kernels"].items()},
            None if entry["pytorch"] is None else Errors(**entry["pytorch"]),
        )
        for entry in content["rows"]
    ]
    return Run(content["date"], content["environment"], content["options"], rows)


def save(run: Run, path: Path) -> None:
    """Write the run to `path`, whole or not at all."""
    cpu_results.write(to_json(run), path)


def load(path: Path) -> Run:
    """Read a file that `save` wrote; ValueError when it is none."""
    return from_json(cpu_results.read(path))
