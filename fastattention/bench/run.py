"""One run: cases, checks, rounds, report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import get_isa, set_isa
from . import peers as peer_module
from . import results
from .calls import forced_isa, make_out, missing, our_call
from .cases import Case, useful_flops
from .data import Data, make_data, without_pages
from .environment import describe
from .limits import choose_probe, probe_arithmetic
from .measure import TOLERANCE, Expected, error, expected_rows, pin, pinned, process_cores
from .memory import measure_memory
from .plan import explain
from .report import WIDTH, print_report
from .rounds import take_turns
from .rows import select
from .targets import judge, target

__all__ = ["run"]

#: Seconds to wait after a peer on several threads: ONNX Runtime's workers spin for over 0.02 after a call.
_PAUSE = 0.04


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds of each case, and seconds in all of them together: for ours, and for each peer."""

    rounds: int
    budget: float
    peer_budget: float


_EFFORT = {"quick": Effort(3, 0.5, 0.3), "default": Effort(5, 1.0, 0.4), "full": Effort(9, 3.0, 1.5)}


#: Name of our own call on one thread, among those that take turns in a row of several.
_BESIDE = "ours, plainer"


def measure_case(
    case: Case,
    run: results.Run,
    peers: list[peer_module.Peer],
    effort: Effort,
    run_isa: str | None = None,
    seed: int = 0,
) -> None:
    """Check ours, then the peers, then time in rounds; add a row to `run`, or a failure if ours is wrong.

    Parameters
    ----------
    case : Case
    run : Run
    peers : list of Peer
    effort : Effort
    run_isa : str, optional
        What the whole run was forced to.
    seed : int
        Of the arrays, and of which rows of the output are checked.
    """
    data = make_data(case, seed)
    expected = expected_rows(case, data, seed + 1)
    with forced_isa(case, run_isa) as isa, pinned(case.threads) as cores:
        deviation, call = _checked(case, data, expected)
        if not deviation <= TOLERANCE[case.dtype]:
            run.failures[case.name] = f"error {deviation:.1e}, more than {TOLERANCE[case.dtype]:.0e}"
            return
        found, calls = {}, {}
        for peer in peers if peer_module.comparable(case) else []:
            found[peer.name], way = peer_module.choose(peer, case, data, expected)
            if way:
                calls[peer.name] = way.call
        other = _beside(case, data, expected, seed)
        if other is not None:
            deviation_beside, calls[_BESIDE] = _checked(*other)
            if not deviation_beside <= TOLERANCE[case.dtype]:
                run.failures[case.name] = f"{other[0].name}: error {deviation_beside:.1e}"
                return
        probe = choose_probe(case, data.kv, isa)
        seen = take_turns(
            probe.measure,
            call,
            calls,
            count=effort.rounds,
            budget=effort.budget,
            peer_budget=effort.peer_budget,
            pause=_PAUSE if case.threads > 1 else 0.0,
            every={_BESIDE},
            settle=lambda: pin(cores),
        )
        kernels = explain(case, isa).isa
    if _BESIDE in seen.raised:
        raise seen.raised[_BESIDE]
    beside = seen.peers.pop(_BESIDE, [])
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
            isa=kernels,
            roofline=probe.times,
            alone=beside,
        )
    )


def _beside(case: Case, data: Data, expected: Expected, seed: int) -> tuple[Case, Data, Expected] | None:
    """Return the plainer case that a row is timed beside, in the same rounds, or None.

    Of several threads: the same on one. Of pages: the same memory as a contiguous cache.
    """
    if case.threads > 1:
        return replace(case, threads=1), data, expected
    if case.page_size:
        flat, flat_data = replace(case, page_size=None), without_pages(case, data)
        return flat, flat_data, expected_rows(flat, flat_data, seed + 1)
    return None


def _checked(case: Case, data: Data, expected: Expected) -> tuple[float, Callable[[], object]]:
    """Return the error of our call, made once, and the call."""
    out = make_out(case, data)
    call = our_call(case, data, out)
    call()
    return error(expected, out), call


def survey(run: results.Run, cases: list[Case]) -> None:
    """Add all arithmetic probes, for each number of threads that `cases` use, to `run`."""
    for threads in sorted({case.threads for case in cases if case.kind != "memory"}):
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
    # A file or a pipe has no width of its own; the tables fit this one.
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    peers, absent = peer_module.load(args.peers)
    environment = describe(get_isa())
    environment["versions"].update({peer.name: peer.version for peer in peers})
    environment["absent_peers"] = absent
    outcome = results.Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        options={
            "level": level,
            "threads": threads,
            "filter": args.filter,
            "isa": args.isa,
            "seed": args.seed,
        },
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn by hand, between the cases: a bar that redraws itself would run beside the kernels.
    # Where there is no terminal, lines say that it goes on.
    bar = Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    )
    for case in cases:
        if why := missing(case, args.isa):
            outcome.left_out[case.name] = why
    cases = [case for case in cases if case.name not in outcome.left_out]
    survey(outcome, cases)
    with bar as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name, refresh=True)
            if not console.is_terminal:
                print(case.name, file=sys.stderr, flush=True)
            if case.kind == "memory":
                outcome.memory.append(measure_memory(case, get_isa()))
            else:
                measure_case(case, outcome, peers, _EFFORT[level], args.isa, args.seed)
            progress.advance(task)
    survey(outcome, cases)
    outcome.goals.extend(judge(outcome))
    path = args.json or results.default_path(outcome)
    results.save(outcome, path)
    print_report(outcome, console)
    written = [path]
    if not args.no_plots and outcome.rows:
        from .plots import draw

        written += draw(outcome, path)
    console.print("Wrote " + ", ".join(str(item) for item in written), highlight=False, soft_wrap=True)
    return 1 if outcome.failures else 0
