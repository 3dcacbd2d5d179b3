"""Where the KV cache lies when it outgrows the GPU, and what that moves: arithmetic, no arrays.

A decoder reads, for each token, every layer's weights once and every layer's keys and values once. Weights
stay on the GPU. The cache of one layer, for B sequences of N tokens, has ::

    S = B N Hkv (D + Dv) w  bytes,

w bytes an element, and with int8 8 bytes of scales a token and KV head besides.

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

    Both read the same DRAM, so this holds while Bc + Bp <= Bd; beyond, S / Bd is the least.

`offload_time` says what a whole token and a whole prompt take.

The paper's machine, as its review corrects it: eight V100s share one DRAM of 196 GB/s and have 12 GB/s of bus
each, so that each has a share of 24.5 GB/s of CPU attention:

>>> round(ratio(cpu=196e9 / 8, bus=12e9), 2)
2.04
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Placement", "Split", "Traffic", "activation_bytes", "cache_bytes", "largest_context", "layer_parameters",
    "parameters", "place", "ratio", "split", "spread", "staging_bytes", "traffic",
]  # fmt: skip


def layer_parameters(
    hidden: int, feed_forward: int, q_heads: int, kv_heads: int, head_dim: int, *, gated: bool = True
) -> int:
    """Return the weights of one decoder layer.

    Parameters
    ----------
    hidden, feed_forward : int
        Width of the residual stream, and of the feed-forward network.
    q_heads, kv_heads, head_dim : int
        Hq, Hkv, D.
    gated : bool
        SwiGLU has three matrices (gate, up, down), a plain network two.

    Notes
    -----
    Matrices for q, k, v: hidden (Hq + 2 Hkv) D; for the output Hq D hidden; two norms' gains of hidden each.

    Examples
    --------
    >>> layer_parameters(4096, 14336, 32, 8, 128)  # Llama-3-8B
    218112000
    """
    attention = hidden * (q_heads + 2 * kv_heads) * head_dim + q_heads * head_dim * hidden
    return attention + (3 if gated else 2) * hidden * feed_forward + 2 * hidden


def parameters(layers: int, layer: int, hidden: int, vocab: int, *, tied: bool = False) -> int:
    """Return the weights of a decoder: its layers, the embedding, the output matrix, and the last norm.

    Parameters
    ----------
    layers, layer : int
        How many, and the weights of one.
    hidden, vocab : int
        Shape of the embedding.
    tied : bool
        The output matrix is the embedding.

    Examples
    --------
    >>> parameters(32, layer_parameters(4096, 14336, 32, 8, 128), 4096, 128256)  # Llama-3-8B
    8030261248
    """
    return layers * layer + (1 if tied else 2) * vocab * hidden + hidden


def activation_bytes(
    batch: int, chunk: int, hidden: int, feed_forward: int, q_heads: int, kv_heads: int, head_dim: int,
    vocab: int, itemsize: int,
) -> int:  # fmt: skip
    """Return the bytes that a decoder computes in while a chunk of prompt goes through its layers.

    Parameters
    ----------
    batch, chunk : int
        Sequences, and tokens of each that go through at a time.
    hidden, feed_forward, q_heads, kv_heads, head_dim, vocab : int
        The model.
    itemsize : int
        Bytes of an element of the weights, and of what they multiply.

    Notes
    -----
    Layers take turns in the same buffers. Of each of the B chunk rows there are: the residual stream in
    float32; what a norm made of it; queries, keys and values, or gate and up, whichever is wider; and what
    attention mixed, or the gated::

        4 hidden + e (hidden + max((Hq + 2 Hkv) D, 2 F) + max(Hq D, F)).

    Of each sequence: its last row, normalised, and float32 logits. And what goes up for a step: 4 bytes a
    token, and rotary embedding's angles, 4 D bytes a position, of two positions at least.
    """
    wide = max((q_heads + 2 * kv_heads) * head_dim, 2 * feed_forward)
    middle = max(q_heads * head_dim, feed_forward)
    row = 4 * hidden + itemsize * (hidden + wide + middle)
    inputs = 4 * (batch * chunk + head_dim * max(chunk, 2))
    return batch * chunk * row + batch * (itemsize * hidden + 4 * vocab) + inputs


def cache_bytes(
    batch: int,
    tokens: int,
    kv_heads: int,
    head_dim: int,
    v_dim: int,
    itemsize: int,
    *,
    scales: bool = False,
) -> int:
    """Return the bytes of one layer's keys and values.

    Parameters
    ----------
    batch, tokens, kv_heads, head_dim, v_dim : int
        B, N, Hkv, D, Dv.
    itemsize : int
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


