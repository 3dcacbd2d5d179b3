"""What a plan is asked for, in bytes and seconds: a model on a machine, and what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..reference import offload
from ..reference.offload_time import Rates
from .hardware import Hardware
from .shapes import ModelShape

__all__ = ["Passage", "Question", "check"]

_ITEMS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

#: Prompt tokens at a time, and bytes of a place in the staging ring: from the largest to the least that the
#: GPU's memory allows. The least still keep its products and the bus busy.
_CHUNKS = (4096, 2048, 1024, 512, 256)
_SLOT_BYTES = (256 << 20, 128 << 20, 64 << 20, 32 << 20, 16 << 20)
_SLOTS = 3


@dataclass(frozen=True)
class Passage:
    """Chunks of prompt, a ring for caches on their way up; and whether the embedding is on the GPU."""

    chunk: int
    slots: int
    slot_tokens: int
    embedding: bool


@dataclass(frozen=True)
class Question:
    """A model on a machine, and all that was asked for."""

    model: ModelShape
    machine: Hardware
    context: int
    batch: int
    kv_dtype: str
    weight_dtype: str
    gpu_layers: int | None
    chunk: int | None
    slots: int | None
    slot_tokens: int | None
    share: float | None
    halves: int | None
    threads: int | None
    margin: float

    @property
    def token_bytes(self) -> int:
        """Bytes of a layer's cache for one token of every sequence."""
        m = self.model
        item = _ITEMS[self.kv_dtype]
        return offload.cache_bytes(
            self.batch, 1, m.kv_heads, m.head_dim, m.head_dim, item, scales=self.kv_dtype == "int8"
        )

    @property
    def cache(self) -> int:
        """S."""
        return self.token_bytes * self.context

    @property
    def item(self) -> int:
        """Bytes of a weight."""
        return _ITEMS[self.weight_dtype]

    @property
    def embedding(self) -> int:
        """Bytes of an embedding that may lie in host memory: a step needs few of its rows."""
        return 0 if self.model.tied else self.model.vocab_size * self.model.hidden * self.item

    def used(self, passage: Passage) -> int:
        """Bytes of the GPU for weights and activations."""
        return self.weights(passage.embedding) + self.activations(passage.chunk)

    def weights(self, embedding: bool) -> int:
        """Bytes of the weights on the GPU, with the embedding or without."""
        return self.model.parameters * self.item - (0 if embedding else self.embedding)

    @property
    def gpu_room(self) -> int:
        """Bytes of the GPU that may be used."""
        return int(self.machine.gpu_memory * (1 - self.margin)) - self.machine.gpu_reserved

    def host_room(self, passage: Passage) -> int:
        """Bytes of host memory that caches may use."""
        room = int(self.machine.host_memory * (1 - self.margin)) - self.machine.host_reserved
        return room - (0 if passage.embedding else self.embedding)

    def activations(self, chunk: int) -> int:
        """Bytes that the decoder computes in."""
        m = self.model
        return offload.activation_bytes(
            self.batch, chunk, m.hidden, m.feed_forward, m.heads, m.kv_heads, m.head_dim, m.vocab_size,
            self.item,
        )  # fmt: skip

    def staging(self, passage: Passage) -> int:
        """Bytes of the GPU for caches that lie in host memory."""
        m = self.model
        return offload.staging_bytes(
            self.token_bytes, self.batch, m.heads, m.head_dim, self.item, chunk=passage.chunk,
            slots=passage.slots, slot_tokens=passage.slot_tokens,
        )  # fmt: skip

    def passages(self) -> Iterator[Passage]:
        """Yield sizes from the most generous to the least that is of use, the embedding on the GPU first."""
        slots = self.slots or _SLOTS
        pieces = [
            max(1, min(self.context, size // self.token_bytes // 64 * 64 or size // self.token_bytes))
            for size in _SLOT_BYTES
        ]
        for embedding in (True, False) if self.embedding else (True,):
            for chunk, tokens in zip(_CHUNKS, pieces, strict=True):
                yield Passage(
                    self.chunk or min(chunk, self.context), slots, self.slot_tokens or tokens, embedding
                )

    @property
    def rates(self) -> Rates:
        """The machine's."""
        m = self.machine
        return Rates(m.gpu_bandwidth, m.bus, m.cpu, m.host_bandwidth, m.latency)

    @property
    def layer_seconds(self) -> float:
        """Of the GPU, for a layer without attention: reading its weights."""
        return self.model.layer_parameters * self.item / self.machine.gpu_bandwidth

    @property
    def head_seconds(self) -> float:
        """Of the GPU, for the output matrix."""
        return self.model.vocab_size * self.model.hidden * self.item / self.machine.gpu_bandwidth


def check(q: Question, way: str, ways: Sequence[str]) -> None:
    """Raise a ValueError that names what does not fit."""
    whole = {
        "context": q.context, "batch": q.batch, "chunk": q.chunk, "slots": q.slots,
        "slot_tokens": q.slot_tokens, "threads": q.threads,
    }  # fmt: skip
    for name, value in whole.items():
        optional = name not in ("context", "batch")
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if q.gpu_layers is not None and not 0 <= q.gpu_layers <= q.model.layers:
        raise ValueError(f"gpu_layers: expected 0 to {q.model.layers}, got {q.gpu_layers!r}")
    if q.kv_dtype not in _ITEMS:
        raise ValueError(f"kv_dtype: expected one of {', '.join(_ITEMS)}, got {q.kv_dtype!r}")
    if q.weight_dtype not in ("float32", "float16"):
        raise ValueError(f"weight_dtype: expected float32 or float16, got {q.weight_dtype!r}")
    if q.weight_dtype not in ("float32", q.kv_dtype) and q.kv_dtype != "int8":
        raise ValueError(
            f"kv_dtype: with weights in {q.weight_dtype} expected that or int8, got {q.kv_dtype!r}"
        )
    if way != "auto" and way not in ways:
        raise ValueError(f"way: expected 'auto' or one of {', '.join(ways)}, got {way!r}")
    if q.share is not None and not 0 <= q.share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {q.share!r}")
    if q.halves not in (None, 1, 2) or (q.halves == 2 and q.batch < 2):
        raise ValueError(
            f"halves: expected 1, or 2 with a batch of at least 2, got {q.halves!r} with {q.batch}"
        )
    if not 0 <= q.margin < 1:
        raise ValueError(f"margin: expected 0 to 1, got {q.margin!r}")
