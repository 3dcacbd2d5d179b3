"""The cases: attention of causal prompts and its output projection, heads split over ranks."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AllReduceCase", "select"]


@dataclass(frozen=True, slots=True)
class AllReduceCase:
    """One sequence, causal; as many KV heads as query heads.

    Attributes
    ----------
    hidden : int
        Width of the model: heads times `head_dim`.
    tokens : int
    dtype : str
    head_dim : int
    """

    hidden: int
    tokens: int
    dtype: str
    head_dim: int = 128

    @property
    def name(self) -> str:
        """What `--filter` looks at."""
        return f"{self.dtype}/causal/hidden{self.hidden}/S{self.tokens}"


_GPUS = [
    AllReduceCase(hidden, tokens, "float16")
    for hidden in (4096, 8192)
    for tokens in (4096, 8192, 16384, 32768)
]
_CPUS = [
    AllReduceCase(hidden, tokens, "float32", 64) for hidden in (512, 1024) for tokens in (512, 1024, 2048)
]
_QUICK = {"gpus": ((4096, 4096), (8192, 16384)), "mpi": ((512, 512), (1024, 512))}


def select(engine: str, quick: bool, pattern: str | None) -> list[AllReduceCase]:
    """Return the cases of an engine, "gpus" or "mpi", that have a part for every word."""
    words = (pattern or "").replace(",", " ").split()
    cases = _GPUS if engine == "gpus" else _CPUS
    if quick:
        cases = [case for case in cases if (case.hidden, case.tokens) in _QUICK[engine]]
    return [case for case in cases if all(f"/{word}/" in f"/{case.name}/" for word in words)]
