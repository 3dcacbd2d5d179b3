"""Small problems that the tests of the public functions start from."""

from __future__ import annotations

import numpy as np

B, HQ, HKV, SQ, SK, D, DV = 2, 4, 2, 3, 7, 8, 5
NAN, INF = float("nan"), float("inf")
INT64_MAX = 2**63 - 1


def tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((B, HQ, SQ, D)).astype(dtype)
    k = rng.standard_normal((B, HKV, SK, D)).astype(dtype)
    v = rng.standard_normal((B, HKV, SK, DV)).astype(dtype)
    return {"q": q, "k": k, "v": v}


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def wide(*shape, dtype=np.float32):
    """An array of any size in no memory: all strides 0."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, [0] * len(shape))


def fused():
    """q, k, v and a place for out in one buffer: (B, H, S, 4 D)."""
    buffer = np.random.default_rng(1).standard_normal((B, HQ, SK, 4 * D)).astype(np.float32)
    return [buffer[..., n * D : (n + 1) * D] for n in range(4)]


def packed():
    rng = np.random.default_rng(2)
    shapes = {"q": (6, HQ, D), "k": (9, HKV, D), "v": (9, HKV, DV)}
    return {
        **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        "cu_seqlens_q": np.array([0, 2, 6]),
        "cu_seqlens_k": np.array([0, 2, 9]),
    }
