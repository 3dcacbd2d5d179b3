"""Studies as a table, as JSON, and as a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from .bound import PEAK_TFLOPS
from .study import Study

NOTE = f"""\
Volta's columns are of one warp and one tile of keys in the steady state, executed in an emulator of sm_70;
error is the largest difference of the kernel's output from float64. "busy" is a model, not a measurement: the
share of time in which a V100's tensor cores can be busy if everything overlaps, and in brackets what is busy
longest; times {PEAK_TFLOPS:g} TFLOP/s it is an upper bound. "in order" adds the compiler's schedule,
latencies (some assumed) and the number of warps: an estimate. Neither knows of memory behind L2, of clocks,
of the beginning and end of a CTA, nor of the part of the causal diagonal that is computed and thrown away."""

# FACTS 4: causal, float16. Kernels of others, whose code the model has not seen.
PUBLISHED = ((128, 20.0, "D=128 at 8K"), (256, 46.6, "D=256, the best known"))


def as_json(studies: Sequence[Study]) -> str:
    return json.dumps({"model": NOTE, "studies": [study.as_dict() for study in studies]}, indent=1)


def _cells(study: Study) -> list[str]:
    c, e = study.configuration, study.execution
    cells = [
        f"sm_{c.architecture}",
        c.source.removesuffix(".cu"),
        c.label,
        str(study.registers),
        str(study.spills),
        f"{study.shared_bytes / 1024:.0f}" if c.prefill else "",
        "" if study.ctas is None else str(study.ctas),
        "" if study.loop_hmma is None else f"{study.loop_hmma}/{study.loop_hmma_needed}",
    ]
    if e:
        others = (e.steady - e.issue["tensor"]) / e.issue["tensor"]
        names = ("LDG", "LDS", "STS", "SHFL", "MUFU", "F2F")
        cells += [
            f"{others:.2f}",
            f"{e.load_wavefronts}/{e.load_ideal}",
            f"{e.store_wavefronts}/{e.store_ideal}",
            " ".join(str(e.issue.get(name, 0)) for name in names)
            + f" {e.issue.get('multiply', 0)} {e.issue.get('integer', 0)} {e.issue.get('control', 0)}",
            f"{e.error:.0e}",
            f"{e.bound:.0%} ({e.limit})",
            f"{e.in_order:.0%}",
        ]
    else:
        cells += [""] * 7
    return [*cells, "FAILS" if study.failures else "ok"]


_HEADINGS = (
    "arch", "kernel", "configuration", "regs", "spill B", "shared KiB", "CTAs/SM", "HMMA/needed",
    "others per HMMA", "LDS waves/ideal", "STS waves/ideal", "LDG LDS STS SHFL MUFU F2F fp32 int control",
    "error", "busy <= (by)", "in order", "",
)  # fmt: skip


def print_table(studies: Sequence[Study]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 260)
    table = Table(title="Machine code of the CUDA kernels", header_style="bold")
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number in (1, 2, 11) else "right", no_wrap=number == 2)
    for study in studies:
        table.add_row(*_cells(study), style="red" if study.failures else None)
    console.print(table)
    if any(study.execution for study in studies):
        console.print(NOTE, highlight=False)
        _compare(lambda line: console.print(line, highlight=False), studies)
    for study in studies:
        for failure in study.failures:
            c = study.configuration
            console.print(
                f"FAILS sm_{c.architecture} {c.source} {c.label}: {failure}", style="red", highlight=False
            )
    failed = sum(bool(study.failures) for study in studies)
    console.print(
        f"{len(studies) - failed} of {len(studies)} configurations are as required", highlight=False
    )


def _compare(say: Callable[[str], None], studies: Sequence[Study]) -> None:
    """The models beside what others measured, to show how far such figures are from life."""
    for dim, reached, where in PUBLISHED:
        for study in studies:
            e, c = study.execution, study.configuration
            plain = not c.definitions.get("MODIFIED") and c.definitions.get("ALIGNED")
            if e and c.definitions["HEAD_DIM"] == dim and plain and c.source == "04_prefetch.cu":
                share = reached / PEAK_TFLOPS
                say(
                    f"How far that is from life: published on a V100, {where}: {reached:g} TFLOP/s, "
                    f"{share:.0%} of peak. Of ours the models say {e.bound:.0%} and {e.in_order:.0%}. "
                    "Assuming that that kernel is built as ours, it reached "
                    f"{share / e.bound:.2f} and {share / e.in_order:.2f} of them."
                )
                break
