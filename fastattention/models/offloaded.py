"""A decoder of the LLaMA family on a device, its KV cache there and in host memory.

The same layers as `llama.Session`'s, for a batch of sequences of equal length. The session only queues work:
matrix products and what lies between them (`device_ops`), and each layer's attention, which the cache sends
to whoever is to compute it. Where the batch has two halves, they take turns: the device multiplies for one
while the CPU attends for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.traffic import traffic
from .activations import Activations, Rows, activation_bytes
from .device_llama import DeviceLayer, DeviceLlama
from .device_ops import ops_for
from .sizes import Config

if TYPE_CHECKING:
    from ..offload.plan import OffloadPlan
    from ..runtime.cooperative import CooperativeCache
    from ..runtime.device import Device

__all__ = ["OffloadedSession", "activation_bytes", "check_plan"]

FloatArray = NDArray[np.float32]

# What a plan and a model must agree on.
_SIZES = ("layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim", "vocab_size")


class OffloadedSession:
    """A batch of sequences of equal length running through a model on a device.

    Parameters
    ----------
    model : DeviceLlama
    plan_or_cache : OffloadPlan or CooperativeCache
        Where the cache lies: a plan, of which the session makes the cache and gives it back, or the empty
        cache itself, which stays the caller's.
    device : Device
        From `fastattention.runtime.open_device`; where the model's weights lie.

    Attributes
    ----------
    position : int
        Tokens that each sequence has taken so far.
    context : int
        Most tokens of a sequence.
    batch : int
        Sequences, B.
    attention_seconds : float
        Time that the CPU has spent attending so far. (The device's attention is queued, not timed.)

    Raises
    ------
    ValueError
        The plan is for another model, or for weights of another dtype.
    MemoryError
        There is no room; what was taken was given back.
    """

    def __init__(
        self, model: DeviceLlama, plan_or_cache: OffloadPlan | CooperativeCache, device: Device
    ) -> None:
        self.model = model
        self.device = device
        self._own = hasattr(plan_or_cache, "placement")
        cache: Any = plan_or_cache
        if self._own:
            plan: Any = plan_or_cache
            check_plan(plan, model.name, model.config)
            _check_dtype(plan, model)
            from ..runtime.cooperative import CooperativeCache

            cache = CooperativeCache.from_plan(plan, device, compute_dtype=model.dtype)
        self.cache = cache
        self._host_logits: FloatArray | None = None
        try:
            self.context, self._chunk = int(cache.capacity), int(cache.chunk)
            self.batch = cache.whole.stop
            with cache.stream(0):
                self._ops = ops_for(device.xp, model.dtype)
                self._buffers = Activations(device.xp, model.config, self.batch, self._chunk, model.dtype)
            device.wait()
            # What is decoded again and again; a prompt's chunks have views of their own.
            self._decode = [Rows(self._buffers, part, 1) for part in cache.parts]
            self._host_logits = device.host_array((self.batch, model.config.vocab_size), np.dtype(np.float32))
            self._frequencies = _frequencies(model.config, model.rope_divisors)
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> int:
        """Tokens that each sequence has taken so far."""
        return int(self.cache.length)

    @property
    def attention_seconds(self) -> float:
        """Time that the CPU has spent attending so far."""
        return float(self.cache.statistics()["cpu_seconds"])

    @property
    def traffic(self) -> str:
        """What has gone over the bus so far, and what the CPU has read: bytes, and bytes a second."""
        return traffic(self.cache.statistics())

    @property
    def activation_bytes(self) -> int:
        """Bytes of device memory that are computed in: `activation_bytes` of the model's sizes."""
        return self._buffers.nbytes

    def close(self) -> None:
        """Give back host memory, and the cache if the session made it; it cannot be used any more."""
        if self._host_logits is not None:
            self.device.free_host(self._host_logits)
            self._host_logits = None
        if self._own:
            self.cache.close()

    def __enter__(self) -> OffloadedSession:
        """Return the session, closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def forward(self, tokens: ArrayLike, progress: Callable[[int], None] | None = None) -> FloatArray:
        """Take tokens into the sequences.

        Parameters
        ----------
        tokens : integers, shape (B, S)
            S at least 1: whole prompts, or the one token just chosen for each sequence. A batch of one may
            come without its axis.
        progress : callable, optional
            Called with the number of tokens of each sequence done after every chunk.

        Returns
        -------
        ndarray
            float32 (B, vocab), without the first axis where `tokens` came without it: logits for what follows
            the last token. The next call overwrites them.

        Raises
        ------
        ValueError
            No tokens, tokens outside the vocabulary, another batch, or more of them than there is room for.
        MemoryError, RuntimeError
            The CPU's attention, or the device, failed.

        Notes
        -----
        Whatever is raised, an interruption included, the session is left as it was before the call.
        """
        if self._host_logits is None:
            raise RuntimeError("forward: the session is closed")
        ids = self._ids(tokens)
        before, count = self.position, ids.shape[1]
        try:
            rotation = self._rotation(before, min(self._chunk, count))
            for start in range(0, count, self._chunk):
                stop = min(start + self._chunk, count)
                rotation = self._step(ids[:, start:stop], rotation, min(self._chunk, count - stop))
                if progress is not None:
                    progress(stop)
            with self.cache.stream(0):
                self._ops.download(self._buffers.logits, self._host_logits)
        except BaseException:
            self.cache.truncate(before)
            raise
        return self._host_logits[0] if np.ndim(tokens) == 1 else self._host_logits

    def _ids(self, tokens: ArrayLike) -> NDArray[np.int32]:
        ids = np.asarray(tokens)
        if ids.ndim == 1:
            ids = ids[None]
        if ids.ndim != 2 or len(ids) != self.batch or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: expected integers of shape ({self.batch}, S), S at least 1; got {ids.dtype} "
                f"{np.shape(tokens)}"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.model.config.vocab_size:
            raise ValueError(f"tokens: expected 0 <= token < {self.model.config.vocab_size}")
        if self.position + ids.shape[1] > self.context:
            raise ValueError(
                f"{self.position} + {ids.shape[1]} tokens do not fit the context of {self.context} tokens"
            )
        return ids.astype(np.int32)

    def _rotation(self, first: int, count: int) -> NDArray[np.int32]:
        """Return the bits of cosines and sines, (count, rope_dim), of positions from `first` on."""
        angles = np.arange(first, first + count)[:, None] * self._frequencies
        bits: NDArray[np.int32] = np.exp(1j * angles).astype(np.complex64).view(np.int32)
        return bits

    def _step(self, ids: NDArray[np.int32], rotation: NDArray[np.int32], more: int) -> NDArray[np.int32]:
        """Run tokens (B, S) through all layers; if no chunk of `more` tokens follows, write their logits.

        Returns the angles of the chunk that follows: there is time for them while the device works.
        """
        cache, count = self.cache, ids.shape[1]
        if count == 1:
            parts, views = cache.parts, self._decode
        else:
            parts, views = [cache.whole], [Rows(self._buffers, cache.whole, count)]
        layers = self.model.layers
        # What goes up for the step itself comes before the caches that `step` sends up.
        for number, (part, rows) in enumerate(zip(parts, views, strict=True)):
            with cache.stream(number):
                up = np.concatenate((ids[part], rotation), axis=None)
                self._ops.upload(up, rows.inputs)
                if self.model.embedding_on_host:
                    taken = self.model.embedding[ids[part].reshape(-1)]
                    self._ops.upload(taken.astype(np.float32), rows.x)
                else:
                    self._ops.embed(rows.tokens, self.model.embedding, rows.x)
        with cache.step(count):
            # One part keeps its stream; two take turns in each layer.
            alone = len(views) == 1
            with cache.stream(0) if alone else nullcontext():
                for index, layer in enumerate(layers):
                    for number, rows in enumerate(views):
                        with nullcontext() if alone else cache.stream(number):
                            self._layer(index, layer, rows, number)
            if more:
                return self._rotation(self.position + count, more)
            for number, rows in enumerate(views):
                with cache.stream(number):
                    self._head(rows)
        return rotation

    def _layer(self, index: int, layer: DeviceLayer, rows: Rows, part: int) -> None:
        """Queue a layer. What its last product adds is added by the norm behind it."""
        ops, epsilon = self._ops, self.model.config.norm_epsilon
        ops.normalise(rows.x, rows.normed if index else None, None, rows.normed, epsilon)
        ops.matmul(rows.normed, layer.qkv, rows.qkv)
        ops.rotate(rows.qkv_heads, rows.rotation, rows.turned)
        self.cache.attend(index, rows.qkv_heads, rows.mixed_heads, part)
        ops.matmul(rows.mixed, layer.out, rows.normed)
        ops.normalise(rows.x, rows.normed, None, rows.normed, epsilon)
        ops.matmul(rows.normed, layer.gate_up, rows.gate_up)
        ops.gate(rows.gate_up, rows.gated)
        ops.matmul(rows.gated, layer.down, rows.normed)

    def _head(self, rows: Rows) -> None:
        """Queue the logits of each sequence's last token."""
        model = self.model
        self._ops.normalise(rows.last_x, rows.last_normed, model.norm, rows.last, model.config.norm_epsilon)
        self._ops.matmul(rows.last, model.head.T, rows.logits)


def _frequencies(config: Config, divisors: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Return radians a position, (rope_dim / 2,)."""
    frequencies = config.rope_base ** (-np.arange(0, config.rope_dim, 2) / config.rope_dim)
    return frequencies if divisors is None else frequencies / divisors


def check_plan(plan: OffloadPlan, name: str, config: Config) -> None:
    """Refuse a plan for another model.

    Parameters
    ----------
    plan : OffloadPlan
    name : str
        The model's, for the message.
    config : Config
        The model's.

    Raises
    ------
    ValueError
        Naming both models, and a size that differs.
    """
    for size in _SIZES:
        theirs, ours = getattr(plan.model, size), getattr(config, size)
        if theirs != ours:
            raise ValueError(
                f"plan: it is for {plan.model.name} ({size} {theirs}), not for {name} ({size} {ours})"
            )


def _check_dtype(plan: OffloadPlan, model: DeviceLlama) -> None:
    if np.dtype(plan.weight_dtype) != model.dtype:
        raise ValueError(
            f"plan: it is for weights in {plan.weight_dtype}; those of {model.name} are in {model.dtype}"
        )
