"""How many layers lie where, and what passes through; or why nothing fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..reference import offload
from .question import Passage, Question

__all__ = ["DoesNotFit", "largest", "settle"]

#: A tenth of the memory that is left beside the weights may go to activations and the ring, more layers'
#: caches being worth more; unless no layer would have room anyway.
_FOR_PASSING = 0.1


class DoesNotFit(ValueError):  # noqa: N818 - what it says
    """The caches fit nowhere.

    Attributes
    ----------
    largest_context : int
        Most tokens of a sequence that fit, 0 where not even the weights do.
    """

    def __init__(self, message: str, largest_context: int) -> None:
        super().__init__(message)
        self.largest_context = largest_context


def settle(q: Question, way: str) -> tuple[Passage, offload.Placement]:
    """Return chunk, ring and the embedding's place, and how many layers lie where; or raise."""
    passages = list(q.passages())
    least = _place(q, passages[-1], way)
    for passage in passages:
        found = _place(q, passage, way)
        if found is None:
            continue
        if not found.host_layers:
            return passage, found
        # The embedding is the first to go. Chunk and ring are as large as costs no layer its place, or few.
        passing = q.activations(passage.chunk) + q.staging(passage)
        modest = passing <= _FOR_PASSING * (q.gpu_room - q.weights(passage.embedding))
        same = least is not None and found.gpu_layers == least.gpu_layers
        if passage.embedding == (q.embedding == 0) and (modest or same):
            return passage, found
    raise _refusal(q, passages[-1], way)


def _refusal(q: Question, least: Passage, way: str) -> DoesNotFit:
    most, room, used = largest(q, way), max(0, q.gpu_room), q.used(least)
    need = f"{q.context:,} tokens of {q.model.name}" + (f" x {q.batch}" if q.batch > 1 else "")
    if used > room:
        reason = (
            f"weights and activations take {used / 1e9:.2f} GB of the GPU, and {room / 1e9:.2f} GB are usable"
        )
    elif way == "gpu":
        whole = used + q.model.layers * q.cache
        reason = (
            f"with all caches on the GPU they take {whole / 1e9:.2f} GB of it, and "
            f"{room / 1e9:.2f} GB are usable"
        )
    else:
        beside, in_host = max(0, room - used - q.staging(least)), max(0, q.host_room(least))
        reason = (
            f"the caches take {q.model.layers * q.cache / 1e9:.2f} GB; beside weights and what passes "
            f"through, {beside / 1e9:.2f} GB of the GPU and {in_host / 1e9:.2f} GB of the host are usable"
        )
    return DoesNotFit(
        f"{need} do not fit {q.machine.name}: {reason}; the largest context that fits is {most:,} tokens",
        most,
    )


def _limits(q: Question, passage: Passage, way: str) -> dict[str, Any]:
    return {
        "gpu_memory": q.gpu_room, "gpu_used": q.used(passage),
        "host_memory": 0 if way == "gpu" else max(0, q.host_room(passage)), "staging": q.staging(passage),
        "most_gpu_layers": None if way == "gpu" else q.gpu_layers,
    }  # fmt: skip


def _place(q: Question, passage: Passage, way: str) -> offload.Placement | None:
    return offload.place(q.model.layers, q.cache, **_limits(q, passage, way))


def largest(q: Question, way: str) -> int:
    """Return the most tokens of a sequence that fit somehow; 0 where not even one does."""

    def fits(tokens: int) -> bool:
        asked = replace(q, context=tokens)
        return any(_place(asked, passage, way) is not None for passage in asked.passages())

    if not fits(1):
        return 0
    low = 1
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
