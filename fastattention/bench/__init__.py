"""``fastattention bench``: how fast the kernels are, against this machine's limits and other libraries.

One run holds everything its figures rest on. The machine's limits are probed between rounds of calls. Outputs
are checked against the reference before anything is timed. Other libraries, where installed, get the same
arrays and the same cores, and are checked likewise.

`cases` says what a row is and how useful work is counted, `rows` which there are, `data` what lies in their
arrays, `calls` how we are called, `limits` what a row is judged by, `measure` how an output is checked,
`rounds` in what order everybody is timed, `peers` how other libraries join, `memory` what a call needs beside
its arrays, `targets` what the kernels are meant to reach. `ladder` and
`perplexity` are benchmarks of their own: of kernels to learn from, of what a rounded cache costs a model. The
room `gpu` has that of the CUDA kernels, `offload` that of a cache in host memory, `allreduce` that of ranks,
`errors` measures no time but accuracy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..seed import read_seed

__all__ = ["add_arguments", "main"]

#: Peers by the name `--peers` takes, kept here so that the help text costs no import.
PEER_NAMES = ("pytorch", "onnxruntime", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``fastattention bench``."""
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads of the rows that use several (default: all cores; 1: only one-thread rows)",
    )
    parser.add_argument(
        "--isa",
        metavar="NAME",
        help="force an instruction set, such as avx2 (fastattention config lists them)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few rows, short timings: half a minute")
    size.add_argument("--full", action="store_true", help="more and longer rows")
    parser.add_argument(
        "--filter", metavar="WORDS", help='only rows with a part for every word, such as "decode float32"'
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--gpu",
        action="store_true",
        help="instead, measure the GPU, its kernels and PyTorch's (needs CuPy; no --threads, no --isa)",
    )
    other.add_argument(
        "--offload",
        action="store_true",
        help="instead, measure a KV cache in host memory: CPU and GPU together against classical offloading "
        "(needs CuPy)",
    )
    other.add_argument(
        "--allreduce",
        action="store_true",
        help="instead, start ranks and measure their AllReduce in tiles against in sequence and the formula",
    )
    other.add_argument(
        "--plot",
        type=Path,
        metavar="RESULTS",
        help="instead, draw the figures of a results file that is there",
    )
    other.add_argument(
        "--ladder",
        action="store_true",
        help="instead, climb from three loops to the library's kernel, one idea a step",
    )
    other.add_argument(
        "--errors",
        action="store_true",
        help="instead, measure how far every kernel's output is from float64, beside the bound and PyTorch's",
    )
    other.add_argument(
        "--perplexity",
        action="store_true",
        help="instead, measure what rounding the KV cache costs a language model (needs the extra models)",
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help="with --offload: instead of the rows, a prompt of 256K tokens on a GPU held to 32 GiB",
    )
    parser.add_argument(
        "--host-memory",
        type=_positive_size,
        metavar="GIB",
        help="with --offload: host memory that caches may take (default: what is free, less a reserve)",
    )
    parser.add_argument(
        "--ranks", type=_positive, metavar="N", help="with --allreduce: how many ranks (default: 2)"
    )
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--mpi", action="store_true", help="with --allreduce: CPU ranks, by MPI (the default)"
    )
    engine.add_argument("--gpus", action="store_true", help="with --allreduce: GPU ranks, by NCCL")
    parser.add_argument(
        "--seed",
        type=read_seed,
        metavar="N",
        help="of the arrays' random numbers: the same for the same N (default: 0)",
    )
    parser.add_argument("--list", action="store_true", help="list the names of the rows, and stop")
    parser.add_argument(
        "--peers",
        type=_peer_names,
        nargs="?",
        const=PEER_NAMES,
        default=PEER_NAMES,
        metavar="NAMES",
        help=f"other libraries to time where installed: {','.join(PEER_NAMES)} (default: all), or none",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="where to write the results (default: results/bench-<cpu or gpu>-<date>.json, or ladder-..., "
        "offload-..., allreduce-..., errors-...)",
    )
    parser.add_argument("--no-plots", action="store_true", help="draw no figures beside the JSON file")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number, 1 or more, got {text!r}")
    return number


def _positive_size(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of GiB above 0, got {text!r}")
    return number


def _peer_names(text: str) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").lower().split())
    if names == ("none",):
        return ()
    for name in names:
        if name not in PEER_NAMES:
            raise argparse.ArgumentTypeError(f"no peer {name!r}; there are {', '.join(PEER_NAMES)}, or none")
    return names


def main(args: argparse.Namespace) -> int:
    """Run the benchmark; return 0, or 1 when an output was wrong, or 2 when it could not run."""
    belongs = {
        "long": "offload",
        "host_memory": "offload",
        "ranks": "allreduce",
        "mpi": "allreduce",
        "gpus": "allreduce",
    }
    for name, where in belongs.items():
        if getattr(args, name) and not getattr(args, where):
            print(
                f"fastattention bench: --{name.replace('_', '-')} goes with --{where} only", file=sys.stderr
            )
            return 2
    if args.seed is not None and (args.plot is not None or args.perplexity):
        print("fastattention bench: --seed: --plot and --perplexity draw no random numbers", file=sys.stderr)
        return 2
    args.seed = args.seed or 0
    try:
        if args.plot is not None:
            from .plot_file import run
        elif args.gpu:
            from .gpu.run import run
        elif args.offload:
            from .offload.run import run
        elif args.allreduce:
            from .allreduce.run import run
        elif args.errors:
            from .errors.run import run
        elif args.perplexity:
            from .perplexity import run
        elif args.ladder:
            from .ladder import run
        else:
            from .run import run
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.partition(".")[0] not in ("rich", "matplotlib"):
            raise
        print('fastattention bench needs more packages: pip install "fastattention[bench]"', file=sys.stderr)
        return 2
    return run(args)
