"""Where the KV cache lies when it outgrows the GPU, what that moves, and what it costs: arithmetic, no arrays.

A decoder reads, for each token, every layer's weights once and every layer's keys and values once. Weights stay
on the GPU. The cache of one layer, for B sequences of N tokens, has ::

    S = B N Hkv (D + Dv) w  bytes,     w bytes an element, with int8 also 8 bytes of scales a token and KV head.

If the caches of all layers do not fit beside the weights, some lie in host memory. For such a layer there are
three ways to attend, which differ in what crosses the bus for a token:

*classical*
    The cache goes up to the GPU each time: S up, the token's new rows down. S / Bp at best, Bp the bus.
*cooperative*
    The token's q, k, v go down, the CPU attends where the cache lies, the output comes up: kilobytes. The
    CPU reads S, which takes S / Bc. So it wins by r = Bc / Bp at most: FastAttention's idea
    (arXiv:2410.16663, section 4.3), for which the paper has no formula.
*split*
    Both at once. The CPU attends to a share f of the keys while the others go up; the two results merge
    exactly by log-sum-exp (`online_softmax`). The slower side ends the layer, max(f S / Bc, (1 - f) S / Bp),
    which is least where both end together::

        f = Bc / (Bc + Bp),     S / (Bc + Bp).

    Both read the same DRAM, so this holds while Bc + Bp <= Bd; beyond, S / Bd is the least, at any f for which
    neither side alone takes longer.

Layers depend on one another: no layer's query exists before the layer before is done. So the times of the GPU
and of CPU attention add up, layer by layer, while uploads, which need no query, may run ahead.

The paper's machine, as its review corrects it: eight V100s share one DRAM of 196 GB/s and have 12 GB/s of bus
each, so that each has a share of 24.5 GB/s of CPU attention:

>>> round(ratio(cpu=196e9 / 8, bus=12e9), 2)
2.04
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Placement", "Split", "Traffic", "cache_bytes", "largest_context", "place", "ratio", "split", "token_time",
    "traffic",
]  # fmt: skip


def cache_bytes(
    batch: int,
    tokens: int,
    kv_heads: int,
    head_dim: int,
    v_dim: int,
    itemsize: float,
    *,
    scales: bool = False,
) -> float:
    """Return the bytes of one layer's keys and values.

    Parameters
    ----------
    batch, tokens, kv_heads, head_dim, v_dim : int
        B, N, Hkv, D, Dv.
    itemsize : float
        Bytes of an element.
    scales : bool
        int8: a float32 scale for each key and each value, 8 bytes a token and KV head.

    Examples
    --------
    Llama-3-8B keeps 8 KV heads of 128; 128K tokens of one sequence in float16 are half a gibibyte a layer.

    >>> cache_bytes(1, 131072, 8, 128, 128, 2) / 2**30
    0.5
    """
    return batch * tokens * kv_heads * ((head_dim + v_dim) * itemsize + (8 if scales else 0))


@dataclass(frozen=True)
class Traffic:
    """Bytes of one layer and one token of each sequence.

    Attributes
    ----------
    down, up : float
        Over the bus, from the GPU and to it.
    cpu : float
        That CPU attention reads.
    host : float
        Of host memory in all: what the CPU reads, what goes up, and the new rows that are written.
    """

    down: float
    up: float
    cpu: float
    host: float


def traffic(
    cache: float,
    batch: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    v_dim: int,
    itemsize: float,
    share: float,
) -> Traffic:
    """Return what a layer in host memory moves for a token, the CPU attending to a `share` of the keys.

    Parameters
    ----------
    cache : float
        S: bytes of the layer's cache (`cache_bytes`).
    batch, q_heads, kv_heads, head_dim, v_dim : int
        B, Hq, Hkv, D, Dv.
    itemsize : float
        Bytes of an element of q, k, v and the output.
    share : float
        0: classical; 1: cooperative; between: split, whose partial output is float32, with its log-sum-exp.

    Notes
    -----
    Down go the token's k and v, B Hkv (D + Dv) elements, which the host keeps in any case, and where the CPU
    attends its q, B Hq D elements. Up go (1 - share) S, and where the CPU attends its output: B Hq Dv elements, or
    B Hq (Dv + 1) float32 to be merged.

    Examples
    --------
    >>> whole = cache_bytes(1, 131072, 8, 128, 128, 2)
    >>> [traffic(whole, 1, 32, 8, 128, 128, 2, f).up for f in (0, 1)]
    [536870912.0, 8192.0]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    rows = batch * kv_heads * (head_dim + v_dim) * itemsize
    query = batch * q_heads * head_dim * itemsize if share else 0.0
    result = 0.0
    if share == 1:
        result = batch * q_heads * v_dim * itemsize
    elif share:
        result = batch * q_heads * (v_dim + 1) * 4.0
    up = (1 - share) * cache
    return Traffic(rows + query, up + result, share * cache, cache + rows)


