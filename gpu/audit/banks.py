"""Bank conflicts: in how many wavefronts shared memory serves one access of a warp.

Volta's shared memory has 32 banks of 4 bytes: word w lies in bank w % 32. One wavefront serves one word a
bank; lanes that ask for the same word are served together. An access of 4 bytes a lane is one request of 32
lanes; of 8 bytes two requests of half a warp, of 16 bytes four of a quarter (128 bytes each).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BANKS = 32


def wavefronts(addresses: NDArray[np.int64], active: NDArray[np.bool_], size: int) -> tuple[int, int]:
    """Wavefronts of one access, and the fewest that lanes as many would need.

    Parameters
    ----------
    addresses : (32,) array of int
        First byte of each lane, a multiple of `size`.
    active : (32,) array of bool
        Lanes that take part.
    size : int
        Bytes a lane: 1, 2, 4, 8 or 16.

    Returns
    -------
    (taken, ideal) : int
        Summed over the requests in which any lane takes part; a request without a conflict takes 1.
    """
    words = max(size // 4, 1)
    taken = ideal = 0
    for lanes in np.split(np.arange(32), words):
        here = addresses[lanes][active[lanes]]
        if not len(here):
            continue
        distinct = np.unique((here[:, None] // 4 + np.arange(words)).ravel())
        taken += int(np.bincount(distinct % BANKS).max())
        ideal += 1
    return taken, ideal
