"""A plan as people read it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ..table import table

if TYPE_CHECKING:
    from .plan import OffloadPlan

__all__ = ["describe"]

_WIDTH = 100  # columns

_DOES = {
    "upload": "in host memory; goes up for each token",
    "host": "in host memory; the CPU attends",
    "split": "in host memory; the CPU attends to {cpu:.0%} of its keys, {gpu:.0%} go up",
}
_NAMES = {
    "gpu": "all on the GPU", "classical": "classical: caches go up",
    "cooperative": "cooperative: the CPU attends", "split": "split: CPU and GPU share",
}  # fmt: skip


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _runs(places: tuple[str, ...], name: str) -> str:
    """Return the layers of a place: "0-3, 5"."""
    runs: list[list[int]] = []
    for i, place in enumerate(places):
        if place != name:
            continue
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)


def _memory(name: str, total: float, reserved: float, use: dict[str, int]) -> list[tuple[str, str]]:
    used = sum(use.values())
    left = total - reserved - used
    whole = (
        f"{_gb(used)} of {_gb(total)}, {_gb(reserved)} taken by others, {_gb(left)} left ({left / total:.0%})"
    )
    parts = ", ".join(f"{what} {_gb(size)}" for what, size in use.items() if size)
    return [(name, whole), *([("", parts)] if parts else [])]


def _trained(plan: OffloadPlan) -> str:
    if plan.context <= plan.model.context:
        return ""
    return f"; the model was trained on {plan.model.context:,}"


def describe(plan: OffloadPlan) -> str:
    """Return a plan as a table."""
    model, machine = plan.model, plan.hardware
    lines = [
        ("model", f"{model.name}: {model.parameters / 1e9:.2f} billion parameters in {plan.weight_dtype}, "
         f"{model.layers} layers, {model.heads} query and {model.kv_heads} KV heads of {model.head_dim}"),
        ("machine", machine.name),
        ("context", f"{plan.context:,} tokens" + (f" x {plan.batch} sequences" if plan.batch > 1 else "")
         + f", cache in {plan.kv_dtype}"),
        ("largest context", f"{plan.largest_context:,} tokens fit" + _trained(plan)),
    ]  # fmt: skip
    if model.note:
        lines.insert(1, ("", model.note))
    for name in ("gpu", "host", "split", "upload"):
        count = plan.placement.count(name)
        if not count:
            continue
        what = (
            "caches on the GPU" if name == "gpu" else _DOES[name].format(cpu=plan.share, gpu=1 - plan.share)
        )
        lines.append((f"{count} layers", f"{what} ({_runs(plan.placement, name)})"))
    if plan.embedding == "host":
        lines.append(("embedding", "in host memory; a step's rows go up"))
    lines += _memory("GPU memory", machine.gpu_memory, machine.gpu_reserved, plan.gpu_use)
    lines += _memory("host memory", machine.host_memory, machine.host_reserved, plan.host_use)
    if plan.gpu_layers < model.layers:
        lines.append(
            ("passing through", f"prompts in chunks of {plan.chunk:,} tokens, {plan.slots} places for pieces "
             f"of {plan.slot_tokens:,}" + (", two half batches by turns" if plan.halves == 2 else ""))
        )  # fmt: skip
    lines.append(("prefill", f"{plan.prefill_seconds:.1f} s for {plan.context:,} tokens, predicted"))
    head = f"{'predicted':<30} {'ms a token':>10} {'tokens/s':>9}   limited by"
    rows = [
        f"{_NAMES[p.way] + (' (halves)' if p.halves == 2 else ''):<30} {1e3 * p.seconds:>10.2f} "
        f"{plan.batch / p.seconds:>9.1f}   {p.limit}" + (f", the CPU's share {p.share:.2f}" if p.way ==
        "split" else "") + ("   <- planned" if i == 0 else "") for i, p in enumerate(plan.predictions)
    ]  # fmt: skip
    source = textwrap.fill(f"{machine.name}: {machine.source}", _WIDTH)
    return "\n\n".join([table(_wrapped(lines)), "\n".join([head, *rows]), source])


def _wrapped(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Break texts that are wider than a terminal."""
    found = []
    for label, text in lines:
        first, *more = textwrap.wrap(text, _WIDTH - 17) or [""]
        found += [(label, first), *(("", line) for line in more)]
    return found
