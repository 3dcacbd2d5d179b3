"""How long a token and a prompt take when part of the KV cache lies in host memory: the model behind a plan.

Layers depend on one another: no layer's query exists before the layer before is done. So the GPU's work and
the CPU's attention add up, layer by layer. What needs no query may run ahead: uploads; and work on
other sequences. Four resources take part, each with one rate: the GPU's memory (decoding reads weights and
caches, and computes little), the bus, CPU attention, and host memory, which CPU and bus share. ::

    t   seconds of the GPU for a layer without attention: its weights over the GPU's bandwidth
    S   bytes of a layer's cache, of the whole batch
    W   the GPU's own work on a token: L t + L_GPU S / Bg + the output matrix

`offload` has the memory, the traffic, and the placement.
"""

from __future__ import annotations

from dataclasses import dataclass

from .offload import split

__all__ = ["Rates", "TokenTime", "classical", "cooperative", "on_gpu", "prefill", "shared", "two_halves"]


@dataclass(frozen=True)
class Rates:
    """What a machine does at best.

    Attributes
    ----------
    gpu : float
        Bytes a second of the GPU's own memory.
    bus, cpu, host : float
        Bp, Bc and Bd: bytes a second over the bus, by CPU attention alone, and of host memory in all.
    latency : float
        Seconds that a trip to the CPU and back takes, whatever its size.
    """

    gpu: float
    bus: float
    cpu: float
    host: float
    latency: float


@dataclass(frozen=True)
class TokenTime:
    """A token's seconds, and what they go to.

    Attributes
    ----------
    seconds : float
    gpu, bus, cpu : float
        For how many of them each is busy.
    limit : str
        "GPU", "bus", "CPU" or "host memory": which one would have to be faster.
    share : float
        Of a host layer's keys, what the CPU attends to.
    """

    seconds: float
    gpu: float
    bus: float
    cpu: float
    limit: str
    share: float


def on_gpu(layers: int, layer: float, head: float, cache: float, rates: Rates) -> TokenTime:
    """Return a token's time with all caches on the GPU: W.

    Parameters
    ----------
    layers : int
        L.
    layer, head : float
        Seconds of the GPU for a layer without attention, t, and for the output matrix.
    cache : float
        S.
    rates : Rates
    """
    work = layers * (layer + cache / rates.gpu) + head
    return TokenTime(work, work, 0.0, 0.0, "GPU", 0.0)


def classical(
    gpu_layers: int, host_layers: int, layer: float, head: float, cache: float, rates: Rates
) -> TokenTime:
    """Return a token's time when the caches in host memory go up.

    Uploads run ahead of the layers they are for, one after the other, and the GPU attends to what came up.
    The last host layer is the last of all: after its upload come its own attention, the rest of that layer,
    and the output matrix. So with L_CPU uploads of S / Bp::

        max(W + L_CPU S / Bg,   L_CPU S / Bp + S / Bg + t + head)

    and Bp no more than Bd.

    Parameters
    ----------
    gpu_layers, host_layers : int
        L_GPU and L_CPU.
    layer, head, cache, rates
        As in `on_gpu`.

    Examples
    --------
    >>> rates = Rates(gpu=800e9, bus=12e9, cpu=24.5e9, host=24.5e9, latency=50e-6)
    >>> found = classical(0, 32, 0.5e-3, 1e-3, 2**27, rates)  # 32 layers of 128 MiB
    >>> round(1e3 * found.seconds), found.limit
    (360, 'bus')
    """
    layers = gpu_layers + host_layers
    work = layers * (layer + cache / rates.gpu) + head
    bus = host_layers * cache / min(rates.bus, rates.host)
    by_bus = bus + cache / rates.gpu + layer + head
    limit = "GPU" if work >= by_bus else "bus" if rates.bus <= rates.host else "host memory"
    return TokenTime(max(work, by_bus), work, bus, 0.0, limit, 0.0)


def cooperative(
    gpu_layers: int, host_layers: int, layer: float, head: float, cache: float, rates: Rates
) -> TokenTime:
    """Return a token's time when the CPU attends to what lies in host memory.

    Everything waits for everything::

        W + L_CPU (S / Bc + latency),     Bc no more than Bd.

    Parameters
    ----------
    gpu_layers, host_layers, layer, head, cache, rates
        As in `classical`.

    Examples
    --------
    >>> rates = Rates(gpu=800e9, bus=12e9, cpu=24.5e9, host=24.5e9, latency=50e-6)
    >>> round(1e3 * cooperative(0, 32, 0.5e-3, 1e-3, 2**27, rates).seconds)
    194
    """
    work = (gpu_layers + host_layers) * layer + gpu_layers * cache / rates.gpu + head
    cpu = host_layers * cache / min(rates.cpu, rates.host)
    seconds = work + cpu + host_layers * rates.latency
    limit = "GPU" if work >= cpu else "CPU" if rates.cpu <= rates.host else "host memory"
    return TokenTime(seconds, work, 0.0, cpu, limit, 1.0)


