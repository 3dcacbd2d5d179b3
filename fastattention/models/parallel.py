"""The decoder on several ranks: heads and feed-forward split, two sums a layer (Megatron, arXiv 1909.08053).

Each rank holds its heads' columns of the query, key and value matrices and their rows of the output matrix;
and its share of the feed-forward's columns (gate, up) and rows (down). What the two row-split matrices give
are terms of a sum over ranks, which goes over in blocks, each beside the next block's product. Embedding,
norms and output matrix are whole on every rank; so all ranks see the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..reference.tiling_allreduce import even_sizes, heads_of
from ..runtime.communicator import Communicator, agree
from ..runtime.tensor_parallel import overlapped
from .errors import ModelError
from .llama import FloatArray, Layer, Llama, Session

__all__ = ["ParallelSession", "split"]

# A prompt's rows that are worth a sum of their own; decoding one token there is nothing to overlap.
_BLOCK_ROWS = 128


def split(model: Llama, rank: int, ranks: int) -> Llama:
    """Return a rank's share of a model.

    Raises
    ------
    ModelError
        The KV heads or the feed-forward's width cannot be divided by the number of ranks.
    """
    config = model.config
    if config.kv_heads % ranks or config.feed_forward % ranks:
        fitting = [
            n for n in range(1, config.kv_heads + 1) if not (config.kv_heads % n or config.feed_forward % n)
        ]
        raise ModelError(
            f"{config.heads} heads, {config.kv_heads} KV heads and a feed-forward of {config.feed_forward} "
            f"cannot be split over {ranks} ranks; {', '.join(map(str, fitting))} would do"
        )
    q, kv = heads_of(rank, ranks, config.heads, config.kv_heads)
    dim, width = config.head_dim, config.feed_forward // ranks
    own = slice(rank * width, (rank + 1) * width)
    first_k, first_v = config.heads, config.heads + config.kv_heads

    def columns(matrix: FloatArray, heads: slice, first: int) -> FloatArray:
        return matrix[:, (first + heads.start) * dim : (first + heads.stop) * dim]

    layers = []
    for layer in model.layers:
        qkv = (columns(layer.qkv, q, 0), columns(layer.qkv, kv, first_k), columns(layer.qkv, kv, first_v))
        gate, up = layer.gate_up[:, : config.feed_forward], layer.gate_up[:, config.feed_forward :]
        layers.append(
            Layer(
                np.concatenate(qkv, axis=1),
                layer.out[q.start * dim : q.stop * dim].copy(),
                np.concatenate((gate[:, own], up[:, own]), axis=1),
                layer.down[own].copy(),
            )
        )
    share = replace(
        config, heads=config.heads // ranks, kv_heads=config.kv_heads // ranks, feed_forward=width
    )
    return Llama(share, model.embedding, layers, model.norm, model.head, model.rope_divisors)


class ParallelSession(Session):
    """One sequence running through a model that is split over ranks; all ranks make the same calls.

    Parameters
    ----------
    model : Llama
        All of it; this rank keeps its share.
    communicator : Communicator
        Of ranks in CPU memory.
    context : int
        As in `Session`.
    **options
        Of `Session`.

    Raises
    ------
    ModelError
        The model cannot be split over so many ranks.
    ValueError
        On every rank: they differ in the model's sizes, in `context` or in `options`.
    """

    def __init__(self, model: Llama, communicator: Communicator, *, context: int, **options: Any) -> None:
        facts = {
            "model": repr(model.config),
            "context": str(context),
            "options": repr(sorted(options.items())),
        }
        agree(communicator, facts)
        self._communicator = communicator
        super().__init__(split(model, communicator.rank, communicator.size), context=context, **options)

    def forward(self, tokens: Sequence[int] | Any, progress: Any = None) -> FloatArray:
        """Take tokens into the sequence, as `Session.forward`; the ranks must be given the same.

        Raises
        ------
        ValueError
            As there; or, on every rank, the tokens differ.
        """
        agree(self._communicator, {"tokens": repr([int(token) for token in tokens])})
        return super().forward(tokens, progress)

    def _project(self, x: FloatArray, matrix: FloatArray, out: FloatArray) -> FloatArray:
        """Multiply, and sum over ranks block by block."""

        def compute(start: int, stop: int, rows: FloatArray) -> None:
            np.dot(x[start:stop], matrix, out=rows)

        overlapped(compute, out, even_sizes(len(x), max(1, len(x) // _BLOCK_ROWS)), self._communicator)
        return out
