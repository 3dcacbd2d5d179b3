"""Attention as people call it: validate, choose, compute, and give back arrays of the caller's kind."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import cuda_kind
from .backends import run
from .device import scope
from .validate import Problem, validate, validate_varlen

__all__ = ["attention", "attention_varlen"]


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Any = None,
    alibi_slopes: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    kv_lengths: Any = None,
    q_offset: Any = None,
    return_lse: bool = False,
    out: Any = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Any:
    r"""Compute exact scaled dot-product attention.

    For query i and key j the score is ``scale * <q_i, k_j>``; then, where given, ``softcap * tanh(score /
    softcap)``, plus the mask, plus ``slope * (j - p_i)``. The output is the average of the visible values,
    weighted by the softmax of their scores.

    Parameters
    ----------
    q : array, shape (B, Hq, Sq, D)
        Queries: float32, float16 or bfloat16; float64 with ``backend="reference"``. D from 1 to 256. NumPy,
        PyTorch or JAX arrays in CPU memory, CuPy, PyTorch or JAX arrays on a CUDA device, or others with
        ``__dlpack__``; all arrays of a call are of one kind and lie on one device.
    k : array, shape (B, Hkv, Sk, D)
        Keys, of q's dtype. Hq is a multiple of Hkv: query head h reads head ``h // (Hq // Hkv)``.
    v : array, shape (B, Hkv, Sk, Dv)
        Values, of q's dtype. Dv from 1 to 256.
    causal : bool, default False
        A query sees no key after its own position.
    window : (int, int), optional
        How many keys before and after its position a query sees; None or -1 is unbounded. Combines with
        `causal`: both must allow a key.
    mask : array, broadcastable to (B, Hq, Sq, Sk), optional
        bool: True where a query may see a key. Floating: added to the scores; -inf hides a key. bool and
        float32 masks are read where they lie, broadcast axes without expansion; float16, bfloat16 and float64
        masks are first copied to float32.
    alibi_slopes : array, shape (Hq,) or (B, Hq), optional
        ALiBi slope of each head, finite: adds ``slope * (j - p_i)``.
    scale : float, optional
        Default ``1 / sqrt(D)``.
    softcap : float, optional
        Positive bound of the scores, before mask and ALiBi.
    sinks : array, shape (Hq,), optional
        A logit for each head that joins the softmax's denominator and has no value. -inf: no sink.
    kv_lengths : integer array, shape (B,), optional
        How many keys of each sequence count, 0 to Sk. What lies behind them is never read.
    q_offset : int or integer array (B,), optional
        Position of the first query among the keys: query i stands at ``p_i = q_offset + i``. The default,
        ``kv_length - Sq``, puts the last query at the last key, as a KV cache needs it; 0 puts the first at
        the first.
    return_lse : bool, default False
        Return also the log-sum-exp of each query's scores, which `merge` takes.
    out : array, shape (B, Hq, Sq, Dv), optional
        Where to write the result: q's dtype and kind, last axis contiguous, no memory shared with an input.
    backend : {"auto", "cpu", "gpu", "reference"}, default "auto"
        "auto" computes where the arrays are: "cpu", or "gpu" for arrays on a CUDA device. Nothing is ever
        moved from one to the other: "gpu" refuses arrays in CPU memory, the others those on a device.
        "reference" is the specification in float64, slow and exact.
    num_threads : int, optional
        Threads for this call; default `fastattention.num_threads`. Of no effect on a GPU.

    Returns
    -------
    out : array, shape (B, Hq, Sq, Dv)
        Of q's dtype and kind. Zero for a query that sees no key.
    lse : array, shape (B, Hq, Sq)
        Only with `return_lse`. float32 (float64 for float64 inputs), natural logarithm, sinks included; -inf
        for a query that sees no key.

    Raises
    ------
    TypeError
        An argument is no array, of another kind than q or on another device, requires grad, or is of a dtype
        that does not fit (bfloat16 needs a GPU of compute capability 8.0).
    ValueError
        An argument's shape or value does not fit, `out` cannot be written, `backend` is unknown, or the
        instruction set that is forced is not available. No error leaves anything half done.
    MemoryError
        There is no room for the result or the kernels' workspace.
    KeyboardInterrupt
        Ctrl-C during a long call on the CPU, which then ends within a fraction of a second; what lies in
        `out` means nothing. Whatever else a signal's handler raises stops a call in the same way, one from
        the main thread.
    ImportError
        The arrays lie on a GPU and CuPy is not installed.
    RuntimeError
        The arrays lie on a GPU that the installed CuPy cannot serve; or the call is being captured into a
        CUDA graph, with small arguments from CPU memory (below).

    See Also
    --------
    attention_varlen : Sequences of different lengths, packed.
    KVCache : Keys and values of a decoder.

    Notes
    -----
    Accumulation is in float32; denormal float32 numbers, below 2^-126, count as 0. Arrays of any strides are
    read without a copy while the last axis is contiguous and addresses are multiples of the item size; q, k
    or v that is not so is copied first. The values of a floating mask are not examined: NaN in it gives NaN.
    The softmax is computed online, tile by tile [1]_ [2]_, so that memory does not grow with Sq * Sk;
    grouped-query attention follows [3]_, ALiBi [4]_, and sinks [5]_.

    On a GPU the call is queued on the caller's current stream (CuPy's or PyTorch's) and does not wait; for
    JAX alone, which knows nothing of CuPy's stream, it does. Small arguments whose values are checked
    (`alibi_slopes`, `sinks`, `kv_lengths`, `q_offset`) may lie in CPU memory, and better do: from the device
    they are copied back first, and the call waits for that. The result lies on q's device; PyTorch's in
    PyTorch's own memory. On tensor cores, weights are rounded to the type of the values before they multiply
    them. Denormal float32 numbers count as 0.

    Calls can be captured into CUDA graphs, after a first one outside that compiles the kernel, and without
    those small arguments, which are copied from CPU memory. What a captured call of decode needs beside its
    arrays stays allocated: by PyTorch, for as long as its graph; by CuPy, which is not told, for good.

    References
    ----------
    .. [1] Maxim Milakov, Natalia Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
    .. [2] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
       arXiv:2307.08691.
    .. [3] J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
       Checkpoints", arXiv:2305.13245.
    .. [4] O. Press et al., "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", arXiv:2108.12409.
    .. [5] G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453.

    Examples
    --------
    >>> import numpy as np
    >>> import fastattention
    >>> q = np.zeros((1, 1, 2, 8), np.float32)
    >>> k = np.ones((1, 1, 4, 8), np.float32)
    >>> v = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    >>> fastattention.attention(q, k, v)[0, 0, :, 0]  # equal scores: the mean of 0, 1, 2, 3
    array([1.5, 1.5], dtype=float32)
    >>> fastattention.attention(q, k, v, causal=True)[0, 0, :, 0]  # the first query stands at the third key
    array([1. , 1.5], dtype=float32)
    """
    arguments = (
        q, k, v, causal, window, mask, alibi_slopes, scale, softcap, sinks, kv_lengths, q_offset, return_lse,
        out, backend, num_threads,
    )  # fmt: skip
    if type(q) is not np.ndarray and (kind := cuda_kind(q)):
        with scope(kind):
            return _solve(validate(*arguments), backend, return_lse)
    return _solve(validate(*arguments), backend, return_lse)


def _solve(problem: Problem, backend: str, return_lse: bool) -> Any:
    run(problem, backend)
    return problem.result(return_lse)


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    alibi_slopes: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    q_offset: Any = None,
    return_lse: bool = False,
    out: Any = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Any:
    """Compute attention over sequences of different lengths, packed one after another without padding.

    Parameters
    ----------
    q : array, shape (Tq, Hq, D)
        Queries of all sequences. Dtypes and kinds as in `attention`.
    k : array, shape (Tk, Hkv, D)
        Keys of all sequences.
    v : array, shape (Tk, Hkv, Dv)
        Values of all sequences.
    cu_seqlens_q, cu_seqlens_k : integer array, shape (B + 1,)
        Where each sequence starts: sequence b is rows ``cu[b]`` to ``cu[b + 1]``. They start at 0, never
        decrease, and end at Tq and Tk. A sequence may be empty.
    causal, window, scale, softcap, sinks, backend, num_threads
        As in `attention`.
    alibi_slopes : array, shape (Hq,) or (B, Hq), optional
        As in `attention`.
    q_offset : int or integer array (B,), optional
        Position of each sequence's first query among its keys; by default its last query stands at its last
        key.
    return_lse : bool, default False
        Return also the log-sum-exp.
    out : array, shape (Tq, Hq, Dv), optional
        Where to write the result; rules as in `attention`.

    Returns
    -------
    out : array, shape (Tq, Hq, Dv)
        Of q's dtype and kind.
    lse : array, shape (Tq, Hq)
        Only with `return_lse`; as in `attention`. `merge` takes the pair.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As in `attention`.

    Notes
    -----
    The packed layout and the name of its index arrays are those of FlashAttention's
    ``flash_attn_varlen_func``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastattention
    >>> q = np.zeros((3, 1, 8), np.float32)
    >>> v = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    >>> starts = np.array([0, 1, 3])  # one sequence of 1, one of 2
    >>> fastattention.attention_varlen(q, q, v, starts, starts)[:, 0, 0]
    array([0. , 1.5, 1.5], dtype=float32)
    """
    arguments = (
        q, k, v, cu_seqlens_q, cu_seqlens_k, causal, window, alibi_slopes, scale, softcap, sinks, q_offset,
        return_lse, out, backend, num_threads,
    )  # fmt: skip
    if kind := cuda_kind(q):
        with scope(kind):
            return _solve(validate_varlen(*arguments), backend, return_lse)
    return _solve(validate_varlen(*arguments), backend, return_lse)
