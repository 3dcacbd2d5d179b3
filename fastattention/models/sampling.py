"""Chooses the next token from the logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sampler"]


class Sampler:
    """Greedy choice, or a draw from the tempered and truncated distribution.

    Parameters
    ----------
    temperature : float
        0 takes the most likely token, always. Otherwise the logits are divided by it.
    top_p : float
        Draw only from the smallest set of tokens whose probabilities add up to at least this (nucleus
        sampling, Holtzman et al., arXiv 1904.09751). In (0, 1].
    seed : int, optional
        Seed of the generator; None draws one from the system.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not 0.0 <= temperature < float("inf"):
            raise ValueError(f"temperature={temperature}: expected a finite number, 0 or more")
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p={top_p}: expected a number in (0, 1]")
        self.temperature = temperature
        self.top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """Return the index of the chosen token; `logits` is (vocabulary,) and left as it is."""
        best = int(logits.argmax())
        if self.temperature == 0.0:
            return best
        scaled = (logits.astype(np.float64) - float(logits[best])) / self.temperature
        weights = np.exp(scaled)  # the largest is exp(0) = 1
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        # Everything up to and including the token that reaches top_p of the mass.
        kept = int(np.searchsorted(cumulative, self.top_p * cumulative[-1])) + 1
        kept = min(kept, len(order))
        draw = self._random.random() * cumulative[kept - 1]
        return int(order[min(int(np.searchsorted(cumulative[:kept], draw, side="right")), kept - 1)])
