"""The plan: which layers' caches lie where, who attends to them, and what a token then takes.

The arithmetic is ``reference.offload`` and ``reference.offload_time``; here it is given a model and a machine,
and the best of the ways is chosen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..reference import offload, offload_time
from ..reference.offload_time import Rates, TokenTime
from .hardware import Hardware
from .hardware import hardware as hardware_of
from .shapes import ModelShape, model_shape

__all__ = ["WAYS", "DoesNotFit", "OffloadPlan", "Prediction", "plan_offload"]

#: Ways to attend to what lies in host memory, and what a layer's place is called in each.
WAYS = {"gpu": "gpu", "classical": "upload", "cooperative": "host", "split": "split"}

_ITEMS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

#: Prompt tokens at a time, and bytes of a place in the staging ring: from the largest to the least that the GPU's
#: memory allows. The least still keep its products and the bus busy.
_CHUNKS = (4096, 2048, 1024, 512, 256)
_SLOT_BYTES = (256 << 20, 128 << 20, 64 << 20, 32 << 20, 16 << 20)
_SLOTS = 3

#: A tenth of the memory that is left beside the weights may go to activations and the ring, more layers' caches
#: being worth more; unless no layer would have room anyway.
_FOR_PASSING = 0.1

_SCHEMA = 1


class DoesNotFit(ValueError):
    """The caches fit nowhere.

    Attributes
    ----------
    largest_context : int
        Most tokens of a sequence that fit, 0 where not even the weights do.
    """

    def __init__(self, message: str, largest_context: int) -> None:
        super().__init__(message)
        self.largest_context = largest_context


@dataclass(frozen=True)
class Prediction:
    """What a way would take, at this plan's context and batch.

    Attributes
    ----------
    way : str
        A key of `WAYS`.
    gpu_layers, halves : int
        Layers with their cache on the GPU, and parts of the batch that take turns.
    share : float
        Of a host layer's keys, what the CPU attends to.
    seconds : float
        For a token of every sequence.
    limit : str
        What would have to be faster.
    """

    way: str
    gpu_layers: int
    halves: int
    share: float
    seconds: float
    limit: str


@dataclass(frozen=True)
class OffloadPlan:
    """Where a model's KV cache lies, and who attends to it. ``print(plan)`` shows it.

    Attributes
    ----------
    model : ModelShape
    hardware : Hardware
    context, batch : int
        Tokens of a sequence at most, for which memory is taken, and sequences.
    kv_dtype, weight_dtype : str
        What the cache and the weights are stored in.
    placement : tuple of str
        For each layer "gpu" (its cache on the GPU), "host" (in host memory, the CPU attends), "split" (in host
        memory, CPU and GPU share its keys) or "upload" (in host memory, it goes up for each token).
    embedding : str
        Where the embedding lies: "gpu", or "host", from where a step's rows go up; always with the GPU where it
        is the output matrix, too.
    share : float
        Of a "split" layer's keys, those that the CPU attends to.
    halves : int
        2: two halves of the batch take turns on GPU and CPU.
    chunk : int
        Prompt tokens that go through the layers at a time.
    slots, slot_tokens : int
        Places on the GPU for pieces of a host layer's cache, and the tokens (of each sequence) of a piece.
    threads : int or None
        Of CPU attention; None is the library's choice.
    margin : float
        Share of each memory that is left alone.
    gpu_use, host_use : dict of str to int
        Bytes by what they are for.
    predictions : tuple of Prediction
        All ways that fit, the plan's own first.
    prefill_seconds : float
        For prompts of `context` tokens.
    largest_context : int
        Most tokens of a sequence that would fit this machine in the plan's way.
    """

    model: ModelShape
    hardware: Hardware
    context: int
    batch: int
    kv_dtype: str
    weight_dtype: str
    placement: tuple[str, ...]
    embedding: str
    share: float
    halves: int
    chunk: int
    slots: int
    slot_tokens: int
    threads: int | None
    margin: float
    gpu_use: dict[str, int]
    host_use: dict[str, int]
    predictions: tuple[Prediction, ...]
    prefill_seconds: float
    largest_context: int

    @property
    def way(self) -> str:
        """A key of `WAYS`."""
        return self.predictions[0].way

    @property
    def gpu_layers(self) -> int:
        """Layers with their cache on the GPU."""
        return self.placement.count("gpu")

    @property
    def token_seconds(self) -> float:
        """What a token of every sequence is predicted to take, at the full context."""
        return self.predictions[0].seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as numbers, texts, lists and dicts."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"schema": _SCHEMA, **content}

    def to_json(self) -> str:
        """Return the plan as JSON, which `from_json` reads."""
        return json.dumps(self.as_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> OffloadPlan:
        """Read a plan.

        Raises
        ------
        ValueError
            The text is no plan of this version.
        """
        try:
            content = json.loads(text)
            if content.pop("schema") != _SCHEMA:
                raise ValueError(f"schema: expected {_SCHEMA}")
            content["model"] = ModelShape(**content["model"])
            content["hardware"] = Hardware(**content["hardware"])
            content["placement"] = tuple(content["placement"])
            content["predictions"] = tuple(Prediction(**entry) for entry in content["predictions"])
            plan = cls(**content)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"plan: expected what OffloadPlan.to_json writes: {error}") from error
        if len(plan.placement) != plan.model.layers or not set(plan.placement) <= set(WAYS.values()):
            raise ValueError(
                f"plan: placement: expected one of {tuple(WAYS.values())} for each of {plan.model.layers} layers"
            )
        return plan

    def __str__(self) -> str:
        from .report import describe

        return describe(self)


@dataclass(frozen=True)
class _Passage:
    """What layers in host memory pass through: chunks of prompt, a ring; and whether the embedding is on the GPU."""

    chunk: int
    slots: int
    slot_tokens: int
    embedding: bool


@dataclass(frozen=True)
class _Question:
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

    def used(self, passage: _Passage) -> int:
        """Bytes of the GPU for weights and activations."""
        return self.weights(passage.embedding) + self.activations(passage.chunk)

    def weights(self, embedding: bool) -> int:
        """Bytes of the weights on the GPU, with the embedding or without."""
        return self.model.parameters * self.item - (0 if embedding else self.embedding)

    @property
    def gpu_room(self) -> int:
        """Bytes of the GPU that may be used."""
        return int(self.machine.gpu_memory * (1 - self.margin)) - self.machine.gpu_reserved

    def host_room(self, passage: _Passage) -> int:
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

    def staging(self, passage: _Passage) -> int:
        """Bytes of the GPU for caches that lie in host memory."""
        m = self.model
        return offload.staging_bytes(
            self.token_bytes, self.batch, m.heads, m.head_dim, self.item, chunk=passage.chunk,
            slots=passage.slots, slot_tokens=passage.slot_tokens,
        )  # fmt: skip

    def passages(self) -> Iterator[_Passage]:
        """Yield sizes from the most generous to the least that is of use, the embedding on the GPU first."""
        slots = self.slots or _SLOTS
        pieces = [
            max(1, min(self.context, size // self.token_bytes // 64 * 64 or size // self.token_bytes))
            for size in _SLOT_BYTES
        ]
        for embedding in (True, False) if self.embedding else (True,):
            for chunk, tokens in zip(_CHUNKS, pieces, strict=True):
                yield _Passage(
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


def plan_offload(
    model: ModelShape | str,
    hardware: Hardware | str,
    *,
    context: int,
    batch: int = 1,
    kv_dtype: str = "float16",
    weight_dtype: str = "float16",
    way: str = "auto",
    gpu_layers: int | None = None,
    chunk: int | None = None,
    slots: int | None = None,
    slot_tokens: int | None = None,
    share: float | None = None,
    halves: int | None = None,
    threads: int | None = None,
    margin: float = 0.05,
) -> OffloadPlan:
    """Plan where a model's KV cache lies: on the GPU as far as it has room, in host memory beyond that.

    Parameters
    ----------
    model : ModelShape or str
        Or what `model_shape` takes: "llama-3-8b", or a path to a ``config.json``.
    hardware : Hardware or str
        Or a name of `PRESETS`; `detect` measures this machine.
    context : int
        Tokens of each sequence, prompt and answer together.
    batch : int, default 1
        Sequences.
    kv_dtype : {"float16", "bfloat16", "float32", "int8"}
        Of the cache.
    weight_dtype : {"float16", "float32"}
        Of weights, queries and outputs.
    way : {"auto", "gpu", "classical", "cooperative", "split"}
        Who attends to what lies in host memory: the way with the least predicted time; nobody, as all lies on
        the GPU; the GPU, to which it goes up for each token; the CPU; or both.
    gpu_layers : int, optional
        Keep no more layers' caches than these on the GPU. Default: as many as fit.
    chunk, slots, slot_tokens : int, optional
        Prompt tokens at a time; places of the staging ring, and the tokens of each. Default: by the room.
    share : float, optional
        Of a "split" layer's keys, those that the CPU attends to. Default: the best by the model.
    halves : {1, 2}, optional
        Whether two halves of the batch take turns. Default: if that is predicted to be faster.
    threads : int, optional
        Of CPU attention.
    margin : float, default 0.05
        Share of each memory to leave alone.

    Returns
    -------
    OffloadPlan

    Raises
    ------
    DoesNotFit
        There is no room, on the GPU and in host memory together. Nothing was allocated.
    TypeError, ValueError
        An argument does not fit.

    Examples
    --------
    >>> from fastattention import plan_offload
    >>> plan = plan_offload("llama-3-8b", "v100-32gb", context=131072)
    >>> plan.gpu_layers, plan.way
    (29, 'cooperative')
    """
    question = _Question(
        model if isinstance(model, ModelShape) else model_shape(model),
        hardware if isinstance(hardware, Hardware) else hardware_of(hardware),
        context, batch, kv_dtype, weight_dtype, gpu_layers, chunk, slots, slot_tokens, share, halves, threads, margin,
    )  # fmt: skip
    _check(question, way)
    passage, placement = _settle(question, way)
    found = _predictions(question, placement, way)
    if way == "auto":
        found.sort(key=lambda prediction: prediction.seconds)
    else:
        found.sort(key=lambda prediction: (prediction.way != way, prediction.seconds))
    return _plan(question, passage, placement, tuple(found))


def _check(q: _Question, way: str) -> None:
    whole = {
        "context": q.context, "batch": q.batch, "chunk": q.chunk, "slots": q.slots, "slot_tokens": q.slot_tokens,
        "threads": q.threads,
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
    if way != "auto" and way not in WAYS:
        raise ValueError(f"way: expected 'auto' or one of {', '.join(WAYS)}, got {way!r}")
    if q.share is not None and not 0 <= q.share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {q.share!r}")
    if q.halves not in (None, 1, 2) or (q.halves == 2 and q.batch < 2):
        raise ValueError(
            f"halves: expected 1, or 2 with a batch of at least 2, got {q.halves!r} with {q.batch}"
        )
    if not 0 <= q.margin < 1:
        raise ValueError(f"margin: expected 0 to 1, got {q.margin!r}")


def _settle(q: _Question, way: str) -> tuple[_Passage, offload.Placement]:
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


def _refusal(q: _Question, least: _Passage, way: str) -> DoesNotFit:
    largest, room, used = _largest(q, least, way), max(0, q.gpu_room), q.used(least)
    need = f"{q.context:,} tokens of {q.model.name}" + (f" x {q.batch}" if q.batch > 1 else "")
    if used > room:
        reason = (
            f"weights and activations take {used / 1e9:.2f} GB of the GPU, and {room / 1e9:.2f} GB are usable"
        )
    elif way == "gpu":
        reason = (
            f"with all caches on the GPU they take {(used + q.model.layers * q.cache) / 1e9:.2f} GB of it, and "
            f"{room / 1e9:.2f} GB are usable"
        )
    else:
        beside = max(0, room - used - q.staging(least))
        reason = (
            f"the caches take {q.model.layers * q.cache / 1e9:.2f} GB; beside weights and what passes through, "
            f"{beside / 1e9:.2f} GB of the GPU and {max(0, q.host_room(least)) / 1e9:.2f} GB of the host are usable"
        )
    return DoesNotFit(
        f"{need} do not fit {q.machine.name}: {reason}; the largest context that fits is {largest:,} tokens",
        largest,
    )


def _limits(q: _Question, passage: _Passage, way: str) -> dict[str, Any]:
    return {
        "gpu_memory": q.gpu_room, "gpu_used": q.used(passage),
        "host_memory": 0 if way == "gpu" else max(0, q.host_room(passage)), "staging": q.staging(passage),
        "most_gpu_layers": None if way == "gpu" else q.gpu_layers,
    }  # fmt: skip


def _place(q: _Question, passage: _Passage, way: str) -> offload.Placement | None:
    return offload.place(q.model.layers, q.cache, **_limits(q, passage, way))


def _largest(q: _Question, passage: _Passage, way: str) -> int:
    """Return the most tokens that fit with a chunk and a ring that do not depend on them."""
    return offload.largest_context(q.model.layers, q.token_bytes, **_limits(q, passage, way))


def _predictions(q: _Question, placement: offload.Placement, way: str) -> list[Prediction]:
    layers, cache, rates = q.model.layers, q.cache, q.rates
    layer, head = q.layer_seconds, q.head_seconds
    on_gpu, in_host = placement.gpu_layers, placement.host_layers
    if not in_host:
        time = offload_time.on_gpu(layers, layer, head, cache, rates)
        return [Prediction("gpu", layers, 1, 0.0, time.seconds, time.limit)]
    found = [
        _prediction(
            "classical", on_gpu, 1, offload_time.classical(on_gpu, in_host, layer, head, cache, rates)
        )
    ]
    together: list[tuple[int, TokenTime]] = []
    if q.halves != 2:
        together.append((1, offload_time.cooperative(on_gpu, in_host, layer, head, cache, rates)))
    if q.batch > 1 and q.halves != 1:
        together.append((2, offload_time.two_halves(on_gpu, in_host, layer, head, cache, rates)))
    parts, best = min(together, key=lambda entry: entry[1].seconds)
    found.append(_prediction("cooperative", on_gpu, parts, best))
    shared = offload_time.shared(on_gpu, in_host, layer, head, cache, rates)
    if q.share is not None:
        shared = _with_share(q, placement, q.share, shared)
    found.append(_prediction("split", on_gpu, 1, shared))
    return found


def _prediction(way: str, gpu_layers: int, halves: int, time: TokenTime) -> Prediction:
    return Prediction(way, gpu_layers, halves, time.share, time.seconds, time.limit)


def _with_share(q: _Question, placement: offload.Placement, share: float, best: TokenTime) -> TokenTime:
    """Return the time of a share that is not the best: the slower side ends the layer."""
    m, work = q.machine, best.gpu
    per_layer = work / placement.host_layers
    slower = max(1.0, (m.bus + m.cpu) / m.host_bandwidth) if 0 < share < 1 else 1.0
    cpu = share * q.cache / min(m.cpu, m.host_bandwidth) * slower
    bus = max(0.0, (1 - share) * q.cache / min(m.bus, m.host_bandwidth) * slower - per_layer)
    seconds = work + placement.host_layers * (max(cpu, bus) + m.latency)
    return TokenTime(seconds, work, best.bus, best.cpu, "CPU" if cpu >= bus else "bus", share)


def _plan(
    q: _Question, passage: _Passage, placement: offload.Placement, found: tuple[Prediction, ...]
) -> OffloadPlan:
    chunk = passage.chunk
    m, chosen = q.model, found[0]
    in_host = offload.spread(m.layers, placement.host_layers)
    name = WAYS[chosen.way]
    gpu_use = {
        "weights": q.weights(passage.embedding), "caches": placement.gpu_layers * q.cache,
        "activations": q.activations(chunk),
    }  # fmt: skip
    host_use = {"caches": placement.host_layers * q.cache}
    if placement.host_layers:
        gpu_use["on their way"] = q.staging(passage)
    if not passage.embedding:
        host_use["embedding"] = q.embedding
    prefill = offload_time.prefill(
        q.context, chunk, m.layers, placement.host_layers, layer_flop=2.0 * q.batch * m.layer_parameters,
        attention_flop=4.0 * q.batch * m.heads * m.head_dim, token_bytes=q.token_bytes,
        weight_bytes=m.layer_parameters * q.item, products=q.machine.gpu_flops,
        attention=q.machine.gpu_attention_flops, rates=q.rates,
    )  # fmt: skip
    return OffloadPlan(
        model=m, hardware=q.machine, context=q.context, batch=q.batch, kv_dtype=q.kv_dtype,
        weight_dtype=q.weight_dtype, placement=tuple(name if host else "gpu" for host in in_host),
        embedding="gpu" if passage.embedding else "host",
        share=chosen.share if chosen.way == "split" else 1.0, halves=chosen.halves, chunk=chunk,
        slots=passage.slots, slot_tokens=passage.slot_tokens, threads=q.threads, margin=q.margin, gpu_use=gpu_use,
        host_use=host_use, predictions=found, prefill_seconds=prefill,
        largest_context=_largest(q, passage, chosen.way),
    )  # fmt: skip
