"""The executable specification of FastAttention: NumPy, float64, pure functions, no speed tricks.

Everything else in this project is right when it agrees with this package. It is short enough to read in one
sitting; this order works well:

`standard`
    The oracle: attention as the formula says it, every score in memory at once. Start here.
`scores`
    Steps 1 to 4 of the formula for any block of queries and keys: scale, softcap, biases, what is hidden.
`visibility`
    Which key a query may see, and in O(1) whether a whole tile is empty, full or in between.
`online_softmax`
    The state (m, l, O): softmax over keys that come piece by piece, and how two halves merge.
`tiling`
    FlashAttention-2: the two ideas above, tile by tile, without ever holding the score matrix.
`tiling_mask`
    FastAttention's M-mask and B-masks: one small triangle that serves every tile.
`two_level`
    Blocks that units hand to each other, tiles inside that their buffers hold: an NPU's form and a GPU's.
`two_level_counts`
    What that moves between buffers, and how often units wait for each other, in closed form.
`decode`
    Few queries, many keys: split the keys, work on the pieces apart, merge by log-sum-exp.
`packed`
    Sequences of different lengths laid end to end (``cu_seqlens``).
`quantize`
    Keys and values as 8-bit integers with a scale a token, and how far that is off.
`paged`
    Keys and values in pages that a block table finds: the layout, and attention page by page.
`offload`
    Where a cache lies when it outgrows the GPU, and what that moves: arithmetic.
`offload_time`
    How long a token and a prompt then take: classical, cooperative, split, in two halves.
`tiling_allreduce`
    Heads on several ranks, their sum block by block beside the next block's compute: the answer and the time.
`worked_example`
    Four queries, four keys, the right numbers, and a common mistake taken apart.

`volta`, a package in this one to import by itself, has tensor cores lane by lane, shared memory bank by bank,
and attention made of them. `ascend`, another, models an NPU in time: what two-level tiling gains there.

`attention` here is the oracle, `standard.attention`. `tiling.attention` and `decode.attention` take the same
arguments and must give the same answer.

Symbols are the FlashAttention-2 paper's: Q, K, V, S = QK^T, P, O, the running maximum m, the running sum l.
Shapes: B batch, Hq and Hkv query and key/value heads, G = Hq / Hkv, Sq and Sk lengths, D and Dv head sizes.
"""

from __future__ import annotations

from . import (
    decode,
    offload,
    offload_time,
    online_softmax,
    packed,
    paged,
    quantize,
    scores,
    standard,
    tiling,
    tiling_allreduce,
    tiling_mask,
    two_level,
    two_level_counts,
    visibility,
    worked_example,
)
from .online_softmax import State
from .packed import attention_varlen
from .standard import attention
from .visibility import Tile, classify, intervals, positions, visible

__all__ = [
    "State",
    "Tile",
    "attention",
    "attention_varlen",
    "classify",
    "decode",
    "intervals",
    "offload",
    "offload_time",
    "online_softmax",
    "packed",
    "paged",
    "positions",
    "quantize",
    "scores",
    "standard",
    "tiling",
    "tiling_allreduce",
    "tiling_mask",
    "two_level",
    "two_level_counts",
    "visibility",
    "visible",
    "worked_example",
]
