"""``python -m fastattention.gpu.audit``, or from a checkout ``python -m gpu.audit``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import configurations
from .study import Study, examine
from .toolchain import ToolchainError, available


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastattention.gpu.audit",
        description="Compile the CUDA kernels without a GPU and check their machine code.",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also every variant, and the ladder",
    )
    parser.add_argument(
        "--candidates", action="store_true", help="Volta's arrangements to choose from; fails for none"
    )
    parser.add_argument(
        "--no-run", action="store_true", help="do not execute Volta's kernels in the emulator"
    )
    parser.add_argument("--arch", type=int, help="only this architecture: 70, 75, 80, 86 or 90")
    parser.add_argument(
        "--match", default="", help="only configurations with this text in their label or file"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write everything to a file; - is standard output"
    )
    args = parser.parse_args(arguments)
    missing = available()
    if missing:
        print(missing, file=sys.stderr)
        return 2
    if args.candidates:
        chosen = configurations.candidates()
    else:
        chosen = configurations.every() if args.all else configurations.principal()
    chosen = [
        c
        for c in chosen
        if args.arch in (None, c.architecture) and (args.match in c.label or args.match in c.source)
    ]
    if not chosen:
        print(f"no configuration matches --arch {args.arch} --match {args.match!r}", file=sys.stderr)
        return 2
    studies = []
    for number, c in enumerate(chosen, 1):
        if sys.stderr.isatty():
            print(
                f"\r{number}/{len(chosen)} sm_{c.architecture} {c.label:60.60}",
                end="",
                file=sys.stderr,
                flush=True,
            )
        try:
            studies.append(examine(c, execute=not args.no_run))
        except ToolchainError as error:
            studies.append(Study(c, 0, 0, 0, None, None, None, None, [f"does not compile: {error}"]))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    from .report import as_json, print_table  # needs rich, of the extra `sass`

    if args.json and str(args.json) == "-":
        print(as_json(studies))
    else:
        print_table(studies)
        if args.json:
            args.json.write_text(as_json(studies) + "\n", encoding="utf-8")
    return 0 if args.candidates else int(any(study.failures for study in studies))


if __name__ == "__main__":
    raise SystemExit(main())
