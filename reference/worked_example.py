"""Four queries and four keys, small enough for paper and pencil.

The example is a published review's; the numbers here are right. The review cut Q, K and V into two halves,
ran softmax within (Q1, K1) and within (Q2, K2) and put the results one below the other. That leaves out
(Q1, K2) and (Q2, K1): it is another function, `block_diagonal_mistake`, and no rescaling repairs it
afterwards. `online_steps` shows what tiling really does: every query block meets every key block, and the
running state (m, l, O) ties the pieces together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .online_softmax import State, finish, update
from .standard import attention

Q = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])  # (Sq, D) = (4, 2)
K = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # (Sk, D) = (4, 2)
V = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])  # (Sk, Dv) = (4, 2)
for _x in (Q, K, V):
    _x.setflags(write=False)


def right_answer(scale: float | None = 1.0, *, causal: bool = False) -> NDArray[np.float64]:
    """Return attention of the example, (4, 2). ``scale=None`` is the usual 1/sqrt(2).

    Examples
    --------
    >>> right_answer().round(4).tolist()
    [[3.5379, 4.5379], [3.0758, 4.0758], [2.6136, 3.6136], [4.0, 5.0]]
    >>> right_answer(scale=None).round(4).tolist()
    [[3.6605, 4.6605], [3.321, 4.321], [2.9814, 3.9814], [4.0, 5.0]]
    >>> right_answer(scale=None, causal=True).round(4).tolist()
    [[1.0, 2.0], [2.0, 3.0], [2.4895, 3.4895], [4.0, 5.0]]
    """
    out, _ = attention(Q[None, None], K[None, None], V[None, None], scale=scale, causal=causal)
    answer: NDArray[np.float64] = out[0, 0]  # (1, 1, 4, 2): (4, 2)
    return answer


def score_matrix(scale: float = 1.0) -> NDArray[np.float64]:
    """Return S = scale * Q K^T, (4, 4).

    Examples
    --------
    >>> score_matrix().tolist()
    [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    S: NDArray[np.float64] = scale * (Q @ K.T)  # (4, 2) @ (2, 4): (4, 4)
    return S


def online_steps(block_k: int = 2, scale: float = 1.0) -> list[State]:
    """Return the state of all four queries after each block of keys; the last one holds the answer.

    Examples
    --------
    >>> first, last = online_steps()
    >>> first.m.tolist(), first.l.round(4).tolist()
    ([1.0, 1.0, 2.0, 0.0], [1.3679, 2.0, 1.3679, 2.0])
    >>> last.m.tolist(), last.l.round(4).tolist()
    ([1.0, 1.0, 2.0, 0.0], [2.7358, 2.7358, 1.8711, 4.0])
    >>> out, lse = finish(last)
    >>> bool(np.allclose(out, right_answer()))
    True
    """
    S = score_matrix(scale)
    states, state = [], State.empty(len(Q), V.shape[1])
    for j in range(0, len(K), block_k):
        state = update(state, S[:, j : j + block_k], V[j : j + block_k])  # (4, block_k), (block_k, 2)
        states.append(state)
    return states


def block_diagonal_mistake(block: int = 2, scale: float = 1.0) -> NDArray[np.float64]:
    """Return what comes of attending within each pair (Qi, Ki) of blocks only, (4, 2): NOT attention.

    Off by up to 3 from `right_answer`, and beyond repair: the scores it skips are never computed.

    Examples
    --------

    >>> block_diagonal_mistake().round(4).tolist()
    [[1.5379, 2.5379], [2.0, 3.0], [5.5379, 6.5379], [6.0, 7.0]]
    >>> float(np.abs(block_diagonal_mistake() - right_answer()).max().round(4))
    2.9242
    """
    S = score_matrix(scale)
    pieces = []
    for i in range(0, len(Q), block):
        own = slice(i, i + block)
        out, _ = finish(update(State.empty(len(Q[own]), V.shape[1]), S[own, own], V[own]))
        pieces.append(out)  # (block, 2)
    return np.concatenate(pieces)  # (4, 2)


def kv_bytes(
    tokens: int, *, layers: int = 32, kv_heads: int = 32, head_dim: int = 128, itemsize: int = 2
) -> int:
    """Return the bytes of K and V of `tokens` tokens; the defaults are LLaMA-7B in fp16.

    Examples
    --------
    >>> kv_bytes(1) / 2**10  # KiB a token
    512.0
    >>> kv_bytes(256 * 1024, layers=1) / 2**30, kv_bytes(256 * 1024) / 2**30  # GiB at 256K
    (4.0, 128.0)
    """
    return 2 * tokens * layers * kv_heads * head_dim * itemsize
