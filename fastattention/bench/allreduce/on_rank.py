"""What each rank of ``fastattention bench --allreduce`` runs. Arguments: options as JSON, results file."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastattention import get_isa, gpu
from fastattention.bench.allreduce.cases import select
from fastattention.bench.allreduce.measure import WrongOutputError, measure_case
from fastattention.bench.allreduce.results import Run, judge, save
from fastattention.bench.environment import describe
from fastattention.runtime.communicator import Communicator, connect

_TURN = 0.004  # seconds: shorter calls of GPUs are queued several at a time


def environment(group: Communicator, options: dict[str, Any]) -> dict[str, Any]:
    """Describe the machine, the engine and its ranks."""
    found = describe(get_isa()) | {"ranks": group.size}
    if options["engine"] == "gpus":
        from fastattention.runtime.nccl import load_nccl

        cupy = group.xp
        found |= {
            "engine": "NCCL",
            "gpu": gpu.card().name,
            "cuda_driver": int(cupy.cuda.runtime.driverGetVersion()),
            "settings": {name: value for name, value in os.environ.items() if name.startswith("NCCL_")},
        }
        found["versions"] |= {"CuPy": str(cupy.__version__), "NCCL": str(load_nccl().get_version())}
        return found
    from fastattention.runtime.mpi import load_mpi

    found |= {"engine": "MPI", "threads": options["threads"]}
    found["versions"]["MPI"] = " ".join(load_mpi().Get_library_version().split("\n")[0].split())
    return found


def main() -> None:
    """Measure all cases; rank 0 writes the file."""
    options, path = json.loads(sys.argv[1]), Path(sys.argv[2])
    gpus = options["engine"] == "gpus"
    with connect() as group:
        outcome = Run(datetime.now(UTC).isoformat(timespec="seconds"), environment(group, options), options)
        for case in select(options["engine"], options["quick"], options["filter"]):
            if group.rank == 0:
                print(case.name, file=sys.stderr, flush=True)
            try:
                row = measure_case(
                    group, case, repeats=5 if options["quick"] else 9, least=_TURN if gpus else 0.0,
                    threads=None if gpus else options["threads"], seed=options["seed"],
                )  # fmt: skip
            except ValueError as problem:
                outcome.left_out[case.name] = str(problem)
                continue
            except WrongOutputError as problem:
                sys.exit(f"WRONG: {case.name}: {problem}" if group.rank == 0 else 1)
            outcome.rows.append(row)
            outcome.goals.extend(judge(row))
            if gpus:
                group.xp.get_default_memory_pool().free_all_blocks()
        if group.rank == 0:
            save(outcome, path)


if __name__ == "__main__":
    main()