def staging_bytes(
    token_bytes: int, batch: int, q_heads: int, head_dim: int, itemsize: int, *, chunk: int, slots: int,
    slot_tokens: int,
) -> int:  # fmt: skip
    """Return the GPU's memory for layers whose caches lie in host memory, on their way.

    Parameters
    ----------
    token_bytes : int
        A layer's cache of one token of the whole batch: S / N.
    batch, q_heads, head_dim, itemsize : int
        B, Hq, D, and bytes of an element of the output.
    chunk : int
        Prompt tokens at a time.
    slots, slot_tokens : int
        Places for pieces of a cache on their way up, and the tokens of a piece.

    Notes
    -----
    A place has room for one token more than a piece: the new one. A chunk's own rows wait in two places by
    turns until they are down. A chunk's output over one piece (e bytes an element), the sum over pieces
    (float32), and two log-sum-exps.
    """
    ring = slots * (slot_tokens + 1) * token_bytes
    rows = 2 * chunk * token_bytes
    outputs = batch * chunk * q_heads * (head_dim * (itemsize + 4) + 2 * 4)
    return ring + rows + outputs


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
    itemsize: int,
    share: float,
) -> Traffic:
    """Return what a layer in host memory moves for a token, the CPU attending to a `share` of the keys.

    Parameters
    ----------
    cache : float
        S: bytes of the layer's cache (`cache_bytes`).
    batch, q_heads, kv_heads, head_dim, v_dim : int
        B, Hq, Hkv, D, Dv.
    itemsize : int
        Bytes of an element of q, k, v and the output.
    share : float
        0: classical; 1: cooperative; between: split, where the output comes with its log-sum-exp.

    Notes
    -----
    Down go the token's k and v, B Hkv (D + Dv) elements, which the host keeps in any case, and where the CPU
    attends its q, B Hq D elements. Up go (1 - share) S, and where the CPU attends its output, B Hq Dv
    elements; if that is to be merged, 4 B Hq bytes of log-sum-exps, too.

    Examples
    --------
    >>> whole = cache_bytes(1, 131072, 8, 128, 128, 2)
    >>> [traffic(whole, 1, 32, 8, 128, 128, 2, f).up for f in (0, 1)]
    [536870912, 8192]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    rows = batch * kv_heads * (head_dim + v_dim) * itemsize
    if share == 0:
        return Traffic(rows, cache, 0, cache + rows)
    query = batch * q_heads * head_dim * itemsize
    result = batch * q_heads * v_dim * itemsize
    if share == 1:
        return Traffic(rows + query, result, cache, cache + rows)
    up = (1 - share) * cache + result + 4 * batch * q_heads
    return Traffic(rows + query, up, share * cache, cache + rows)


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
    """A layer shared between CPU and bus: the CPU's share of the keys, and bytes a second that both reach."""

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
    While Bc + Bp <= Bd, both sides end together at f = Bc / (Bc + Bp). Else they share Bd: it takes S / Bd as
    long as the CPU's f S / Bd and the bus's (1 - f) S / Bd stay possible, that is for f between 1 - Bp /
    Bd and Bc / Bd; in proportion to what each can do alone lies between the two.

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
    """How many layers' caches lie on the GPU and in host memory, and the bytes that are left over there."""

    gpu_layers: int
    host_layers: int
    gpu_left: float
    host_left: float


