"""Attention as people call it: validate, choose, compute, and give back arrays of the caller's kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .arguments import operand
from .arrays import BFLOAT16, from_numpy, to_numpy
from .backends import run
from .validate import validate, validate_varlen

__all__ = ["attention", "attention_varlen", "merge"]


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
        PyTorch or JAX arrays in CPU memory, or others with ``__dlpack__``; all arrays of a call are of one
        kind.
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
    backend : {"auto", "cpu", "reference"}, default "auto"
        "auto" is the CPU kernels. "reference" is the specification in float64, slow and exact.
    num_threads : int, optional
        Threads for this call; default `fastattention.num_threads`.

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
        An argument is no array, of another kind than q, in a device's memory, requires grad, or is of a dtype
        that does not fit.
    ValueError
        An argument's shape or value does not fit, `out` cannot be written, `backend` is unknown, or the
        instruction set that is forced is not available. No error leaves anything half done.
    MemoryError
        There is no room for the result or the kernels' workspace.

    See Also
    --------
    attention_varlen : Sequences of different lengths, packed.
    KVCache : Keys and values of a decoder.

    Notes
    -----
    Accumulation is in float32. Arrays of any strides are read without a copy while the last axis
    is contiguous and addresses are multiples of the item size; q, k or v that is not so is copied first. The
    values of a floating mask are not examined: NaN in it gives NaN. The softmax is computed online, tile by
    tile [1]_ [2]_, so that memory does not grow with Sq * Sk; grouped-query attention follows [3]_, ALiBi
    [4]_, and sinks [5]_.

    References
    ----------
    .. [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
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
    problem = validate(
        q, k, v, causal, window, mask, alibi_slopes, scale, softcap, sinks, kv_lengths, q_offset, return_lse,
        out, backend, num_threads,
    )  # fmt: skip
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
    problem = validate_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, causal, window, alibi_slopes, scale, softcap, sinks, q_offset,
        return_lse, out, backend, num_threads,
    )  # fmt: skip
    run(problem, backend)
    return problem.result(return_lse)


def merge(parts: Iterable[tuple[Any, Any]]) -> tuple[Any, Any]:
    r"""Merge attention over disjoint sets of keys into attention over all of them.

    Parameters
    ----------
    parts : iterable of (out, lse)
        What ``attention(..., return_lse=True)`` or ``attention_varlen(..., return_lse=True)`` returned for
        the same queries and different keys. All `out` have one shape and dtype (float32, float16, bfloat16 or
        float64); all `lse` have that shape without the last axis, and one dtype, float32 or float64. At least
        one part.

    Returns
    -------
    out : array
        Shape, dtype and kind of the parts'.
    lse : array
        Likewise: ``log(sum(exp(lse)))`` over the parts.

    Raises
    ------
    TypeError
        A part is no pair of arrays, or kinds or dtypes differ.
    ValueError
        There is no part, or shapes differ.

    Notes
    -----
    Softmax over a union is the average of the softmaxes over its sets, weighted by ``exp(lse)``
    (FlashDecoding's second step; "Online normalizer calculation for softmax", arXiv:1805.02867, section 3.1,
    shows why order does not matter). The computation is in float32, in float64 where an input is. A part in
    which a query sees no key has ``lse = -inf`` and no weight; a query that sees none in any part gets 0 and
    -inf. Sinks belong to one part only, one whose keys every query sees: each part adds them to its
    denominator.

    Examples
    --------
    >>> import numpy as np
    >>> import fastattention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 1, 6, 8)).astype(np.float32)
    >>> left = fastattention.attention(q, k[:, :, :2], v[:, :, :2], return_lse=True)
    >>> right = fastattention.attention(q, k[:, :, 2:], v[:, :, 2:], return_lse=True)
    >>> whole, _ = fastattention.merge([left, right])
    >>> bool(np.allclose(whole, fastattention.attention(q, k, v), atol=1e-5))
    True
    """
    outs, lses = [], []
    kind = ""
    for n, part in enumerate(parts):
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise TypeError(f"parts[{n}]: expected a pair (out, lse), got {type(part).__name__}")
        if n == 0:
            _, kind = to_numpy(part[0], "parts[0] out")
        out, lse = operand(part[0], f"parts[{n}] out", kind), operand(part[1], f"parts[{n}] lse", kind)
        if out.dtype.kind != "f" and out.dtype != BFLOAT16:
            raise TypeError(f"parts[{n}] out: expected a floating dtype, got {out.dtype}")
        if lse.dtype not in (np.float32, np.float64):
            raise TypeError(f"parts[{n}] lse: expected float32 or float64, got {lse.dtype}")
        if out.ndim == 0 or lse.shape != out.shape[:-1]:
            raise ValueError(
                f"parts[{n}] lse: expected out's shape {out.shape} without its last axis, got {lse.shape}"
            )
        outs.append(out)
        lses.append(lse)
        if out.shape != outs[0].shape:
            raise ValueError(
                f"parts[{n}] out: expected the shape of parts[0], {outs[0].shape}, got {out.shape}"
            )
        if (out.dtype, lse.dtype) != (outs[0].dtype, lses[0].dtype):
            raise TypeError(
                f"parts[{n}]: expected the dtypes of parts[0], {outs[0].dtype} and {lses[0].dtype}, "
                f"got {out.dtype} and {lse.dtype}"
            )
    if not outs:
        raise ValueError("parts: expected at least one (out, lse), got none")

    wide = np.result_type(
        np.float32, lses[0].dtype, np.float64 if outs[0].dtype == np.float64 else np.float32
    )
    stacked = np.stack([lse.astype(wide, copy=False) for lse in lses])
    peak = stacked.max(axis=0)
    # Where no part has a key the peak is -inf; shifting by 0 instead keeps every weight at exp(-inf) = 0.
    shift = np.where(np.isneginf(peak), wide.type(0), peak)
    with np.errstate(
        invalid="ignore", divide="ignore"
    ):  # an infinite or NaN lse gives NaN; log(0) is the -inf meant
        weights = np.exp(stacked - shift)
        total = weights.sum(axis=0)
        merged_lse = shift + np.log(total)
    weights /= np.where(total == 0, wide.type(1), total)
    merged = np.zeros(outs[0].shape, wide)
    for out, weight in zip(outs, weights, strict=True):
        # A part without weight contributes nothing, whatever its rows hold.
        term = out.astype(wide, copy=False) * weight[..., None]
        np.add(merged, term, out=merged, where=weight[..., None] != 0)
    return (
        from_numpy(merged.astype(outs[0].dtype, copy=False), kind),
        from_numpy(merged_lse.astype(lses[0].dtype, copy=False), kind),
    )
