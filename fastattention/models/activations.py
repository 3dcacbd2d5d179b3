"""Device memory that a decoder computes in: taken once, for the longest step, and a step's views of it.

A layer's arrays take turns in few buffers. "wide" is queries, keys and values until they have been attended
to, then gate and up; "middle" is what attention mixed, then the gated; "normed" is what a matrix product
reads, and behind the second of each pair of matrices what is added to the residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..reference import offload

if TYPE_CHECKING:
    from ..offload.shapes import ModelShape
    from .sizes import Config

__all__ = ["Activations", "Rows", "activation_bytes"]


def activation_bytes(shape: ModelShape | Config, batch: int, chunk: int, dtype: Any) -> int:
    """Return the bytes of device memory that an `OffloadedSession` computes in, beside weights and cache.

    Parameters
    ----------
    shape : ModelShape or Config
        Sizes of the model.
    batch : int
        Sequences, B.
    chunk : int
        Tokens of each that go through the layers at a time.
    dtype : dtype
        Of the weights.

    Notes
    -----
    The formula, which plans use as well, is in ``reference.offload``.
    """
    return offload.activation_bytes(
        batch, chunk, shape.hidden, shape.feed_forward, shape.heads, shape.kv_heads, shape.head_dim,
        shape.vocab_size, np.dtype(dtype).itemsize,
    )  # fmt: skip


def _wide(shape: ModelShape | Config) -> int:
    return max((shape.heads + 2 * shape.kv_heads) * shape.head_dim, 2 * shape.feed_forward)


def _middle(shape: ModelShape | Config) -> int:
    return max(shape.heads * shape.head_dim, shape.feed_forward)


class Activations:
    """The buffers.

    Parameters
    ----------
    xp : module
        NumPy or CuPy, whose current device they are taken on.
    config : Config
    batch, chunk : int
    dtype : dtype
        Of the weights.
    """

    def __init__(self, xp: Any, config: Config, batch: int, chunk: int, dtype: Any) -> None:
        self.config = config
        rows = batch * chunk
        # Two parts of a batch have angles of their own: each part's stream brings them.
        self.inputs = xp.empty(rows + config.head_dim * max(chunk, 2), np.int32)
        self.x = xp.empty((rows, config.hidden), np.float32)
        self.normed = xp.empty((rows, config.hidden), dtype)
        self.wide = xp.empty((rows, _wide(config)), dtype)
        self.middle = xp.empty((rows, _middle(config)), dtype)
        self.last = xp.empty((batch, config.hidden), dtype)
        self.logits = xp.empty((batch, config.vocab_size), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return sum(
            int(array.nbytes)
            for array in (self.inputs, self.x, self.normed, self.wide, self.middle, self.last, self.logits)
        )


class Rows:
    """Views of the buffers for some sequences of the batch, and so many tokens of each.

    Parameters
    ----------
    buffers : Activations
    batch : slice
        Which sequences, B' of them. Other sequences' views lie elsewhere.
    tokens : int
        Of each, S.

    Attributes
    ----------
    inputs : int32 array
        What goes up for a step: tokens, behind them the bits of the angles' cosines and sines.
    tokens : int32 array, shape (B' S,)
    rotation : float32 array, shape (S, rope_dim / 2, 2)
    x, normed, qkv, mixed, gate_up, gated : array, shape (B' S, columns)
    qkv_heads, mixed_heads : array, shape (B', S, heads, D)
        As attention wants them.
    last_x, last_normed : array, shape (B', hidden)
        The last token of each sequence, in `x` and `normed`.
    last : array, shape (B', hidden)
    logits : float32 array, shape (B', vocab)
    """

    def __init__(self, buffers: Activations, batch: slice, tokens: int) -> None:
        config = buffers.config
        first, sequences = batch.start * tokens, batch.stop - batch.start
        rows = sequences * tokens
        own = slice(first, first + rows)
        angles = tokens * config.rope_dim
        start = batch.start * tokens + (angles if batch.start else 0)
        self.inputs = buffers.inputs[start : start + rows + angles]
        self.tokens = self.inputs[:rows]
        self.rotation = self.inputs[rows:].view(np.float32).reshape(tokens, config.rope_dim // 2, 2)
        self.x, self.normed = buffers.x[own], buffers.normed[own]

        def columns(buffer: Any, count: int) -> Any:
            return buffer[own].reshape(-1)[: rows * count].reshape(rows, count)

        heads, turned = config.heads, config.heads + config.kv_heads
        q_columns, all_heads = heads * config.head_dim, turned + config.kv_heads
        self.qkv = columns(buffers.wide, all_heads * config.head_dim)
        self.gate_up = columns(buffers.wide, 2 * config.feed_forward)
        self.mixed = columns(buffers.middle, q_columns)
        self.gated = columns(buffers.middle, config.feed_forward)
        self.qkv_heads = self.qkv.reshape(sequences, tokens, all_heads, config.head_dim)
        self.mixed_heads = self.mixed.reshape(sequences, tokens, heads, config.head_dim)
        self.turned = turned
        self.last_x = self.x.reshape(sequences, tokens, -1)[:, -1]
        self.last_normed = self.normed.reshape(sequences, tokens, -1)[:, -1]
        self.last, self.logits = buffers.last[batch], buffers.logits[batch]
