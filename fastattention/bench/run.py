"""One run: cases, checks, rounds, report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import attention, get_isa, set_isa
from . import peers as peer_module
from . import results
from .cases import Case, Data, make_data, select, useful_flops
from .environment import describe
from .limits import choose_probe, probe_arithmetic
from .measure import TOLERANCE, error, expected_rows, pin, pinned, process_cores
from .report import print_report
from .rounds import take_turns
from .targets import target

__all__ = ["run"]

#: Seconds to wait after a peer on several threads: ONNX Runtime's workers spin for over 0.02 after a call.
_PAUSE = 0.04


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds of each case, and seconds in all of them together: for ours, and for each peer."""

    rounds: int
    budget: float
    peer_budget: float


_EFFORT = {"quick": Effort(3, 0.5, 0.3), "default": Effort(5, 1.2, 0.4), "full": Effort(9, 3.0, 1.5)}


def our_call(case: Case, data: Data, out: np.ndarray) -> Callable[[], object]:
    """Return the call that is timed: the public function, validation and all."""
    window = case.window

    def call() -> object:
        return attention(
            data.q,
            data.k,
            data.v,
            causal=case.causal,
            window=window,
            mask=data.mask,
            out=out,
            backend="cpu",
            num_threads=case.threads,
        )

    return call


def measure_case(case: Case, run: results.Run, peers: list[peer_module.Peer], effort: Effort) -> None:
    """Check ours, then the peers, then time in rounds; add a row to `run`, or a failure if ours is wrong."""
    data = make_data(case)
    expected = expected_rows(case, data)
    with pinned(case.threads) as cores:
        out = np.full_like(data.q, np.nan)  # what the kernel leaves out shows
        call = our_call(case, data, out)
        call()
        deviation = error(expected, out)
        if not deviation <= TOLERANCE[case.dtype]:
            run.failures[case.name] = f"error {deviation:.1e}, more than {TOLERANCE[case.dtype]:.0e}"
            return
        found, calls = {}, {}
        for peer in peers:
            found[peer.name], way = peer_module.choose(peer, case, data, expected)
            if way:
                calls[peer.name] = way.call
        probe = choose_probe(case, data.kv, run.environment["isa"])
        seen = take_turns(
            probe.measure,
            call,
            calls,
            count=effort.rounds,
            budget=effort.budget,
            peer_budget=effort.peer_budget,
            pause=_PAUSE if case.threads > 1 else 0.0,
            settle=lambda: pin(cores),
        )
    for name, times in seen.peers.items():
        found[name] = replace(found[name], rounds=times)
    for name, problem in seen.raised.items():
        found[name] = results.PeerResult("failed", f"{found[name].detail}: {peer_module.one_line(problem)}")
    run.rows.append(
        results.Row(
            case=case,
            useful_flops=useful_flops(case, data.mask),
            error=deviation,
            rounds=seen.ours,
            limit_name=probe.name,
            limits=seen.limits,
            target=target(case),
            peers=found,
        )
    )


def survey(run: results.Run, cases: list[Case]) -> None:
    """Add all arithmetic probes, for each number of threads that `cases` use, to `run`."""
    for threads in sorted({case.threads for case in cases}):
        with pinned(threads):
            run.probes.append(probe_arithmetic(threads, run.environment["isa"]))


def allowed_cores() -> int:
    """Return how many cores this process may use."""
    return len(process_cores()) or os.cpu_count() or 1


def run(args: argparse.Namespace) -> int:
    """Run the benchmark as `args` (see `fastattention.bench.add_arguments`) say; return the exit code."""
    level = "quick" if args.quick else "full" if args.full else "default"
    cores = allowed_cores()
    threads = args.threads or cores
    if threads > cores:
        print(
            f"fastattention bench: --threads {threads}: this process may use {cores} cores", file=sys.stderr
        )
        return 2
    cases = select(threads, level, args.filter)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not cases:
        print(
            f"fastattention bench: no row of the {level} set matches {args.filter!r}; see --list",
            file=sys.stderr,
        )
        return 2
    if args.isa:
        try:
            set_isa(args.isa)
        except ValueError as problem:
            print(f"fastattention bench: --isa: {problem}", file=sys.stderr)
            return 2
    try:
        return _run(args, cases, level, threads)
    finally:
        if args.isa:
            set_isa(None)


def _run(args: argparse.Namespace, cases: list[Case], level: str, threads: int) -> int:
    # A file or a pipe has no width of its own; the whole table fits this one.
    console = Console() if sys.stdout.isatty() else Console(width=130)
    peers, absent = peer_module.load(args.peers)
    environment = describe(get_isa())
    environment["versions"].update({peer.name: peer.version for peer in peers})
    environment["absent_peers"] = absent
    outcome = results.Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        options={"level": level, "threads": threads, "filter": args.filter, "isa": args.isa},
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn by hand, between the cases: a bar that redraws itself would run beside the kernels.
    # Where there is no terminal, lines say that it goes on.
    bar = Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    )
    survey(outcome, cases)
    with bar as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name, refresh=True)
            if not console.is_terminal:
                print(case.name, file=sys.stderr, flush=True)
            measure_case(case, outcome, peers, _EFFORT[level])
            progress.advance(task)
    survey(outcome, cases)
    path = args.json or results.default_path(outcome)
    results.save(outcome, path)
    print_report(outcome, console)
    written = [path]
    if not args.no_plots and outcome.rows:
        from .plots import draw

        written += draw(outcome, path)
    console.print("Wrote " + ", ".join(str(item) for item in written), highlight=False, soft_wrap=True)
    return 1 if outcome.failures else 0
