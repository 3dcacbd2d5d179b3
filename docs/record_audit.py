"""Record what the audit finds of Volta's machine code, for the book: ``python docs/record_audit.py``.

This needs the extra ``sass`` (95 MB of compilers), the book's build does not: it reads the file written here,
``results/audit-volta.json``, and says when the kernels have changed since.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fastattention.gpu import choose
from fastattention.gpu.audit import bound, configurations, report, sass, study, toolchain

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "results" / "audit-volta.json"
SCHEMA = 1
STEPS = ("03_tensor_cores.cu", "04_prefetch.cu")
DIMS = (64, 128, 256)
#: Arrangements with four warps, to compare: warps, rows of a warp, keys, quad-pairs abreast.
OTHERS = {64: (4, 32, 64, 1), 128: (4, 32, 32, 1), 256: (4, 16, 16, 2)}
EXCERPT = 15  # instructions


def sources(folder: Path) -> str:
    """Return a digest of the steps' sources in `folder` and of what they include, by name and content."""
    left, seen = list(STEPS), {}
    while left:
        name = left.pop()
        if name not in seen:
            seen[name] = (folder / name).read_bytes()
            left += re.findall(r'^#include "([^"]+)"', seen[name].decode(), flags=re.MULTILINE)
    digest = hashlib.sha256()
    for name, content in sorted(seen.items()):
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def arrangements() -> Iterator[tuple[str, configurations.Configuration]]:
    """Yield the launcher's arrangement in steps 3 and 4 for each head dimension, and another one."""
    for dim in DIMS:
        chosen = choose.configure(70, "float16", "float16", dim, dim, 4096, aligned=True, modified=False)
        launched = configurations.Configuration(chosen, 70)
        step_before = replace(chosen, file=STEPS[0])
        yield "step before", configurations.Configuration(step_before, 70)
        yield "launched", launched
        warps, rows, keys, abreast = OTHERS[dim]
        yield "other", configurations.prefill(70, dim, warps, rows, keys, abreast=abreast)


def excerpt(found: configurations.Configuration) -> list[str]:
    """Return the loop's instructions around its first complete product, as the disassembler prints them."""
    compiled = toolchain.compile_kernel(found.source, 70, found.macros, entry=found.chosen.entry)
    code = toolchain.disassemble(compiled)
    loop = sass.tensor_loop(code)
    assert loop is not None, "no loop with matrix instructions"
    products = [n for n in range(loop.first, loop.last) if code[n].name == "HMMA"]
    first = max(loop.first, products[0] - EXCERPT // 2)
    return [f"{i.opcode} {', '.join(i.operands)}".strip() for i in code[first : first + EXCERPT]]


def main() -> int:
    missing = toolchain.available()
    if missing:
        print(missing, file=sys.stderr)
        return 2
    studies = []
    for role, one in arrangements():
        found = study.examine(one)
        print(role, one.source, one.label, "; ".join(found.failures) or "ok")
        studies.append({"role": role, "label": one.label, **found.as_dict()})
    launched = next(
        one for role, one in arrangements() if role == "launched" and one.number("HEAD_DIM") == 128
    )
    content = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": "no GPU: compiled for sm_70, executed by an emulator",
        "versions": dict(package.split("==") for package in toolchain.PACKAGES),
        "sources": sources(toolchain.KERNELS),
        "model": report.NOTE,
        "peak_tflops": bound.PEAK_TFLOPS,
        "published": [
            {"head_dim": dim, "tflops": reached, "what": what} for dim, reached, what in report.PUBLISHED
        ],
        "excerpt": {"label": launched.label, "lines": excerpt(launched)},
        "studies": studies,
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