def place(
    layers: int,
    cache: float,
    gpu_memory: float,
    gpu_used: float,
    host_memory: float,
    *,
    staging: float = 0.0,
    most_gpu_layers: int | None = None,
) -> Placement | None:
    """Return where the layers' caches lie, as many as fit on the GPU; None where they fit nowhere.

    Parameters
    ----------
    layers : int
        L.
    cache : float
        S.
    gpu_memory, host_memory : float
        Bytes that may be used: what there is, less what others hold, less a margin.
    gpu_used : float
        Weights and activations.
    staging : float
        What the GPU needs besides as soon as one layer lies in host memory (`staging_bytes`).
    most_gpu_layers : int, optional
        No more than these on the GPU, whatever the room.

    Notes
    -----
    With M the usable bytes of the GPU and H those of the host::

        L_GPU = L                                        if used + L S <= M, else
        L_GPU = min(L - 1, floor((M - used - staging) / S)),    L_CPU = L - L_GPU,

    and L_CPU S <= H. The paper leaves both unsaid.

    Examples
    --------
    >>> found = place(32, 0.5 * 2**30, 32e9, 17e9, 64e9)
    >>> found.gpu_layers, found.host_layers
    (27, 5)
    >>> place(32, 0.5 * 2**30, 16e9, 17e9, 64e9) is None  # the weights alone do not fit
    True
    """
    most = layers if most_gpu_layers is None else min(layers, most_gpu_layers)
    room = gpu_memory - gpu_used
    if most == layers and room >= layers * cache:
        return Placement(layers, 0, room - layers * cache, host_memory)
    room -= staging
    if room < 0:
        return None
    on_gpu = min(layers - 1, most, int(room // cache))
    in_host = layers - on_gpu
    left = host_memory - in_host * cache
    return None if left < 0 else Placement(on_gpu, in_host, room - on_gpu * cache, left)


def spread(layers: int, host_layers: int) -> list[bool]:
    """Return which layers' caches lie in host memory, evenly over the depth, the last one among them.

    Uploads run ahead while the GPU works on layers between.

    Examples
    --------
    >>> [i for i, in_host in enumerate(spread(8, 3)) if in_host]
    [2, 5, 7]
    """
    return [(i + 1) * host_layers // layers > i * host_layers // layers for i in range(layers)]


def largest_context(
    layers: int,
    token_bytes: float,
    gpu_memory: float,
    gpu_used: float,
    host_memory: float,
    *,
    staging: float = 0.0,
    most_gpu_layers: int | None = None,
) -> int:
    """Return the most tokens whose caches fit, layer by layer, on the GPU and in host memory together.

    Parameters
    ----------
    token_bytes : float
        Of one layer: S / N.
    layers, gpu_memory, gpu_used, host_memory, staging, most_gpu_layers
        As for `place`.

    Notes
    -----
    Whatever fits, less fits, too (both floors fall as N grows), so that bisection finds the last N for which
    `place` finds a place.

    Examples
    --------
    >>> n = largest_context(32, 4096, 32e9, 17e9, 64e9)
    >>> place(32, 4096 * n, 32e9, 17e9, 64e9) is not None, place(32, 4096 * (n + 1), 32e9, 17e9, 64e9) is None
    (True, True)
    """

    def fits(tokens: int) -> bool:
        return (
            place(
                layers, token_bytes * tokens, gpu_memory, gpu_used, host_memory, staging=staging,
                most_gpu_layers=most_gpu_layers,
            )
            is not None
        )  # fmt: skip

    low, high = 0, int(max(0.0, gpu_memory - gpu_used + host_memory) // (layers * token_bytes)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
