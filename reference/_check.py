"""What every `attention` here does first: look at the shapes, fill in the defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .visibility import Window, band


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of `standard.attention`, checked, with the defaults worked out."""

    q: np.ndarray  # (B, Hq, Sq, D), the caller's dtype: upcast where it is used, a tile at a time
    k: np.ndarray  # (B, Hkv, Sk, D)
    v: np.ndarray  # (B, Hkv, Sk, Dv)
    group: int  # G: query heads that share one key/value head
    scale: float
    softcap: float  # 0: none
    mask: np.ndarray | None  # (B, Hq, Sq, Sk), bool or float; a broadcast view
    slopes: np.ndarray | None  # (B, Hq) float64
    sinks: np.ndarray | None  # (Hq,) float64
    kv_lengths: list[int]  # (B,)
    q_offsets: list[int]  # (B,): position of the first query


def check(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    causal: bool,
    window: Window,
    mask: np.ndarray | None,
    alibi_slopes: np.ndarray | None,
    scale: float | None,
    softcap: float | None,
    sinks: np.ndarray | None,
    kv_lengths: np.ndarray | None,
    q_offset: int | np.ndarray | None,
) -> Inputs:
    """Raise ValueError for arguments that do not fit together; return them complete otherwise."""
    q, k, v = np.asarray(q), np.asarray(k), np.asarray(v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _require(x.ndim == 4, f"{name} must have four axes (B, H, S, D), got shape {x.shape}")
    B, Hq, Sq, D = q.shape
    Hkv, Sk = k.shape[1:3]
    _require(D >= 1 and k.shape[3] == D, f"q and k need one D of at least 1: q {q.shape}, k {k.shape}")
    _require(
        k.shape[0] == B and v.shape[0] == B, f"batch sizes differ: q {q.shape}, k {k.shape}, v {v.shape}"
    )
    _require(v.shape[:3] == k.shape[:3], f"k and v need the same heads and length: k {k.shape}, v {v.shape}")
    _require(Hq == 0 if Hkv == 0 else Hq % Hkv == 0, f"{Hq} query heads cannot share {Hkv} k and v heads")

    band(causal, window)  # raises for a window that is none
    softcap = float(softcap or 0.0)
    _require(softcap >= 0.0, f"softcap must be positive, or None for none, got {softcap}")
    if mask is not None:
        mask = np.asarray(mask)
        _require(mask.dtype.kind not in "iuc", f"mask must be bool or floating point, got {mask.dtype}")
        try:
            mask = np.broadcast_to(mask, (B, Hq, Sq, Sk))
        except ValueError:
            raise ValueError(f"mask {mask.shape} does not broadcast to {B, Hq, Sq, Sk}") from None
    if alibi_slopes is not None:
        alibi_slopes = np.asarray(alibi_slopes).astype(np.float64)
        shape = alibi_slopes.shape
        _require(shape in ((Hq,), (B, Hq)), f"alibi_slopes must be (Hq,) or (B, Hq) = {B, Hq}, got {shape}")
        alibi_slopes = np.broadcast_to(alibi_slopes, (B, Hq))
    if sinks is not None:
        sinks = np.asarray(sinks).astype(np.float64)
        _require(sinks.shape == (Hq,), f"sinks must be (Hq,) = ({Hq},), got {sinks.shape}")

    lengths = [Sk] * B if kv_lengths is None else _integers("kv_lengths", kv_lengths, ((B,),), B)
    _require(all(0 <= n <= Sk for n in lengths), f"kv_lengths must lie in 0..{Sk}, got {lengths}")
    if q_offset is None:
        offsets = [n - Sq for n in lengths]  # bottom-right aligned: the last query stands at the last key
    else:
        offsets = _integers("q_offset", q_offset, ((), (B,)), B)
    return Inputs(
        q, k, v,
        group=Hq // Hkv if Hkv else 1,
        scale=1.0 / math.sqrt(D) if scale is None else float(scale),
        softcap=softcap, mask=mask, slopes=alibi_slopes, sinks=sinks, kv_lengths=lengths, q_offsets=offsets,
    )  # fmt: skip


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _integers(
    name: str, value: int | np.ndarray, shapes: tuple[tuple[int, ...], ...], batch: int
) -> list[int]:
    given = np.asarray(value)
    _require(given.shape in shapes, f"{name} must have a shape of {shapes}, got {given.shape}")
    _require(given.dtype.kind in "iu" or given.size == 0, f"{name} must be integers, got {given.dtype}")
    return [int(x) for x in np.broadcast_to(given, (batch,))]
