"""A kernel in NumPy with one fault at a time, each of a kind that kernels really have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from fastattention.verify import FEATURES, Adapter, Problem

TILE = 48

#: Each fault, and the group of cases that meets it first.
FAULTS = {
    "scale of 1 / D": "plain",
    "log2(e) rounded to 1.44": "plain",
    "the output is not rescaled": "length",
    "the sum is not rescaled": "length",
    "a last key alone in its tile is lost": "length",
    "half a tile too much": "length",
    "value columns past 128 are lost": "head dimension",
    "heads of the second batch are the first's": "heads",
    "grouped heads interleave": "grouped heads",
    "no maximum is subtracted": "numbers",
    "the maximum starts at 0": "numbers",
    "exponentials in float16": "plain",
    "negative scales are lost": "scale",
    "causal hides the diagonal": "causal",
    "causal begins at the first key": "causal alignment",
    "a row without a key gives NaN": "rows without a key",
    "the window is one too wide": "window",
    "the mask of the first head for all": "bool mask",
    "a tile of -inf gives NaN": "bool mask",
    "keys behind kv_lengths are read": "kv_lengths",
    "soft capping forgets to multiply": "softcap",
    "slopes count from the first key": "alibi_slopes",
    "a sink has a value of 1": "sinks",
    "q_offset is ignored": "q_offset",
    "denormal numbers are 0": "denormals",
    "strides are ignored": "memory",
    "a row too many is written": "memory",
    "it scales its queries in place": "plain",
    "log-sum-exps in base 2": "plain",
    "float64 comes back": "plain",
    "a wrong shape comes back": "value dimension",
    "it raises for odd lengths": "plain",
}


class Kernel:
    """Online softmax in float32, by tiles of keys; `fault` is one of FAULTS or None."""

    def __init__(self, fault: str | None = None) -> None:
        self.fault = fault
        self.threads = 1
        self.calls = 0

    def adapter(self, **changes: Any) -> Adapter:
        """Return an adapter that declares everything."""
        given: dict[str, Any] = {"features": frozenset(FEATURES), "threads": self.set_threads} | changes
        return Adapter(str(self.fault), self, **given)

    @contextmanager
    def set_threads(self, count: int) -> Iterator[None]:
        """Pretend to use so many threads."""
        before, self.threads = self.threads, count
        yield
        self.threads = before

    def __call__(self, problem: Problem) -> Any:
        self.calls += 1
        fault, options = self.fault, problem.options
        if fault == "it raises for odd lengths" and problem.q.shape[2] % 2:
            raise RuntimeError("unsupported length")
        q, k, v = problem.q, problem.k, problem.v
        if fault == "strides are ignored" and not k.flags.c_contiguous:
            base = k.base if k.base is not None else k
            k = np.resize(np.ascontiguousarray(base).reshape(-1), k.shape)
        if fault == "it scales its queries in place":
            q *= 0.5
        with np.errstate(all="ignore"):
            out, lse = self.compute(q, k, v, options)
        if fault == "log-sum-exps in base 2":
            lse = lse * np.log2(np.e)
        into = options.get("out")
        if into is not None:
            into[...] = out
            if fault == "a row too many is written" and into.base is not None:
                into.base[:, :, -1] = 0
            return into, lse.astype(np.float32)
        if fault == "a wrong shape comes back":
            out = out[..., : problem.q.shape[3]]
        if fault != "float64 comes back":
            out = out.astype(problem.q.dtype)
        return out, lse.astype(np.float32)

    def compute(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, options: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return output and log-sum-exps in float32."""
        fault = self.fault
        q, k, v = (x.astype(np.float32) for x in (q, k, v))
        if fault == "denormal numbers are 0":
            v = np.where(np.abs(v) < 2.0**-126, 0, v)
        batch, heads, q_len, dim = q.shape
        group = heads // k.shape[1]
        if fault == "grouped heads interleave":
            k, v = (np.tile(x, (1, group, 1, 1)) for x in (k, v))
        else:
            k, v = (np.repeat(x, group, 1) for x in (k, v))
        if fault == "heads of the second batch are the first's" and batch > 1:
            v = np.concatenate((v[:1], v[:1], v[2:]))
        k_len = k.shape[2]
        scale = np.float32(options.get("scale", dim**-0.5))
        if fault == "scale of 1 / D" and "scale" not in options:
            scale = np.float32(1 / dim)
        if fault == "negative scales are lost":
            scale = abs(scale)
        bias = self.bias(q.shape, k_len, options)
        lengths = self.lengths(options, batch, k_len)
        m = np.full((batch, heads, q_len), -np.inf, np.float32)
        if fault == "the maximum starts at 0":
            m[...] = 0
        sinks = options.get("sinks")
        total = np.zeros_like(m)
        out = np.zeros((batch, heads, q_len, v.shape[3]), np.float32)
        if sinks is not None:
            m = np.broadcast_to(sinks[None, :, None], m.shape).astype(np.float32)
            total = np.ones_like(m)
            if fault == "a sink has a value of 1":
                out += 1
        order: Any = range(0, k_len, TILE)
        for start in order:
            tile = slice(start, min(start + TILE, k_len))
            if fault == "a last key alone in its tile is lost" and start and tile.stop - start == 1:
                continue
            if fault == "half a tile too much" and start and tile.stop == k_len and k_len % TILE:
                tile = slice(max(0, start - TILE // 2), k_len)
            s = scale * (q @ k[:, :, tile].swapaxes(-1, -2))
            if (softcap := options.get("softcap")) is not None:
                s = np.tanh(s / softcap)
                s = s if fault == "soft capping forgets to multiply" else softcap * s
            s = (s + bias[..., tile]).astype(np.float32)
            if fault != "keys behind kv_lengths are read":
                behind = np.arange(tile.start, tile.stop) >= lengths[:, None]
                s = np.where(behind[:, None, None], -np.inf, s)
            m_new = np.maximum(m, s.max(-1))
            if fault == "no maximum is subtracted":
                m_new = np.zeros_like(m)
            safe = np.where(m_new == -np.inf, 0, m_new)
            if fault == "a tile of -inf gives NaN" and "mask" in options and start:
                safe = s.max(-1)
            p = self.exp(s - safe[..., None])
            rescale = self.exp(m - safe) if fault != "no maximum is subtracted" else np.ones_like(m)
            total = (total if fault == "the sum is not rescaled" else rescale * total) + p.sum(-1)
            kept = out if fault == "the output is not rescaled" else rescale[..., None] * out
            values = np.where(np.isfinite(v[:, :, tile]), v[:, :, tile], 0)
            if fault == "keys behind kv_lengths are read":
                values = v[:, :, tile]
            if fault == "value columns past 128 are lost":
                values = np.where(np.arange(values.shape[3]) < 128, values, 0)
            out = kept + p @ values
            m = m_new
        if fault == "a row without a key gives NaN":
            return out / total[..., None], m + np.log(total)
        some = total > 0
        divided = out / np.where(some, total, 1)[..., None]
        lse = np.where(some, m + np.log(np.where(some, total, 1)), -np.inf)
        return (divided.astype(np.float64) if fault == "float64 comes back" else divided), lse

    def exp(self, x: np.ndarray) -> np.ndarray:
        """Return exp(x) as this kernel has it."""
        if self.fault == "log2(e) rounded to 1.44":
            return np.exp2(np.float32(1.44) * x)
        if self.fault == "exponentials in float16":
            return np.exp(x).astype(np.float16).astype(np.float32)
        return np.exp(x)

    def lengths(self, options: dict[str, Any], batch: int, k_len: int) -> np.ndarray:
        """Return how many keys count, (B,)."""
        return np.broadcast_to(np.asarray(options.get("kv_lengths", k_len)), (batch,))

    def bias(self, shape: tuple[int, ...], k_len: int, options: dict[str, Any]) -> np.ndarray:
        """Return what is added to the scores, (B, Hq, Sq, Sk): -inf where a key is hidden."""
        fault = self.fault
        batch, heads, q_len, _ = shape
        lengths = self.lengths(options, batch, k_len)
        first = options.get("q_offset")
        if first is None or fault == "q_offset is ignored":
            first = lengths - q_len
        if fault == "causal begins at the first key" and "q_offset" not in options:
            first = np.zeros(batch, np.int64)
        at = np.broadcast_to(np.asarray(first), (batch,))[:, None] + np.arange(q_len)
        away = (np.arange(k_len) - at[..., None])[:, None]
        bias = np.zeros((batch, heads, q_len, k_len))
        if options.get("causal"):
            limit = -1 if fault == "causal hides the diagonal" else 0
            bias = np.where(away > limit, -np.inf, bias)
        left, right = options.get("window") or (-1, -1)
        more = 1 if fault == "the window is one too wide" else 0
        if left >= 0:
            bias = np.where(away < -left - more, -np.inf, bias)
        if right >= 0:
            bias = np.where(away > right, -np.inf, bias)
        if (slopes := options.get("alibi_slopes")) is not None:
            seen = np.arange(k_len) if fault == "slopes count from the first key" else away
            seen = seen - (k_len if fault == "slopes count from the first key" else 0)
            bias = bias + slopes[None, :, None, None] * seen
        if (mask := options.get("mask")) is not None:
            if fault == "the mask of the first head for all" and mask.ndim == 4:
                mask = mask[:, :1]
            added = np.where(mask, 0, -np.inf) if mask.dtype == np.bool_ else mask.astype(np.float64)
            bias = bias + added
        return bias


def truncating(problem: Problem) -> np.ndarray:
    """Attention in bfloat16 that cuts the last bits off instead of rounding."""
    out = Kernel().compute(problem.q, problem.k, problem.v, {})[0]
    return (out.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(ml_dtypes.bfloat16)


def own_names(q: np.ndarray, k: np.ndarray, v: np.ndarray, softmax_scale: float | None = None) -> np.ndarray:
    """Attention as somebody has it who knows nothing of adapters."""
    options = {} if softmax_scale is None else {"scale": softmax_scale}
    return Kernel().compute(q, k, v, options)[0]


def forgets_scale(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, softmax_scale: float | None = None
) -> np.ndarray:
    """The same, which takes a scale and forgets it."""
    return own_names(q, k, v)
