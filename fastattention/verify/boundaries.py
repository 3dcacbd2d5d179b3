"""Where a kernel's key tiles end, found from its roundings.

Three keys take part: the first, the second with a higher score, and key j with the highest; all others are
far below. A kernel that has all three in one tile computes the first's weight as exp(s_0 - s_j), rounded
once. One that meets key j in a later tile has it as exp(s_0 - s_1) exp(s_1 - s_j): mathematically the same,
but rounded otherwise. So the outputs for j = 2, 3, ... are the same to the last bit until j is in another
tile. Key j is so far above the others that their sum is its weight, 1, in whatever order they are added.

A kernel that never rescales, or takes all keys at once, shows nothing.
"""

from __future__ import annotations

import numpy as np

from .adapters import Adapter
from .tolerances import Problem

__all__ = ["tile_length"]

_HEADS = 16  # so many triples of scores are tried for each j; one alone may round alike
_PLACES = 16  # values of j in one call


def tile_length(adapter: Adapter, q_len: int = 64, most: int = 1100) -> int | None:
    """Return the number of keys in a kernel's first tile; None where none can be told.

    Parameters
    ----------
    adapter : Adapter
        Of a kernel that takes float32.
    q_len : int
        Queries; kernels often have others for one than for many.
    most : int
        Keys to look at.
    """
    if "float32" not in adapter.dtypes or "cross" not in adapter.features:
        return None
    if adapter.top_left and adapter.always:  # no query would see all keys
        return None
    try:
        first, low, high = _outputs(adapter, np.array([2]), q_len, most)[0], 2, most
        # Outputs for j < low are the first's, and for j >= high another, if most is not all in one tile.
        while high - low > 1:
            places = np.unique(np.linspace(low + 1, high - 1, _PLACES).astype(int))
            other = (_outputs(adapter, places, q_len, most) != first).any(-1)
            if other.any():
                high = int(places[np.argmax(other)])
                places = places[: np.argmax(other)]
            elif high == most:
                return None
            low = int(places[-1]) if len(places) else low
    except Exception:  # a kernel that cannot do this shows no tile; the cases will say what it cannot do
        return None
    return high if high > 3 else None


def _outputs(adapter: Adapter, places: np.ndarray, q_len: int, k_len: int) -> np.ndarray:
    """Return the first key's weight for each place of the last, (places, heads)."""
    rng = np.random.default_rng(0)
    dim, batch = 16, len(places)
    scores = (rng.random((_HEADS, 3)) + np.array([0.0, 1.0, 22.0])).astype(np.float32)
    q = np.zeros((batch, _HEADS, q_len, dim), np.float32)
    q[..., 0] = dim**0.5
    k = np.zeros((batch, _HEADS, k_len, dim), np.float32)
    k[..., 0] = -100.0
    k[:, :, 0, 0] = scores[:, 0]
    k[:, :, 1, 0] = scores[:, 1]
    k[np.arange(batch), :, places, 0] = scores[:, 2]
    v = np.zeros_like(k)
    v[:, :, 0] = 1.0
    result = adapter.call(Problem(q, k, v, dict(adapter.always)))
    out = np.asarray(result[0] if isinstance(result, tuple) else result)
    if out.shape != q.shape:
        raise ValueError(f"output of shape {out.shape}")
    return out[:, :, -1, 0]
