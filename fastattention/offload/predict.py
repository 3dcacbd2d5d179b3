"""What a token takes in each way, for a model on a machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..reference import offload, offload_time
from ..reference.offload_time import TokenTime
from .question import Passage, Question

__all__ = ["Prediction", "predictions", "prefill_seconds"]


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


def predictions(q: Question, placement: offload.Placement) -> list[Prediction]:
    """Return what each way takes; one if all lies on the GPU."""
    layers, cache, rates = q.model.layers, q.cache, q.rates
    layer, head = q.layer_seconds, q.head_seconds
    on_gpu, in_host = placement.gpu_layers, placement.host_layers
    if not in_host:
        return [_prediction(q, "gpu", layers, 1, offload_time.on_gpu(layers, layer, head, cache, rates))]
    given = on_gpu, in_host, layer, head, cache, rates
    found = [_prediction(q, "classical", on_gpu, 1, offload_time.classical(*given))]
    together: list[Prediction] = []
    if q.halves != 2:
        together.append(_prediction(q, "cooperative", on_gpu, 1, offload_time.cooperative(*given)))
    if q.batch > 1 and q.halves != 1:
        together.append(_prediction(q, "cooperative", on_gpu, 2, offload_time.two_halves(*given)))
    found.append(min(together, key=lambda prediction: prediction.seconds))
    shared = offload_time.shared(*given)
    if q.share is not None:
        shared = _with_share(q, placement, q.share, shared)
    found.append(_prediction(q, "split", on_gpu, 1, shared))
    return found


def _prediction(q: Question, way: str, gpu_layers: int, halves: int, time: TokenTime) -> Prediction:
    # The program queues a token's work layer by layer, each half's by itself, while what is queued runs.
    # Nothing runs before the first layer is queued.
    queue = q.machine.queue
    queued = q.model.layers * halves * queue
    if queued > time.seconds:
        return Prediction(way, gpu_layers, halves, time.share, queued + queue, "the program")
    return Prediction(way, gpu_layers, halves, time.share, time.seconds + queue, time.limit)


def _with_share(q: Question, placement: offload.Placement, share: float, best: TokenTime) -> TokenTime:
    """Return the time of a share that is not the best: the slower side ends the layer."""
    m, ahead = q.machine, best.gpu / placement.host_layers
    bus_rate = min(m.bus, m.host_bandwidth)
    sides = {
        "CPU": share * q.cache / min(m.cpu, m.host_bandwidth),
        "bus": max(0.0, (1 - share) * q.cache / bus_rate - ahead),
        # Both read it, less what went up before the CPU began.
        "host memory": max(0.0, q.cache - min((1 - share) * q.cache, ahead * bus_rate)) / m.host_bandwidth,
    }
    limit = max(sides, key=lambda side: sides[side])
    seconds = best.gpu + placement.host_layers * (sides[limit] + m.latency)
    return TokenTime(seconds, best.gpu, best.bus, best.cpu, limit, share)


def prefill_seconds(q: Question, placement: offload.Placement, passage: Passage) -> float:
    """Return what prompts of the whole context take."""
    m = q.model
    return offload_time.prefill(
        q.context, passage.chunk, m.layers, placement.host_layers,
        layer_flop=2.0 * q.batch * m.layer_parameters, attention_flop=4.0 * q.batch * m.heads * m.head_dim,
        token_bytes=q.token_bytes, weight_bytes=m.layer_parameters * q.item, products=q.machine.gpu_flops,
        attention=q.machine.gpu_attention_flops, rates=q.rates,
    )  # fmt: skip
