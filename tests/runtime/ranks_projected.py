"""On every rank: this rank's heads against the specification of all heads. Arguments: dtype, blocks."""

from __future__ import annotations

import json
import sys

import ml_dtypes  # noqa: F401 - names bfloat16
import numpy as np
from fastattention.reference.tiling_allreduce import Costs, heads_of, projected

from fastattention.runtime.communicator import connect
from fastattention.runtime.tensor_parallel import projected_attention

B, Hq, Hkv, Sq, Sk, D, Dv, HIDDEN = 2, 12, 12, 37, 45, 16, 24, 20
TOLERANCE = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}

dtype = np.dtype(sys.argv[1])
blocks = json.loads(sys.argv[2])
rng = np.random.default_rng(3)
q = rng.standard_normal((B, Hq, Sq, D)).astype(dtype)
k = rng.standard_normal((B, Hkv, Sk, D)).astype(dtype)
v = rng.standard_normal((B, Hkv, Sk, Dv)).astype(dtype)
w_out = (rng.standard_normal((Hq * Dv, HIDDEN)) / 8).astype(dtype)
mask = rng.random((B, 1, Sq, Sk)) < 0.8
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window and lengths": {"causal": True, "window": (9, 0), "kv_lengths": np.array([30, 45])},
    "mask and offset": {"mask": mask, "q_offset": 3, "causal": True},
}


def put(group, options):
    """Return options whose mask lies where the ranks compute."""
    return {name: group.xp.asarray(x) if name == "mask" else x for name, x in options.items()}


with connect() as group:
    heads, kv_heads = heads_of(group.rank, group.size, Hq, Hkv)
    mine = (q[:, heads], k[:, kv_heads], v[:, kv_heads], w_out[heads.start * Dv : heads.stop * Dv])
    if isinstance(blocks, dict):
        blocks = Costs(**blocks)
    for name, options in OPTIONS.items():
        got = projected_attention(
            *map(group.xp.asarray, mine), group, blocks=blocks, num_threads=1, **put(group, options)
        )
        got = got.get() if hasattr(got, "get") else got
        want = projected(q, k, v, w_out, **options)
        error = float(np.abs(got.astype(np.float64) - want).max())
        assert got.dtype == dtype, name
        assert error <= TOLERANCE[dtype.name], f"{name}: {error}"
    sys.stdout.write(f"rank {group.rank} of {group.size} agrees\n")
