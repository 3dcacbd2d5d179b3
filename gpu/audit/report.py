"""Studies as a table, as JSON, and as a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from .bound import PEAK_TFLOPS
from .study import Execution, Study

NOTE = " ".join(
    f"""\
Volta's columns are of one warp and one tile of keys in the steady state, executed in an emulator of sm_70;
error is the largest difference of the kernel's output from float64. "busy" is a model, not a measurement: the
share of time in which a V100's tensor cores can be busy if everything overlaps, and in brackets what is busy
longest; times {PEAK_TFLOPS:g} TFLOP/s it is an upper bound. "in order" adds the compiler's schedule,
latencies (some assumed) and the number of warps: an estimate. Neither knows of memory behind L2, of clocks,
of the beginning and end of a CTA, nor of the part of the causal diagonal that is computed and thrown
away.""".split()
)

# On a V100, causal, float16, as their authors published them (D=256: 1CatAI). The model has not seen their
# code.
PUBLISHED = ((128, 20.0, "D=128 at 8K"), (256, 46.6, "D=256, the best known"))


def as_json(studies: Sequence[Study]) -> str:
    return json.dumps({"model": NOTE, "studies": [study.as_dict() for study in studies]}, indent=1)


_WIDTH = 100  # readable in a plain terminal and in a log


def _code(study: Study) -> list[str]:
    c = study.configuration
    return [
        f"sm_{c.architecture}",
        c.source.removesuffix(".cu"),
        c.label,
        str(study.registers),
        str(study.spills),
        f"{study.shared_bytes / 1024:.0f}",
        "" if study.ctas is None else str(study.ctas),
        "" if study.loop_hmma is None else f"{study.loop_hmma}/{study.loop_hmma_needed}",
        "FAILS" if study.failures else "passes" if study.tolerated else "ok",
    ]


def _executed(study: Study, e: Execution) -> list[str]:
    others = (e.steady - e.issue["tensor"]) / e.issue["tensor"]
    return [
        study.configuration.label,
        f"{others:.2f}",
        f"{e.load_wavefronts}/{e.load_ideal}",
        f"{e.store_wavefronts}/{e.store_ideal}",
        f"{e.error:.0e}",
        f"{e.bound:.0%} ({e.limit})",
        f"{e.in_order:.0%}",
    ]


_CODE = ("arch", "kernel", "configuration", "regs", "spill B", "KiB", "CTAs", "HMMA/due", "")
_EXECUTED = (
    "configuration", "others/HMMA", "LDS/ideal", "STS/ideal", "error",
    "MODEL: busy", "in order",
)  # fmt: skip


def _table(title: str, headings: Sequence[str], left: int, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )  # fmt: skip
    for number, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if number <= left else "right", overflow="fold", no_wrap=number > left
        )
    for row in rows:
        table.add_row(*row, style="red" if row[-1] == "FAILS" else None)
    return table


def print_table(studies: Sequence[Study]) -> None:
    console = Console(width=_WIDTH)
    console.print(_table("Machine code of the CUDA kernels", _CODE, 2, [_code(study) for study in studies]))
    executed = [_executed(study, study.execution) for study in studies if study.execution]
    if executed:
        title = "Volta: executed in an emulator; how busy a V100 could be is a MODEL, not a measurement"
        console.print(_table(title, _EXECUTED, 0, executed))
        console.print(NOTE, highlight=False)
        _compare(lambda line: console.print(line, highlight=False), studies)
    for study in studies:
        for failure in study.failures:
            c = study.configuration
            console.print(
                f"FAILS sm_{c.architecture} {c.source} {c.label}: {failure}", style="red", highlight=False
            )
        for word in study.tolerated:
            c = study.configuration
            console.print(f"passes, sm_{c.architecture} {c.source} {c.label}: {word}", highlight=False)
    failed = sum(bool(study.failures) for study in studies)
    console.print(
        f"{len(studies) - failed} of {len(studies)} configurations are as required", highlight=False
    )


def _compare(say: Callable[[str], None], studies: Sequence[Study]) -> None:
    """The models beside what others measured, to show how far such figures are from life."""
    for dim, reached, where in PUBLISHED:
        for study in studies:
            e, c = study.execution, study.configuration
            if e and c.number("HEAD_DIM") == dim and c.plain and c.source == "04_prefetch.cu":
                share = reached / PEAK_TFLOPS
                say(
                    f"How far that is from life: published on a V100, {where}: {reached:g} TFLOP/s, "
                    f"{share:.0%} of peak. Of ours the models say {e.bound:.0%} and {e.in_order:.0%}. "
                    "Assuming that that kernel is built as ours, it reached "
                    f"{share / e.bound:.2f} and {share / e.in_order:.2f} of them."
                )
                break
