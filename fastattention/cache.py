"""The keys and values a decoder has seen, kept for the tokens to come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import cuda_kind, to_numpy
from .backends import run
from .cache_paged import Paged
from .cache_rows import INT8, incoming, quantized, token_counts
from .cache_state import CacheState
from .device import check_beside
from .explain import Explanation, GpuExplanation, explanation
from .validate import KeysValues, Problem, validate_cached

__all__ = ["KVCache"]

Array = NDArray[Any]


class KVCache(CacheState):
    """A KV cache for one attention layer: contiguous or in pages, in floats or 8-bit integers, on CPU or GPU.

    Parameters
    ----------
    batch : int
        Sequences, B. They may have different lengths.
    kv_heads : int
        KV heads, Hkv.
    head_dim : int
        Head dimension of the keys, D, 1 to 256.
    dtype : dtype
        float32, float16, bfloat16 (`ml_dtypes.bfloat16`, or the string "bfloat16") or int8: how keys and
        values are kept. int8 keeps each row (a token in a KV head) as integers from -127 to 127 and one
        float32 scale, so that no element is off by more than 1/254 of its row's largest.
    v_dim : int, optional
        Head dimension of the values, Dv; default `head_dim`.
    max_length : int
        Most tokens that a sequence can hold.
    page_size : int, optional
        Tokens of a page: 8, 16, 32, ... or 1024. Sequences then take pages from one pool as they grow and
        give them back (`free`, `truncate`); each wastes less than a page. By default rows are
        contiguous, and every sequence has room for the longest one.
    max_pages : int, optional
        With `page_size`: most pages of the pool. By default what `batch` sequences of `max_length` need.
    device : str, default "cpu"
        Where keys and values lie, and so where attention over them is computed. "gpu" or "cuda" is the
        current CUDA device, "cuda:1" that of a number; a ``torch.device`` does, too. `append` and `attend`
        then take arrays on that device.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; there is no such device, or it is too old for bfloat16 (below compute
        capability 8.0).
    ImportError, RuntimeError
        `device` is a GPU, and there is no CuPy, no GPU, or none that CuPy can serve.
    MemoryError
        There is no room.

    Notes
    -----
    Memory grows with what is appended: the buffer of a contiguous cache, or the pool of a paged one, doubles
    whenever it is full, so each token is copied a constant number of times on average. While it grows, the
    old and the new one exist together. Arrays handed out as `keys` and `values` are views: they see nothing
    of what is appended after that. One cache is for one thread at a time.

    On a GPU, calls are queued on the caller's current stream (CuPy's or PyTorch's) and do not wait for the
    device: one launch writes keys and values, rounded as they are written. Where the stream is another one
    than at the last call, it waits for that one's work. `lengths` and `block_table` are kept in CPU memory,
    so that asking for them does not wait either. Memory comes from CuPy's pool. Whoever drops a cache while
    another stream than the one it was made on still works on it synchronises first, as with any array.

    The specification of int8 is ``reference.quantize``, which says why each token has a scale of its own,
    and that of pages ``reference.paged``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattention import KVCache
    >>> rng = np.random.default_rng(0)
    >>> cache = KVCache(batch=1, kv_heads=2, head_dim=8, dtype=np.float16, max_length=512)
    >>> k, v = rng.standard_normal((2, 1, 2, 5, 8)).astype(np.float32)
    >>> cache.append(k, v)  # a prompt of 5 tokens, rounded to float16
    >>> cache.append(k[:, :, :1], v[:, :, :1])  # one more
    >>> cache.lengths
    array([6])
    >>> q = rng.standard_normal((1, 4, 1, 8)).astype(np.float32)
    >>> cache.attend(q).shape
    (1, 4, 1, 8)

    Two sequences in pages of 16 tokens:

    >>> paged = KVCache(batch=2, kv_heads=2, head_dim=8, dtype=np.float32, max_length=512, page_size=16)
    >>> k = rng.standard_normal((2, 2, 40, 8)).astype(np.float32)
    >>> paged.append(k, k, lengths=np.array([40, 3]))
    >>> paged.block_table
    array([[ 0,  1,  2],
           [ 3, -1, -1]], dtype=int32)
    """

    __slots__ = ()

    def _kind(self, x: Any, name: str) -> str:
        """Return the kind of an array that lies where the cache does, or raise naming it."""
        if type(x) is np.ndarray and self._place is None:
            return "numpy"
        kind = cuda_kind(x, name) or to_numpy(x, name)[1]
        check_beside(kind, name, self.device)
        return kind

    def append(self, k: Any, v: Any, lengths: Any = None) -> None:
        """Append keys and values to every sequence.

        Parameters
        ----------
        k : array, shape (B, Hkv, S, D)
            Of the cache's dtype, or float32, which is rounded to it: past float16's range to inf, with
            NumPy's warning. For an int8 cache float32, float16 or bfloat16, and finite. NumPy, PyTorch, JAX,
            as in `attention`; for a cache on a GPU, arrays there (CuPy, PyTorch, JAX).
        v : array, shape (B, Hkv, S, Dv)
            Likewise, of k's kind.
        lengths : integer array, shape (B,), optional
            How many of the S tokens each sequence takes, from the front, 0 to S; by default all. The others
            are not read. In CPU memory; on a GPU it is copied from there, and the call waits.

        Raises
        ------
        TypeError, ValueError
            An argument does not fit or lies elsewhere than the cache, a sequence would pass `max_length`, the
            pool has too few pages left, or an int8 cache is given inf or NaN. The cache is as it was before.
        MemoryError
            There is no room to grow. The cache is as it was before.
        KeyboardInterrupt
            Ctrl-C came meanwhile. The cache is as it was before, or holds what was appended.

        Notes
        -----
        On a GPU nobody waits to hear of inf and NaN: an int8 row that has one gets the scale NaN, and what
        attends to it is NaN. Rounding past float16's range gives no warning there.
        """
        kind = self._kind(k, "k")
        if self._place is None:
            self._append(k, v, lengths, kind)
        else:
            with self._place.work(kind):
                self._append(k, v, lengths, kind)

    def _append(self, k: Any, v: Any, lengths: Any, kind: str) -> None:
        new_k = incoming(k, "k", kind, self._dtype, self._batch, self._kv_heads, self._head_dim)
        new_v = incoming(v, "v", kind, self._dtype, self._batch, self._kv_heads, self._v_dim)
        count = new_k.shape[2]
        if new_v.shape[2] != count:
            raise ValueError(f"v: expected as many tokens as k has, {count}, got shape {new_v.shape}")
        counts = None if lengths is None else token_counts(lengths, kind, self._batch, count)
        if counts is not None and int(counts.min()) == int(counts.max()):
            count, counts = int(counts[0]), None
        new_lengths = self._lengths + (count if counts is None else counts)
        new_longest = self._longest + count if counts is None else int(new_lengths.max())
        if new_longest > self._max_length:
            raise ValueError(
                f"k: appending would make the longest sequence {new_longest}; max_length is "
                f"{self._max_length}, lengths are {self._lengths.tolist()}"
            )
        if count == 0:
            return
        rows: tuple[Any, ...] = (new_k, new_v)
        if self._dtype == INT8 and self._place is None:  # on a device, the launch that writes them rounds
            (integers_k, scales_k), (integers_v, scales_v) = (
                quantized(new_k, "k", count, counts), quantized(new_v, "v", count, counts),
            )  # fmt: skip
            rows = integers_k, integers_v, scales_k, scales_v
        storage = self._storage
        storage.reserve(new_lengths, new_longest, self._longest)
        try:  # rows from a sequence's length on are nobody's until the lengths change, last
            if counts is None and self._uniform:
                storage.write_all(self._longest, count, rows)
            else:
                added = np.full(self._batch, count, np.int64) if counts is None else counts
                storage.write_each(self._lengths, added, rows)
        except BaseException:
            storage.release(self._lengths)
            raise
        if counts is None:
            self._lengths, self._longest = new_lengths, new_longest
        else:
            self._set_lengths(new_lengths)

    def _problem(self, q: Any, *options: Any) -> Problem:
        storage = self._storage
        planes, lengths = storage.planes, None if self._uniform else self._lengths
        table, size = None, 0
        if isinstance(storage, Paged):
            table, size, lengths = storage.kernel_table, storage.page_size, self._lengths
        else:
            planes = tuple([plane[:, :, : self._longest] for plane in planes])
        k, v = planes[:2]
        k_scales, v_scales = planes[2:] or (None, None)
        held = KeysValues(k, v, k_scales, v_scales, table, size, lengths, self._batch, self._longest)
        return validate_cached(q, held, *options)

    def attend(
        self,
        q: Any,
        *,
        causal: bool = True,
        window: tuple[int | None, int | None] | None = None,
        mask: Any = None,
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
        """Compute the attention of queries over what the cache holds.

        Parameters
        ----------
        q : array, shape (B, Hq, Sq, D)
            Queries: float32 or the cache's dtype, for an int8 cache float32, float16 or bfloat16; any kind
            that `attention` takes, on the cache's device. Hq is a multiple of Hkv.
        causal : bool, default True
            A query sees no key after its own position. The last query stands at the last key of its sequence:
            append the tokens' keys and values first, then attend with their queries.
        window, alibi_slopes, scale, softcap, sinks, q_offset, return_lse, backend, num_threads
            As in `attention`.
        mask : array, broadcastable to (B, Hq, Sq, max(lengths)), optional
            As in `attention`.
        out : array, shape (B, Hq, Sq, Dv), optional
            As in `attention`.

        Returns
        -------
        out : array, shape (B, Hq, Sq, Dv)
            Of q's dtype and kind.
        lse : array, shape (B, Hq, Sq)
            Only with `return_lse`; as in `attention`.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As in `attention`.
        """
        options = (
            causal, window, mask, alibi_slopes, scale, softcap, sinks, q_offset, return_lse, out, backend,
            num_threads,
        )  # fmt: skip
        kind = self._kind(q, "q")
        if self._place is None:
            return self._attend(q, options, backend, return_lse)
        with self._place.work(kind):
            return self._attend(q, options, backend, return_lse)

    def _attend(self, q: Any, options: tuple[Any, ...], backend: str, return_lse: bool) -> Any:
        problem = self._problem(q, *options)
        run(problem, backend)
        return problem.result(return_lse)

    def explain(
        self,
        q: Any,
        *,
        causal: bool = True,
        window: tuple[int | None, int | None] | None = None,
        mask: Any = None,
        alibi_slopes: Any = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Any = None,
        q_offset: Any = None,
        return_lse: bool = False,
        out: Any = None,
        backend: str = "auto",
        num_threads: int | None = None,
    ) -> Explanation | GpuExplanation:
        """Say what `attend` would do with these arguments, without doing it.

        Parameters
        ----------
        q, causal, window, mask, alibi_slopes, scale, softcap, sinks, q_offset, return_lse, out, num_threads
            As in `attend`.
        backend : {"auto", "cpu", "gpu"}, default "auto"
            The reference has no plan.

        Returns
        -------
        Explanation or GpuExplanation
            As of `fastattention.explain`.

        Raises
        ------
        TypeError, ValueError
            As in `attend`.
        """
        options = (
            causal, window, mask, alibi_slopes, scale, softcap, sinks, q_offset, return_lse, out, backend,
            num_threads,
        )  # fmt: skip
        kind = self._kind(q, "q")
        if self._place is None:
            return explanation(self._problem(q, *options), backend)
        with self._place.work(kind):
            return explanation(self._problem(q, *options), backend)
