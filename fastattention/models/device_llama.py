"""The weights of a decoder of the LLaMA family on a device: a real model's, or random ones of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .llama import Llama
from .sizes import Config

if TYPE_CHECKING:
    from ..offload.shapes import ModelShape
    from ..runtime.device import Device

__all__ = ["DeviceLayer", "DeviceLlama"]

_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))

# Random numbers are made so many at a time, in float32: 64 MB.
_PIECE = 2**24


@dataclass(frozen=True, slots=True)
class DeviceLayer:
    """Weights of one layer, as in `llama.Layer`: gains multiplied in, the gate halved, inputs in rows."""

    qkv: Any  # (hidden, (heads + 2 kv_heads) * head_dim)
    out: Any  # (heads * head_dim, hidden)
    gate_up: Any  # (hidden, 2 * feed_forward)
    down: Any  # (feed_forward, hidden)


class DeviceLlama:
    """The weights of a model as arrays of one device, in one dtype.

    Made by `from_llama` and `random`.

    Attributes
    ----------
    name : str
        For messages.
    config : Config
        Sizes.
    dtype : dtype
        float32 or float16: of the matrices, and of what they multiply.
    embedding : array, shape (vocab, hidden)
    embedding_on_host : bool
        The embedding is a NumPy array, and a step's rows of it go up to the device.
    layers : tuple of DeviceLayer
    norm : float32 array, shape (hidden,)
        Gain of the last norm.
    head : array, shape (vocab, hidden)
        The output matrix, which may be the embedding itself.
    rope_divisors : ndarray, shape (rope_dim / 2,), or None
        In host memory: divide each rotation frequency.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        dtype: np.dtype[Any],
        embedding: Any,
        layers: tuple[DeviceLayer, ...],
        norm: Any,
        head: Any,
        rope_divisors: NDArray[np.float32] | None = None,
        *,
        embedding_on_host: bool = False,
    ) -> None:
        self.name = name
        self.config = config
        self.dtype = dtype
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.rope_divisors = rope_divisors
        self.embedding_on_host = embedding_on_host

    @property
    def weight_bytes(self) -> int:
        """Bytes of device memory."""
        arrays = [self.norm, self.head]
        if self.head is not self.embedding and not self.embedding_on_host:
            arrays.append(self.embedding)
        for layer in self.layers:
            arrays += [layer.qkv, layer.out, layer.gate_up, layer.down]
        return sum(int(array.nbytes) for array in arrays)

    @classmethod
    def from_llama(
        cls,
        llama: Llama,
        device: Device,
        dtype: Any = np.float32,
        name: str = "the model",
        *,
        embedding: str = "gpu",
    ) -> DeviceLlama:
        """Copy a model to a device.

        Parameters
        ----------
        llama : Llama
        device : Device
            From `fastattention.runtime.open_device`.
        dtype : dtype, default float32
            Or float16.
        name : str
            For messages.
        embedding : {"gpu", "host"}
            Where it lies: on the device, or in host memory, where one that is the output matrix, too, cannot
            be.

        Raises
        ------
        TypeError
            Another dtype.
        ValueError
            A weight is beyond float16, or the embedding cannot lie there.
        """
        kind = _dtype(dtype)
        tied = llama.head is llama.embedding
        there = _there(embedding, tied)

        def cast(what: str, array: NDArray[np.float32]) -> NDArray[Any]:
            if kind == np.float16:
                largest = float(np.abs(array).max())
                if largest > float(np.finfo(np.float16).max):
                    raise ValueError(f"dtype: {what} has a weight of {largest:.4g}, beyond float16")
            return np.ascontiguousarray(array, kind)

        def copy(what: str, array: NDArray[np.float32]) -> Any:
            return device.array(cast(what, array))

        with _on(device):
            rows = (copy if there else cast)("the embedding", llama.embedding)
            head = rows if tied else copy("the output matrix", llama.head)
            layers = tuple(
                DeviceLayer(
                    *(copy(f"layer {number}", x) for x in (layer.qkv, layer.out, layer.gate_up, layer.down))
                )
                for number, layer in enumerate(llama.layers)
            )
            norm = device.array(llama.norm)
        device.wait()
        return cls(
            name, llama.config, kind, rows, layers, norm, head, llama.rope_divisors,
            embedding_on_host=not there,
        )  # fmt: skip

    @classmethod
    def random(
        cls,
        shape: ModelShape,
        device: Device,
        dtype: Any = np.float16,
        seed: int = 0,
        *,
        embedding: str = "gpu",
    ) -> DeviceLlama:
        """Make a model of random weights, for measuring: the speed of a model is that of its sizes.

        Each matrix keeps the variance of what it multiplies, and what layers add to the residual stream
        together has about that of the embedding, so that no activation overflows float16 however many layers
        there are.

        Parameters
        ----------
        shape : ModelShape
        device : Device
        dtype : dtype, default float16
            Or float32.
        seed : int
            The same weights for the same seed, on the same kind of device.
        embedding : {"gpu", "host"}
            As in `from_llama`.

        Raises
        ------
        TypeError
            Another dtype.
        ValueError
            A shape whose feed-forward network has no gate: this decoder's has one. Or the embedding
            cannot lie there.
        MemoryError
            There is no room on the device.

        Notes
        -----
        Numbers are drawn on the device, 64 MB at a time.
        """
        kind = _dtype(dtype)
        if not shape.gated:
            raise ValueError(
                f"shape: {shape.name}'s feed-forward network has no gate; this decoder's has one"
            )
        there = _there(embedding, shape.tied)
        config = _config(shape)
        hidden, width = shape.hidden, shape.feed_forward
        q_cols, kv_cols = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        added = 1 / math.sqrt(2 * shape.layers)  # two additions a layer
        number = 0

        def matrix(rows: int, columns: int, scale: float, halved: int = 0, there: bool = True) -> Any:
            """Draw a matrix; the first `halved` columns are halved."""
            nonlocal number
            made = (device.xp if there else np).empty((rows, columns), kind)
            step = max(1, _PIECE // columns)
            for first in range(0, rows, step):
                piece = device.normal((seed, number, first), (min(step, rows - first), columns))
                piece *= np.float32(scale)
                piece[:, :halved] *= np.float32(0.5)
                made[first : first + step] = piece if there else device.host(piece)
            number += 1
            return made

        with _on(device):
            rows = matrix(shape.vocab_size, hidden, 1.0, there=there)
            layers = tuple(
                DeviceLayer(
                    matrix(hidden, q_cols + 2 * kv_cols, hidden**-0.5),
                    matrix(q_cols, hidden, q_cols**-0.5 * added),
                    matrix(hidden, 2 * width, hidden**-0.5, halved=width),
                    matrix(width, hidden, width**-0.5 * added),
                )
                for _ in range(shape.layers)
            )
            # The gain makes logits of the embedding's rows, too, numbers of order 1.
            norm = device.array(np.full(hidden, hidden**-0.5, np.float32))
            head = rows if shape.tied else matrix(shape.vocab_size, hidden, 1.0)
        device.wait()
        return cls(shape.name, config, kind, rows, layers, norm, head, embedding_on_host=not there)


def _dtype(dtype: Any) -> np.dtype[Any]:
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind not in _DTYPES:
        raise TypeError(f"dtype: expected float32 or float16, got {kind}")
    return kind


def _there(embedding: str, tied: bool) -> bool:
    """Return whether the embedding is to lie on the device."""
    if embedding not in ("gpu", "host"):
        raise ValueError(f"embedding: expected 'gpu' or 'host', got {embedding!r}")
    if tied and embedding == "host":
        raise ValueError("embedding: 'host': it is the output matrix, too, which the device multiplies by")
    return embedding == "gpu"


def _on(device: Device) -> Any:
    """Let array operations go to the device, in a stream of their own."""
    return device.use(device.stream())


def _config(shape: ModelShape) -> Config:
    return Config(
        layers=shape.layers, hidden=shape.hidden, feed_forward=shape.feed_forward, heads=shape.heads,
        kv_heads=shape.kv_heads, head_dim=shape.head_dim, rope_dim=shape.head_dim, rope_base=shape.rope_base,
        norm_epsilon=shape.norm_epsilon, vocab_size=shape.vocab_size, context=shape.context,
    )  # fmt: skip