def ratio(cpu: float, bus: float) -> float:
    """Return r = Bc / Bp, by which CPU attention beats uploading at most.

    Examples
    --------
    >>> round(ratio(cpu=108e9, bus=54e9), 2)  # a host of 16 cores, measured with an H200
    2.0
    """
    return cpu / bus


@dataclass(frozen=True)
class Split:
    """A layer shared between CPU and bus: the CPU's share of the keys, and the bytes a second that both reach."""

    share: float
    bandwidth: float


def split(bus: float, cpu: float, host_bandwidth: float) -> Split:
    """Return the best split of a layer, and how fast it reads the cache.

    Parameters
    ----------
    bus, cpu, host_bandwidth : float
        Bp, Bc, Bd: bytes a second over the bus, by CPU attention alone, and of host memory in all.

    Notes
    -----
    While Bc + Bp <= Bd, both sides end together at f = Bc / (Bc + Bp). Else they share Bd: the layer takes S / Bd
    as long as the CPU's f S / Bd and the bus's (1 - f) S / Bd stay possible, that is for f between 1 - Bp / Bd and
    Bc / Bd; in proportion to what each can do alone lies between the two.

    Examples
    --------
    >>> best = split(bus=54e9, cpu=108e9, host_bandwidth=122e9)
    >>> round(best.share, 2), best.bandwidth
    (0.67, 122000000000.0)
    """
    for name, value in (("bus", bus), ("cpu", cpu), ("host_bandwidth", host_bandwidth)):
        if not value > 0:
            raise ValueError(f"{name}: expected bytes a second above 0, got {value}")
    return Split(cpu / (cpu + bus), min(cpu + bus, host_bandwidth))


@dataclass(frozen=True)
class Placement:
    """How many layers' caches lie on the GPU and in host memory, and what is left over there, in bytes."""

    gpu_layers: int
    host_layers: int
    gpu_left: float
    host_left: float


