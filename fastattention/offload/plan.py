"""The plan: which layers' caches lie where, who attends to them, and what a token then takes.

The arithmetic is ``reference.offload`` and ``reference.offload_time``; here it is given a model and a
machine, and the best of the ways is chosen.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ..reference import offload
from .hardware import Hardware
from .hardware import hardware as hardware_of
from .predict import Prediction, predictions, prefill_seconds
from .question import Passage, Question, check
from .settle import DoesNotFit, largest, settle
from .shapes import ModelShape, model_shape

__all__ = ["WAYS", "DoesNotFit", "OffloadPlan", "Prediction", "plan_offload"]

#: Ways to attend to what lies in host memory, and what a layer's place is called in each.
WAYS = {"gpu": "gpu", "classical": "upload", "cooperative": "host", "split": "split"}

_SCHEMA = 1


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
        For each layer "gpu" (its cache on the GPU), "host" (in host memory, the CPU attends), "split" (in
        host memory, CPU and GPU share its keys) or "upload" (in host memory, it goes up for each token).
    embedding : str
        Where the embedding lies: "gpu", or "host", from where a step's rows go up; always on the GPU where it
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
        Most tokens of a sequence that fit this machine, in the way that was asked for.
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
                f"plan: placement: expected one of {tuple(WAYS.values())} for each of the "
                f"{plan.model.layers} layers"
            )
        return plan

    def __str__(self) -> str:
        from .report import describe

        return describe(self)


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
    (29, 'split')
    """
    question = Question(
        model if isinstance(model, ModelShape) else model_shape(model),
        hardware if isinstance(hardware, Hardware) else hardware_of(hardware),
        context, batch, kv_dtype, weight_dtype, gpu_layers, chunk, slots, slot_tokens, share, halves, threads,
        margin,
    )  # fmt: skip
    check(question, way, tuple(WAYS))
    passage, placement = settle(question, way)
    found = predictions(question, placement)
    if way == "auto":
        found.sort(key=lambda prediction: prediction.seconds)
    else:
        found.sort(key=lambda prediction: (prediction.way != way, prediction.seconds))
    return _plan(question, way, passage, placement, tuple(found))


def _plan(
    q: Question, way: str, passage: Passage, placement: offload.Placement, found: tuple[Prediction, ...]
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
    return OffloadPlan(
        model=m, hardware=q.machine, context=q.context, batch=q.batch, kv_dtype=q.kv_dtype,
        weight_dtype=q.weight_dtype, placement=tuple(name if host else "gpu" for host in in_host),
        embedding="gpu" if passage.embedding else "host",
        share=chosen.share if chosen.way == "split" else 1.0, halves=chosen.halves, chunk=chunk,
        slots=passage.slots, slot_tokens=passage.slot_tokens, threads=q.threads, margin=q.margin,
        gpu_use=gpu_use, host_use=host_use, predictions=found,
        prefill_seconds=prefill_seconds(q, placement, passage), largest_context=largest(q, way),
    )  # fmt: skip
