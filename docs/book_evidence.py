"""What this project has beside the paper's claims: models, computed when the page is built, and results.

Nothing is typed here but what the paper itself claims. A benchmark on a V100, of offloading or of AllReduce
that is recorded in ``results/`` is found without a change.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import book_allreduce
from fastattention.reference import offload, offload_time, tiling_allreduce, tiling_mask, visibility
from fastattention.reference.ascend import Machine, Operators, Problem, sweep
from fastattention.reference.two_level import Blocks

from fastattention.bench.offload import results as offload_results
from fastattention.offload import Hardware, hardware, model_shape

RESULTS = Path(__file__).resolve().parent.parent / "results"

#: What the paper claims, in times as fast. From its abstract, but the last, which a published review reports.
NPU, THROUGHPUT, VOLTA, END_TO_END = sweep.PAPER_SPEEDUP, sweep.PAPER_THROUGHPUT, 1.43, 1.46
COOPERATION = 1.27, 1.48

ONE_LEVEL, TWO_LEVELS = Blocks.unified(128, 128), Blocks(128, 512, 128, 128, 16)
GPUS, CONTEXT = 8, 262144  # of the paper's machine with V100s

#: The benchmark's names of our kernels, by the matrix instruction that they use.
ATOMS = {"atom 80": "Ampere's instruction", "atom 75": "Turing's", "atom 70": "Volta's"}


# -- NPU -------------------------------------------------------------------------------------------


@functools.cache
def npu_speedups() -> dict[tuple[bool, int], list[float]]:
    """Return by (causal, length) how many times as fast as three codes of standard attention the model is."""
    codes = Operators(scale=False), Operators(), Operators(upcast=True)
    found = {}
    for causal, length in product((False, True), (2048, 8192, 65536)):
        problem = Problem(length, length, heads=32, causal=causal)
        found[causal, length] = [
            sweep.speedup(Machine(), problem, blocks=TWO_LEVELS, operators=code) for code in codes
        ]
    return found


@functools.cache
def level_gains() -> list[float]:
    """Return what two levels gain over one in the model, both with their best sizes, for three problems."""
    gains = []
    for causal, length in ((False, 2048), (False, 8192), (True, 8192)):
        problem = Problem(length, length, heads=32, causal=causal)
        one, two = (sweep.sweep(Machine(), problem, unified=unified)[0].cycles for unified in (True, False))
        gains.append(one / two)
    return gains


def offsets_that_agree(size: int = 16) -> int:
    """Return for how many offsets a window of the M-mask is the mask by definition.

    Raises
    ------
    ValueError
        At one it is not.
    """
    triangle = tiling_mask.m_mask(2 * size)
    offsets = range(-3 * size, 3 * size + 1)
    for delta in offsets:
        want = visibility.visible(size, size, causal=True, kv_length=size, q_offset=delta)
        if (tiling_mask.b_mask(triangle, delta, size, size) != want).any():
            raise ValueError(f"the window at offset {delta} is not the causal mask")
    return len(offsets)


def most_by_overlap(sums: float) -> float:
    """Return what the sums' overlap gains at most, if sums take `sums` of the compute and blocks are free."""
    costs = tiling_allreduce.Costs(1.0, sums)
    return tiling_allreduce.time(1, costs) / tiling_allreduce.time(10**9, costs)


def overlaps(folder: Path = RESULTS) -> dict[str, float]:
    """Return by machine how many times as fast as in sequence the chosen blocks were, in the best case.

    Raises
    ------
    ValueError
        A file is not what ``fastattention bench --allreduce`` writes.
    """
    return {
        book_allreduce.machine(content): max(row["summary"]["chosen_speedup"] for row in content["rows"])
        for content in book_allreduce.newest(folder)
    }


# -- Volta -----------------------------------------------------------------------------------------


def against_xformers(folder: Path = RESULTS) -> dict[tuple[str, str], list[float]]:
    """Return by (card, kernel) how many times its time the kernel of xformers takes.

    All cases of prefill in float16. PyTorch's backend "memory-efficient" is that kernel. "atom 70" is our
    kernel with Volta's instruction, "atom 75" with Turing's, "atom 80" with Ampere's.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for run in gpu_runs(folder):
        for row in run["rows"]:
            if row["case"]["kind"] != "prefill" or row["case"]["dtype"] != "float16":
                continue
            for name, who in row["summary"]["contenders"].items():
                ratio = who.get("peer_ratios", {}).get("memory-efficient")
                if ratio is not None:
                    found.setdefault((run["environment"]["gpu"], name), []).append(ratio)
    return found


def volta_cards(folder: Path = RESULTS) -> list[str]:
    """Return the cards of Volta's generation of which a benchmark is recorded."""
    environments = [run["environment"] for run in gpu_runs(folder)]
    return [found["gpu"] for found in environments if tuple(found["compute_capability"]) in ((7, 0), (7, 2))]


