"""The rows of the benchmark: model shapes, contexts and batches, every layer's cache in host memory."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALL_GPU", "WAYS", "OffloadCase", "select"]

#: What the others are compared with: the caches of all layers on the GPU.
ALL_GPU = "all-GPU"

#: Ways to attend, and what the planner calls a layer's place in each.
WAYS = {ALL_GPU: "gpu", "classical": "upload", "cooperative": "host", "split": "split"}


@dataclass(frozen=True, slots=True)
class OffloadCase:
    """One row.

    Attributes
    ----------
    model : str
        A name of `fastattention.offload.model_shape`.
    layers : int
        How many of the model's layers take part; their shape is the model's.
    context : int
        Tokens of each sequence in the cache when decoding begins.
    batch : int
        Sequences.
    peer : bool
        Hugging Face transformers does this row, too.
    """

    model: str
    layers: int
    context: int
    batch: int
    peer: bool = False

    @property
    def name(self) -> str:
        """Such as ``llama-3-8b/L32/S131072/B1``."""
        return f"{self.model}/L{self.layers}/S{self.context}/B{self.batch}"


_QUICK = (OffloadCase("llama-3-8b", 4, 32768, 1),)
# Weights are made anew when the model or its layers change. The largest comes last: when memory or time is
# short, the others are done.
_DEFAULT = (
    OffloadCase("llama-3-8b", 8, 131072, 1, peer=True),
    OffloadCase("llama-7b", 32, 32768, 1),
    OffloadCase("llama-3-8b", 32, 32768, 1),
    OffloadCase("llama-3-8b", 32, 32768, 4),
    OffloadCase("llama-3-8b", 32, 131072, 1),
    OffloadCase("llama-3-8b", 32, 131072, 4),
)


def select(level: str = "default", pattern: str | None = None) -> list[OffloadCase]:
    """Return the cases of a level, "quick", "default" or "full", that have a part for every word."""
    words = (pattern or "").replace(",", " ").split()
    cases = _QUICK if level == "quick" else _DEFAULT
    return [case for case in cases if all(f"/{word}" in f"/{case.name}" for word in words)]