def two_halves(
    gpu_layers: int, host_layers: int, layer: float, head: float, cache: float, rates: Rates
) -> TokenTime:
    """Return a token's time when two halves of the batch take turns on GPU and CPU.

    While the CPU attends for one half, the GPU works for the other. Each half needs all the weights, so the
    GPU reads them twice. Between two host layers there are w seconds of the GPU for a half: L / L_CPU layers
    without attention, and L_GPU / L_CPU caches of its half. One host layer then takes a period::

        P = max(S / Bc,   2 w,   w + latency + S / (2 Bc)),

    the CPU's work for both halves; the GPU's for both; or what one half's own chain needs, which must be back
    before its turn comes again. Before the CPU's first work and after its last come w, a trip, and the output
    matrix, which each half multiplies by itself: ``L_CPU P + w + latency + 2 head``.

    Parameters
    ----------
    gpu_layers, host_layers, layer, head, cache, rates
        As in `classical`; at least one host layer.

    Examples
    --------
    >>> rates = Rates(gpu=800e9, bus=12e9, cpu=24.5e9, host=24.5e9, latency=50e-6)
    >>> round(1e3 * two_halves(0, 32, 0.5e-3, 1e-3, 2**27, rates).seconds)  # the GPU's work is hidden
    178
    """
    cpu_rate = min(rates.cpu, rates.host)
    half = ((gpu_layers + host_layers) * layer + gpu_layers * cache / 2 / rates.gpu) / host_layers
    chain = half + rates.latency + cache / 2 / cpu_rate
    period = max(cache / cpu_rate, 2 * half, chain)
    seconds = host_layers * period + half + rates.latency + 2 * head
    gpu, cpu = 2 * host_layers * half + 2 * head, host_layers * cache / cpu_rate
    limit = "GPU" if gpu >= cpu else "CPU" if rates.cpu <= rates.host else "host memory"
    return TokenTime(seconds, gpu, 0.0, cpu, limit, 1.0)


def shared(
    gpu_layers: int, host_layers: int, layer: float, head: float, cache: float, rates: Rates
) -> TokenTime:
    """Return a token's time, and the CPU's share, when CPU and GPU split the keys of each host layer.

    The bus runs ahead while the GPU works. Let w = W / L_CPU be that time for each host layer: w Bp bytes of
    its S are up before the CPU may begin, and CPU and bus do the rest together at min(Bc + Bp, Bd)
    (`offload.split`), Bc / (Bc + Bp) of it the CPU. So ::

        rest = max(0, S - w Bp),    f = rest / S Bc / (Bc + Bp),
        W + L_CPU (rest / min(Bc + Bp, Bd) + latency).

    Where rest is 0 the bus alone is fast enough, and no CPU is needed.

    Parameters
    ----------
    gpu_layers, host_layers, layer, head, cache, rates
        As in `classical`; at least one host layer.

    Examples
    --------
    >>> rates = Rates(gpu=800e9, bus=12e9, cpu=24.5e9, host=40e9, latency=50e-6)
    >>> found = shared(0, 32, 0.5e-3, 1e-3, 2**27, rates)
    >>> round(1e3 * found.seconds), round(found.share, 2)
    (131, 0.64)
    """
    work = (gpu_layers + host_layers) * layer + gpu_layers * cache / rates.gpu + head
    best = split(rates.bus, rates.cpu, rates.host)
    rest = max(0.0, cache - work / host_layers * min(rates.bus, rates.host))
    together = rest / best.bandwidth
    seconds = work + host_layers * (together + rates.latency)
    share = rest / cache * best.share
    bus = host_layers * (1 - share) * cache / rates.bus
    limit = "GPU" if work >= host_layers * together else "CPU and bus"
    if limit != "GPU" and rates.cpu + rates.bus > rates.host:
        limit = "host memory"
    return TokenTime(seconds, work, bus, host_layers * together, limit, share)


def prefill(
    tokens: int,
    chunk: int,
    layers: int,
    host_layers: int,
    *,
    layer_flop: float,
    attention_flop: float,
    token_bytes: float,
    weight_bytes: float,
    products: float,
    attention: float,
    rates: Rates,
) -> float:
    """Return the seconds of a prompt that goes through the layers chunk by chunk.

    A chunk of C tokens behind p others costs the GPU, for each layer, C products of ``layer_flop``, no less
    time than its weights take to be read, and ``attention_flop`` for each of the C p + C (C + 1) / 2 visible
    pairs.
    For each host layer the p tokens before come up once more, which runs ahead of the layer that
    needs them; the chunk is done when both are::

        sum over chunks of max(GPU, L_CPU p token_bytes / Bp)

    What goes down meets nothing: the bus has two directions, and a chunk is less than what is before it.

    Parameters
    ----------
    tokens, chunk : int
        N and C.
    layers, host_layers : int
        L and L_CPU.
    layer_flop, attention_flop : float
        Floating-point operations of a layer for a token of the whole batch, 2 B times its weights; and for a
        pair of query and key position of the whole batch, 4 B Hq D.
    token_bytes : float
        A layer's cache of one token: S / N.
    weight_bytes : float
        Of one layer.
    products, attention : float
        Operations a second that matrix products and attention reach.
    rates : Rates

    Examples
    --------
    >>> rates = Rates(gpu=4.2e12, bus=55e9, cpu=105e9, host=140e9, latency=50e-6)
    >>> round(prefill(  # 256K tokens of Llama-3-8B on an H200, 19 layers in host memory
    ...     262144, 4096, 32, 19, layer_flop=2 * 218112000, attention_flop=4 * 32 * 128, token_bytes=4096,
    ...     weight_bytes=2 * 218112000, products=800e12, attention=320e12, rates=rates,
    ... ), 1)
    60.9
    """
    seconds = 0.0
    for before in range(0, tokens, chunk):
        count = min(chunk, tokens - before)
        pairs = count * before + count * (count + 1) / 2
        dense = max(count * layer_flop / products, weight_bytes / rates.gpu)
        gpu = layers * (dense + pairs * attention_flop / attention)
        up = host_layers * before * token_bytes / min(rates.bus, rates.host)
        seconds += max(gpu, up)
    return seconds
