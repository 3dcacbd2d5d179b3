"""``python -m fastattention.bench.gpu.profile``: what binds the kernels, asked of NVIDIA's profiler ``ncu``.

A few calls run under the profiler; the counters of each call's last launch go into a results file, which the
book reads. ``ncu`` comes with the CUDA toolkit, and may need rights that an administrator grants.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ... import attention, gpu
from ..results import write
from .results import default_path

__all__ = ["CALLS", "METRICS", "command", "main", "parse"]

#: What is profiled: batch, query heads, KV heads, queries, keys, head dimension, causal.
CALLS = (
    ("prefill", 2, 16, 16, 4096, 4096, 64, False),
    ("prefill", 2, 16, 16, 4096, 4096, 128, False),
    ("prefill", 2, 16, 16, 4096, 4096, 128, True),
    ("decode", 1, 32, 8, 1, 8192, 128, False),
    ("decode", 1, 32, 8, 1, 131072, 128, False),
)

REPEATS = 3

_MODULE = "fastattention.bench.gpu.profile"  # __name__ is "__main__" where this is run

_STALLS = (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "imc_miss", "lg_throttle", "long_scoreboard",
    "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction", "not_selected", "selected",
    "short_scoreboard", "sleeping", "tex_throttle", "wait",
)  # fmt: skip

#: The profiler's names.
METRICS = (
    "gpu__time_duration.sum",
    "launch__registers_per_thread",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "dram__bytes_read.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    *(f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in _STALLS),
)


def _workload() -> None:
    """Run the calls, each `REPEATS` times, float16 normals; this is what the profiler watches."""
    cupy = gpu.load_cupy()
    random = cupy.random.default_rng(0)
    for _, batch, q_heads, kv_heads, q_len, k_len, dim, causal in CALLS:
        shapes = ((batch, q_heads, q_len, dim), *[(batch, kv_heads, k_len, dim)] * 2)
        q, k, v = (random.standard_normal(shape, cupy.float32).astype(cupy.float16) for shape in shapes)
        for _ in range(REPEATS):
            attention(q, k, v, causal=causal)
        cupy.cuda.get_current_stream().synchronize()


def command(ncu: str) -> list[str]:
    """Return the command that profiles the workload and prints CSV; the card's clocks stay as they are."""
    return [
        ncu, "--clock-control", "none", "--cache-control", "none", "--metrics", ",".join(METRICS),
        "-k", "regex:^(attention|decode)$", "--csv", "--page", "raw", "--print-units", "base",
        sys.executable, "-m", _MODULE, "--workload",
    ]  # fmt: skip


def parse(text: str) -> list[dict[str, float]]:
    """Return the metrics of each launch, in order.

    Raises
    ------
    ValueError
        The profiler printed no table, or one without these metrics; the text ends with what it printed.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError("ncu printed no table: " + "\n".join(lines[-5:]))
    names, _units, *rows = csv.reader(lines[start:])
    missing = [name for name in METRICS if name not in names]
    if missing:
        raise ValueError(f"ncu's table lacks {', '.join(missing)}")
    return [{name: float(row[names.index(name)].replace(",", "")) for name in METRICS} for row in rows if row]


def _kernels(launches: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    if len(launches) != len(CALLS) * REPEATS:
        raise ValueError(f"expected {len(CALLS) * REPEATS} launches in ncu's table, got {len(launches)}")
    kernels = []
    for i, (kind, batch, q_heads, kv_heads, _, k_len, dim, causal) in enumerate(CALLS):
        heads = f"{q_heads}/{kv_heads} heads" if kv_heads != q_heads else f"{q_heads} heads"
        shape = f"float16, D={dim}, {k_len} keys, batch {batch}, {heads}" + (", causal" if causal else "")
        kernels.append({"name": kind, "shape": shape, "metrics": launches[(i + 1) * REPEATS - 1]})
    return kernels


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile and write the results file; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--json", type=Path, help="where to write; by default results/profile-<gpu>-<date>.json"
    )
    parser.add_argument("--workload", action="store_true", help="only run the calls: what ncu starts")
    args = parser.parse_args(arguments)
    try:
        card = gpu.card()
    except (ImportError, RuntimeError, ValueError) as problem:
        print(f"profile: {problem}", file=sys.stderr)
        return 2
    if args.workload:
        _workload()
        return 0
    ncu = shutil.which("ncu")
    if ncu is None:
        print("profile: ncu is not on PATH; it comes with the CUDA toolkit (nsight-compute)", file=sys.stderr)
        return 2
    done = subprocess.run(command(ncu), capture_output=True, text=True, check=False)
    try:
        kernels = _kernels(parse(done.stdout))
    except ValueError as problem:
        print(f"profile: {problem}\n{done.stderr[-2000:]}", file=sys.stderr)
        return 1
    cupy = gpu.load_cupy()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "hardware": card.name, "date": date, "kernels": kernels,
        "versions": {
            "fastattention": importlib.metadata.version("fastattention"), "CuPy": cupy.__version__,
            "CUDA driver": str(cupy.cuda.runtime.driverGetVersion()),
        },
    }  # fmt: skip
    path = args.json or default_path(card.name, date, "profile")
    write(content, path)
    print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
