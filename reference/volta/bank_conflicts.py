"""How many cycles an access to shared memory takes: wavefronts, from the addresses of the 32 lanes.

Shared memory is 32 banks of 4-byte words, word w in bank w mod 32, and gives one word a bank in a cycle.
Lanes that want different words of one bank wait for each other (a *bank conflict*); lanes that want the same
word get it together. A warp's access takes as many cycles (*wavefronts*) as the busiest bank has words to
give. Wide accesses are served in phases, since no more than 128 bytes go back in a cycle: 8 bytes a lane by
half-warps, 16 bytes by quarter-warps.

That is the conservative model. On compute capability 7.x phases are known to be served two at a time when
every lane n wants the address of lane n ^ 1, or every lane that of lane n ^ 2 (NVIDIA's developer forum,
thread 77228); `merging` counts so. The loads of m8n8k4 repeat addresses over lanes n ^ 4 and n ^ 8, where no
such rule is known: for them both models agree.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BANKS = 32
WORD = 4  # bytes
WIDTHS = (2, 4, 8, 16)


def phases(width: int) -> int:
    """Return in how many phases an access of `width` bytes a lane is served.

    Examples
    --------
    >>> [phases(width) for width in (2, 4, 8, 16)]
    [1, 1, 2, 4]
    """
    if width not in WIDTHS:
        raise ValueError(f"width must be one of {WIDTHS} bytes, got {width}")
    return max(1, width // WORD)


def wavefronts(
    addresses: NDArray[np.int64],
    width: int,
    *,
    active: NDArray[np.bool_] | None = None,
    merging: bool = False,
) -> int:
    """Return the cycles one access of a warp takes.

    Parameters
    ----------
    addresses : ndarray of int
        (32,): byte addresses, multiples of `width`.
    width : int
        Bytes a lane: 2, 4, 8 or 16.
    active : ndarray of bool, optional
        (32,): lanes that take part. All by default.
    merging : bool
        Serve two phases together where compute capability 7.x is known to.

    Raises
    ------
    ValueError
        For another width, number of lanes, or an address that is not aligned.

    Examples
    --------
    >>> lane = np.arange(32)
    >>> wavefronts(4 * lane, 4), wavefronts(8 * lane, 8), wavefronts(16 * lane, 16)  # neighbours: ideal
    (1, 2, 4)
    >>> wavefronts(128 * lane, 4), wavefronts(132 * lane, 4)  # a column of rows of 128 bytes; one word more
    (32, 1)
    >>> wavefronts(0 * lane, 4)  # the same word for all
    1
    """
    _check(addresses, width)
    lanes = np.arange(addresses.size) if active is None else np.flatnonzero(active)
    if lanes.size == 0:
        return 0
    base = (
        int(addresses[lanes].min()) // (BANKS * WORD) * (BANKS * WORD)
    )  # whole rows of banks change nothing
    relative = np.full(addresses.size, -1, dtype=np.int64)
    relative[lanes] = addresses[lanes] - base
    return _count(tuple(relative.tolist()), width, merging)


def ideal(width: int, *, active: NDArray[np.bool_] | None = None) -> int:
    """Return the cycles the same access takes without any conflict: one for each phase that has a lane.

    Examples
    --------
    >>> ideal(16), ideal(16, active=np.arange(32) < 8)
    (4, 1)
    """
    if active is None:
        return phases(width)
    return int(active.reshape(phases(width), -1).any(axis=1).sum())


def bank_counts(addresses: NDArray[np.int64], width: int, phase: int = 0) -> NDArray[np.int64]:
    """Return how many different words each bank has to give in one phase, (32,).

    Examples
    --------
    >>> bank_counts(256 * np.arange(32), 16)[:8].tolist()  # 8 rows of 256 bytes: all in the first four banks
    [8, 8, 8, 8, 0, 0, 0, 0]
    """
    _check(addresses, width)
    return _banks(addresses.reshape(phases(width), -1)[phase], width)


def _check(addresses: NDArray[np.int64], width: int) -> None:
    phases(width)
    if addresses.shape != (32,):
        raise ValueError(f"addresses must be those of 32 lanes, got shape {addresses.shape}")
    if (addresses % width).any():
        raise ValueError(f"addresses must be multiples of {width} bytes, got {addresses.tolist()}")


def _banks(addresses: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    words = addresses[:, None] // WORD + np.arange(max(1, width // WORD))  # (lanes, words of a lane)
    return np.bincount(np.unique(words) % BANKS, minlength=BANKS)


@lru_cache(maxsize=1 << 16)
def _count(relative: tuple[int, ...], width: int, merging: bool) -> int:
    """`wavefronts` of addresses near 0; -1 stands for a lane that takes no part. Patterns repeat: cached."""
    at = np.array(relative, dtype=np.int64)
    groups = phases(width)
    if merging and groups > 1:
        lane = np.arange(at.size)
        if np.array_equal(at, at[lane ^ 1]) or np.array_equal(at, at[lane ^ 2]):
            groups //= 2
    parts = [part[part >= 0] for part in at.reshape(groups, -1)]
    return sum(int(_banks(part, width).max()) for part in parts if part.size)