def place(
    layers: int, cache: float, gpu_memory: float, gpu_used: float, host_memory: float, host_used: float = 0.0
) -> Placement | None:
    """Return where the layers' caches lie, as many as fit on the GPU; None where they fit nowhere.

    Parameters
    ----------
    layers : int
        L.
    cache : float
        S.
    gpu_memory, host_memory : float
        Bytes that may be used: what there is, less a margin.
    gpu_used : float
        Weights, activations, and where layers lie in host memory the buffers they pass through.
    host_used : float
        Likewise.

    Notes
    -----
    ::

        L_GPU = min(L, floor((M_GPU - used) / S)),     L_CPU = L - L_GPU,

    and L_CPU S must fit in host memory. The paper leaves both unsaid.

    Examples
    --------
    >>> found = place(32, 0.5 * 2**30, 32e9, 17e9, 64e9)
    >>> found.gpu_layers, found.host_layers
    (27, 5)
    >>> place(32, 0.5 * 2**30, 16e9, 17e9, 64e9) is None  # the weights alone do not fit
    True
    """
    room = gpu_memory - gpu_used
    if room < 0:
        return None
    on_gpu = min(layers, int(room // cache)) if cache else layers
    in_host = layers - on_gpu
    left = host_memory - host_used - in_host * cache
    return None if left < 0 else Placement(on_gpu, in_host, room - on_gpu * cache, left)


def largest_context(
    layers: int,
    bytes_a_token: float,
    gpu_memory: float,
    gpu_used: float,
    host_memory: float,
    host_used: float = 0.0,
) -> int:
    """Return the most tokens whose caches fit, layer by layer, on the GPU and in host memory together.

    Parameters
    ----------
    bytes_a_token : float
        Of one layer: S / N.
    layers, gpu_memory, gpu_used, host_memory, host_used
        As for `place`.

    Notes
    -----
    N tokens fit when L_GPU + floor(host / (N s)) >= L: both floors fall as N grows, so that bisection finds the
    last N for which `place` finds a place.

    Examples
    --------
    >>> n = largest_context(32, 4096, 32e9, 17e9, 64e9)
    >>> place(32, 4096 * n, 32e9, 17e9, 64e9) is not None, place(32, 4096 * (n + 1), 32e9, 17e9, 64e9) is None
    (True, True)
    """
    room = gpu_memory - gpu_used
    if room < 0 or host_memory < host_used:
        return 0
    low, high = 0, int((room + host_memory - host_used) // (layers * bytes_a_token)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = place(layers, bytes_a_token * middle, gpu_memory, gpu_used, host_memory, host_used) is not None
        low, high = (middle, high) if fits else (low, middle)
    return low


def token_time(
    placement: Placement, gpu_layer: float, cache: float, *, gpu: float, bus: float, cpu: float, host_bandwidth: float,
    way: str, latency: float = 0.0,
) -> float:  # fmt: skip
    """Return the seconds of a token through all layers.

    Parameters
    ----------
    placement : Placement
        From `place`.
    gpu_layer : float
        Seconds of the GPU for a layer without attention: its weights over the GPU's memory, for few tokens.
    cache : float
        S, bytes.
    gpu, bus, cpu, host_bandwidth : float
        Bytes a second: the GPU's own memory, and Bp, Bc, Bd.
    way : {"classical", "cooperative", "split"}
        For the layers in host memory.
    latency : float
        Seconds that a trip to the CPU and back takes, whatever its size.

    Notes
    -----
    The GPU's own work is L t + L_GPU S / Bg, and one after another with all that depends on it.

    Classical uploads need no query, and run ahead of the layers that use them: the token takes the longer of
    all uploads, L_CPU S / Bp, and of the GPU's work with the attention to what came up, L_CPU S / Bg.

    Cooperative attention lies between two halves of a layer and adds L_CPU (S / Bc + latency).

    Split: the bus runs ahead, too, as long as the GPU works. With W the GPU's own time a host layer, the bus has
    W + f S / Bc for (1 - f) S, so that both end together at::

        f = (1 / Bp - W / S) / (1 / Bc + 1 / Bp),    at least 0,

    less than Bc / (Bc + Bp) by what the bus did meanwhile; while both read, they share Bd.
    """
    work = (placement.gpu_layers + placement.host_layers) * gpu_layer + placement.gpu_layers * cache / gpu
    count = placement.host_layers
    if count == 0:
        return work
    if way == "classical":
        return max(count * cache / min(bus, host_bandwidth), work + count * cache / gpu)
    if way == "cooperative":
        return work + count * (cache / min(cpu, host_bandwidth) + latency)
    if way != "split":
        raise ValueError(f"way: expected 'classical', 'cooperative' or 'split', got {way!r}")
    ahead = work / count  # seconds of the GPU for each layer in host memory, in which the bus runs ahead
    early = min(cache, ahead * min(bus, host_bandwidth))
    both = split(bus, cpu, host_bandwidth)
    return work + count * ((cache - early) / both.bandwidth + latency)
