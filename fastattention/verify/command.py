"""``fastattention verify``: hold a kernel to the reference, and show what came of it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..seed import read_seed
from .adapters import adapt, load
from .cases import FEATURES
from .run import verify

__all__ = ["add_arguments", "main"]

_DTYPES = ("float32", "float16", "bfloat16")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "kernel",
        help="module:function, as torch.nn.functional:scaled_dot_product_attention, of a function or an "
        "Adapter; or an ONNX file with an Attention node",
    )
    parser.add_argument(
        "--features",
        type=_names,
        metavar="NAMES",
        help=f"what to try, by commas, of what the kernel declares: {', '.join(FEATURES)}",
    )
    parser.add_argument(
        "--dtypes", type=_names, metavar="NAMES", help=f"data types, by commas: {', '.join(_DTYPES)}"
    )
    parser.add_argument(
        "--seed", type=read_seed, default=0, metavar="N", help="of the random numbers (default 0)"
    )
    parser.add_argument("--only", metavar="TEXT", help="cases with this in their name, or of this group")
    parser.add_argument(
        "--causal", action="store_true", help="the kernel is causal in every call, without being asked"
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report there as a page")


def main(args: argparse.Namespace) -> int:
    """Verify; return 0 when all is right, 1 when something is wrong, 2 when it could not be tried."""
    if importlib.util.find_spec("rich") is None:
        return _complain("the report needs rich: pip install 'fastattention[bench]'")
    for path in (args.json, args.html):
        if path is not None and not path.resolve().parent.is_dir():
            return _complain(f"--json, --html: there is no folder {path.resolve().parent}")
    sys.path.insert(0, "")  # modules beside the caller
    try:
        kernel: Any = load(args.kernel)
        name = None if isinstance(kernel, Path) else args.kernel
        adapter = adapt(kernel, name)
    except (TypeError, ValueError, ImportError) as problem:
        return _complain(str(problem))
    from .show import page, progress, show

    try:
        with progress() as tell:
            report = verify(
                adapter, features=args.features, dtypes=args.dtypes, seed=args.seed, only=args.only,
                quick=args.quick, causal=args.causal, progress=tell,
            )  # fmt: skip
    except ValueError as problem:
        return _complain(str(problem))
    show(report, args.kernel)
    if args.json is not None:
        report.save(args.json)
    if args.html is not None:
        args.html.write_text(page(report, args.kernel), encoding="utf-8")
    return 0 if report.passed else 1


def _complain(text: str) -> int:
    print(f"fastattention verify: {text}", file=sys.stderr)
    return 2
