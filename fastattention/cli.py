"""The command ``fastattention``. Each subcommand lives in its own module and is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__, bench, get_isa

__all__ = ["main"]

_DESCRIPTION = """\
Exact attention for the hardware you have: fast CPU kernels, proven against a readable NumPy reference.

From Python:  import fastattention; out = fastattention.attention(q, k, v, causal=True)
"""

_EPILOG = """\
examples:
  fastattention config                      what this installation runs on: instruction set, threads, compiler
  fastattention bench --quick               how fast it is here, and how near to what the machine can do
  fastattention generate "Once upon a time"  a small language model, on these kernels
  fastattention plan --model llama-3-8b --gpu v100-16gb --context 256k
                                            where a KV cache is to lie that the GPU cannot hold
  fastattention verify mymodule:my_attention
                                            what is wrong with a kernel of yours, and where
"""


def _config(args: argparse.Namespace) -> int:
    from .config import show_config

    show_config()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastattention",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastattention {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "bench",
        help="time the kernels against this machine's limits and other libraries",
        description="Time the kernels against this machine's measured limits and, where installed, other "
        "libraries. Outputs are checked before anything is timed. One-thread rows run on one core, for every "
        "library.",
    )
    bench.add_arguments(command)
    command.set_defaults(main=bench.main)

    from .models import generate

    command = commands.add_parser(
        "generate",
        help="let a small language model continue a text",
        description="Let a small language model continue a text, its attention computed by these kernels.",
    )
    generate.add_arguments(command)
    command.set_defaults(main=generate.main, in_turns_with_blas=True)

    from .offload import command as plan

    command = commands.add_parser(
        "plan",
        help="plan where a KV cache lies when it outgrows the GPU",
        description="Plan where a model's KV cache lies when it outgrows the GPU, and what a token then "
        "takes. Needs no GPU.",
    )
    plan.add_arguments(command)
    command.set_defaults(main=plan.main)

    from .verify import command as verify

    command = commands.add_parser(
        "verify",
        help="hold an attention kernel, yours or a library's, to the reference",
        description="Hold an attention kernel to the float64 reference, on the cases where kernels go wrong. "
        "The exit code is 0 when all is right, 1 when something is wrong, 2 when it could not be tried.",
    )
    verify.add_arguments(command)
    command.set_defaults(main=verify.main)

    from .runtime import launch

    command = commands.add_parser(
        "launch",
        help="run a Python script on several ranks: CPU ranks by MPI, GPUs by NCCL",
        description="Run a Python script on several ranks, which find each other by "
        "fastattention.runtime.communicator.connect(). When one fails, the others are stopped.",
    )
    launch.add_arguments(command)
    command.set_defaults(main=launch.main)

    command = commands.add_parser(
        "config",
        help="show instruction set, threads, compiler and caches",
        description="Show what this installation runs on.",
    )
    command.set_defaults(main=_config)
    return parser


def _let_blas_sleep() -> None:
    """Start this process again, its OpenBLAS threads spinning for 2^22 cycles between products, not 2^26.

    Spinning, they hold the cores that attention needs in between. OpenBLAS reads this once, when NumPy is
    imported, before any code of ours. A choice of the user's stands.
    """
    name = "OPENBLAS_THREAD_TIMEOUT"
    if name not in os.environ:
        os.environ[name] = "22"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-P", "-m", __package__, *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 when a check failed, 2 when it was called wrongly.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.
    """
    args = _parser().parse_args(argv)
    if argv is None and getattr(args, "in_turns_with_blas", False):
        _let_blas_sleep()
    try:
        get_isa()  # FASTATTENTION_ISA may name what this machine lacks
    except ValueError as problem:
        print(f"fastattention: error: {problem}", file=sys.stderr)
        return 2
    try:
        code: int = args.main(args)
    except KeyboardInterrupt:
        print("fastattention: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe had enough: no error of ours
        sys.stderr.close()
        return 141
    return code
