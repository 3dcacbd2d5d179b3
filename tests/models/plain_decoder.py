"""The same decoder, written as plainly as it can be said, in float64: no stacking, no cache, one head at a
time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def rms_norm(x: FloatArray, gain: FloatArray, epsilon: float) -> FloatArray:
    """Return x (S, hidden) over its root mean square in each row, times the gain."""
    root: FloatArray = np.sqrt((x**2).mean(axis=1, keepdims=True) + epsilon)
    return x / root * gain


def rotate(x: FloatArray, base: float) -> FloatArray:
    """Return x (S, D) with each neighbouring pair of dimensions turned by its position's angle."""
    turned = np.empty_like(x)
    dim = x.shape[1]
    for position in range(x.shape[0]):
        for pair in range(dim // 2):
            angle = position * base ** (-2 * pair / dim)
            a, b = x[position, 2 * pair], x[position, 2 * pair + 1]
            turned[position, 2 * pair] = a * np.cos(angle) - b * np.sin(angle)
            turned[position, 2 * pair + 1] = a * np.sin(angle) + b * np.cos(angle)
    return turned


def attend(q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
    """Return causal attention of one head, (S, D) each."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    scores[np.triu_indices(len(scores), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    out: FloatArray = weights / weights.sum(axis=1, keepdims=True) @ v
    return out


def logits(
    weights: dict[str, NDArray[np.float32]],
    tokens: Sequence[int],
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    base: float,
    epsilon: float,
) -> FloatArray:
    """Return the logits (S, vocab) at every position."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["token_embd.weight"][list(tokens)]
    for layer in range(layers):
        b = f"blk.{layer}."
        h = rms_norm(x, w[b + "attn_norm.weight"], epsilon)
        q = np.split(h @ w[b + "attn_q.weight"].T, heads, axis=1)
        k = np.split(h @ w[b + "attn_k.weight"].T, kv_heads, axis=1)
        v = np.split(h @ w[b + "attn_v.weight"].T, kv_heads, axis=1)
        mixed = []
        for head in range(heads):
            kv = head // (heads // kv_heads)
            mixed.append(attend(rotate(q[head], base), rotate(k[kv], base), v[kv]))
        x = x + np.concatenate(mixed, axis=1) @ w[b + "attn_output.weight"].T
        h = rms_norm(x, w[b + "ffn_norm.weight"], epsilon)
        gate = h @ w[b + "ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
    head_matrix = w.get("output.weight", w["token_embd.weight"])
    return rms_norm(x, w["output_norm.weight"], epsilon) @ head_matrix.T
