"""``fastattention plan``: what lies where, and what a token takes."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

from .hardware import PRESETS, Hardware, hardware
from .plan import WAYS, plan_offload
from .shapes import SHAPES, model_shape

__all__ = ["add_arguments", "main", "number", "tokens"]

_EPILOG = """\
examples:
  fastattention plan --model llama-3-8b --gpu v100-16gb --context 256k
  fastattention plan --model path/to/config.json --gpu detect --context 64k --batch 4
  fastattention plan --model llama-7b --gpu t4 --context 32k --kv-dtype int8 --host-memory 28e9
  fastattention plan --model llama-3-8b --gpu rtx-3090 --context 128k --json plan.json

exit codes: 0 it fits, 2 it does not, or bad input (one line on standard error)"""

_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_NUMBERS = [field for field in dataclasses.fields(Hardware) if field.name not in ("name", "source")]


def tokens(text: str) -> int:
    """Read a number of tokens: "32768", "32k" or "1m", in powers of 1,024."""
    found = re.fullmatch(r"(\d+)([km]?)", text.strip().lower().replace(",", "").replace("_", ""))
    if found is None or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected tokens, such as 32768, 32k or 1m")
    return int(found[1]) * _UNITS[found[2]]


def number(text: str) -> float:
    """Read a number, of bytes for example: "16e9", "16G" (10^9) or "16Gi" (2^30)."""
    found = re.fullmatch(r"(.*?)([kmgt]?)(i?)", text.strip().lower())
    assert found is not None
    digits, letter, binary = found.groups()
    try:
        return float(digits) * (1024 if binary else 1000) ** (" kmgt".index(letter or " "))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, such as 16e9, 16G or 16Gi") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``fastattention plan`` on `parser`."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help=f"{', '.join(SHAPES)}, or a config.json of Hugging Face",
    )
    parser.add_argument(
        "--gpu",
        default="detect",
        metavar="NAME",
        help=f"{', '.join(PRESETS)}, or detect: measure this machine, in seconds (default)",
    )
    parser.add_argument("--context", required=True, type=tokens, metavar="N", help="tokens: 32768, 256k, 1m")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default: 1)")
    parser.add_argument(
        "--kv-dtype", default="float16", metavar="TYPE", help="float16, bfloat16, float32, int8"
    )
    parser.add_argument(
        "--weight-dtype", default="float16", metavar="TYPE", help="float16 (default), float32"
    )
    parser.add_argument(
        "--way", choices=("auto", *WAYS), default="auto", help="who attends to what lies in host memory"
    )
    parser.add_argument(
        "--gpu-layers", type=int, metavar="N", help="keep at most so many layers' caches on the GPU"
    )
    parser.add_argument(
        "--chunk", type=int, metavar="N", help="prompt tokens that go through the layers at a time"
    )
    parser.add_argument("--slots", type=int, metavar="N", help="places on the GPU for caches on their way up")
    parser.add_argument("--slot-tokens", type=int, metavar="N", help="tokens of such a place")
    parser.add_argument(
        "--share", type=float, metavar="F", help="of a split layer's keys, the CPU's (0 to 1)"
    )
    parser.add_argument("--halves", type=int, choices=(1, 2), help="2: two half batches take turns")
    parser.add_argument("--threads", type=int, metavar="N", help="of CPU attention")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.05,
        metavar="F",
        help="share of each memory to leave alone (default: 0.05)",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the plan as JSON, to standard output by default",
    )
    group = parser.add_argument_group(
        "the machine", "Each of its numbers can be given: bytes, bytes/s, FLOP/s, s."
    )
    for field in _NUMBERS:
        group.add_argument("--" + field.name.replace("_", "-"), type=number, metavar="X")


def main(args: argparse.Namespace) -> int:
    """Run ``fastattention plan``; return its exit code."""
    try:
        given = {field.name: getattr(args, field.name) for field in _NUMBERS}
        numbers = {
            field.name: int(given[field.name]) if field.type == "int" else given[field.name]
            for field in _NUMBERS
            if given[field.name] is not None
        }
        shape = model_shape(args.model)
        plan = plan_offload(
            shape, _machine(args.gpu, numbers), context=args.context, batch=args.batch,
            kv_dtype=args.kv_dtype, weight_dtype=args.weight_dtype, way=args.way,
            gpu_layers=args.gpu_layers, chunk=args.chunk,
            slots=args.slots, slot_tokens=args.slot_tokens, share=args.share, halves=args.halves,
            threads=args.threads, margin=args.margin,
        )  # fmt: skip
        if args.json == "-":
            print(plan.to_json())
            return 0
        if args.json is not None:
            Path(args.json).write_text(plan.to_json() + "\n", encoding="utf-8")
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        print(f"fastattention plan: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(plan)
    return 0


def _machine(name: str, numbers: dict[str, float]) -> Hardware:
    if name == "detect":
        from .detect import detect

        found = detect(**numbers)
    else:
        found = hardware(name).replace(**numbers)
    return found.replace(source=f"{found.source}; given: {', '.join(numbers)}") if numbers else found