def bank_cycles(folder: Path = RESULTS) -> dict[str, list[float]]:
    """Return by the audit's roles how many times the fewest cycles loads from shared memory take.

    Without an audit, an empty dict.
    """
    found: dict[str, list[float]] = {}
    for audit in _contents(folder, "audit-volta.json"):
        for study in audit["studies"]:
            run = study["execution"]
            found.setdefault(study["role"], []).append(run["load_wavefronts"] / run["load_ideal"])
    return found


def gpu_runs(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the recorded benchmarks of GPUs."""
    return [run for run in _contents(folder, "bench-*.json") if run["schema"] == "gpu-1"]


# -- CPU and GPU together --------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """One of the paper's eight GPUs and its part of LLaMA-7B: where caches lie, a token's two times."""

    placement: offload.Placement
    classical: offload_time.TokenTime
    cooperative: offload_time.TokenTime

    @property
    def gain(self) -> float:
        """How many times as fast cooperation is."""
        return self.classical.seconds / self.cooperative.seconds


def share_of_eight(context: int, card: str = "v100-16gb") -> Share:
    """Return the model's word on a context, the heads of LLaMA-7B split over eight V100s.

    What the GPUs send each other is left out: it is the same in both ways.

    Raises
    ------
    ValueError
        The context needs no host memory, or more than there is.
    """
    model, machine = model_shape("llama-7b"), hardware(card)
    cache = offload.cache_bytes(1, context, model.kv_heads // GPUS, model.head_dim, model.head_dim, 2)
    weights = 2 * model.parameters / GPUS
    usable, host = 0.95 * machine.gpu_memory, 0.95 * machine.host_memory
    found = offload.place(model.layers, cache, usable, weights + machine.gpu_reserved, host)
    if found is None or not found.host_layers:
        raise ValueError(f"{context} tokens: expected a context that needs host memory and fits, got {found}")
    layer = 2 * model.layer_parameters / GPUS / machine.gpu_bandwidth
    head = 2 * model.vocab_size * model.hidden / GPUS / machine.gpu_bandwidth
    ways = offload_time.classical, offload_time.cooperative
    times = (way(found.gpu_layers, found.host_layers, layer, head, cache, rates(machine)) for way in ways)
    return Share(found, *times)


def modelled_gains() -> list[float]:
    """Return what cooperation gains on eight V100s by the model, for three contexts."""
    return [share_of_eight(times * CONTEXT).gain for times in (1, 2, 3)]


def rates(machine: Hardware) -> offload_time.Rates:
    """Return a machine's rates as the model of time takes them."""
    return offload_time.Rates(
        gpu=machine.gpu_bandwidth,
        bus=machine.bus,
        cpu=machine.cpu,
        host=machine.host_bandwidth,
        latency=machine.latency,
    )


def against_classical(folder: Path = RESULTS) -> dict[str, list[float]]:
    """Return by way how many times as fast as classical offloading a token was, over all recorded cases."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("offload-*.json")):
        for row in offload_results.load(path).rows:
            for way in ("cooperative", "split"):
                if row.done("classical", way):
                    found.setdefault(way, []).append(row.ways["classical"].token / row.ways[way].token)
    return found


def long_runs(folder: Path = RESULTS) -> list[offload_results.LongRun]:
    """Return the recorded runs of a context that the GPU alone could not hold."""
    runs = [offload_results.load(path).long for path in sorted(folder.glob("offload-*.json"))]
    return [run for run in runs if run is not None]


# -- Whole models ----------------------------------------------------------------------------------


def attention_shares(folder: Path = RESULTS) -> dict[int, float]:
    """Return by prompt length the share of prefill that attention took in our small model."""
    return {
        row["prompt_tokens"]: row["prefill_attention_share"]
        for content in _contents(folder, "llama-cpp-time-*.json")
        for row in content["rows"]
        if row["engine"] == "fastattention, float32 cache"
    }


def largest_errors(folder: Path = RESULTS) -> dict[str, float]:
    """Return by data type the largest error against float64 of any row of the benchmarks, CPU's and GPU's."""
    found: dict[str, float] = {}
    for run in _contents(folder, "bench-*.json"):
        for row in run["rows"]:
            ours = [who["error"] for who in row.get("contenders", {}).values() if who["ours"]]
            errors = [error for error in (*ours, row.get("error")) if error is not None]
            dtype = row["case"]["dtype"]
            found[dtype] = max(errors, default=0.0) if dtype not in found else max(found[dtype], *errors, 0.0)
    return found


def files(folder: Path = RESULTS) -> list[str]:
    """Return the names of the results that the functions above read."""
    patterns = (
        "allreduce-*.json",
        "audit-volta.json",
        "bench-*.json",
        "llama-cpp-time-*.json",
        "offload-*.json",
    )
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern))


def _contents(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]
