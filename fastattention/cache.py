"""The keys and values a decoder has seen, kept for the tokens to come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import MAX_LENGTH, integer, operand
from .arrays import to_numpy
from .backends import run
from .validate import KERNEL_DTYPES, MAX_HEAD_DIM, validate

__all__ = ["KVCache"]

Array = NDArray[Any]

# Room for this many tokens is taken at first; it doubles from there.
_FIRST_CAPACITY = 64


def _size(value: Any, name: str, most: int) -> int:
    number = integer(value, name, "an integer")
    if not 1 <= number <= most:
        raise ValueError(f"{name}: expected 1 to {most}, got {number}")
    return number


class KVCache:
    """A contiguous KV cache for one attention layer.

    Parameters
    ----------
    batch : int
        Sequences, B. They may have different lengths.
    kv_heads : int
        KV heads, Hkv.
    head_dim : int
        Head dimension of the keys, D, 1 to 256.
    dtype : dtype
        float32, float16 or bfloat16 (`ml_dtypes.bfloat16`, or the string "bfloat16"): how keys and values are
        kept.
    v_dim : int, optional
        Head dimension of the values, Dv; default `head_dim`.
    max_length : int
        Most tokens that a sequence can hold.
    page_size : None
        Paged caches are not in this version; anything but None raises.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit.

    Notes
    -----
    Memory grows with the longest sequence: it doubles whenever it is full, up to `max_length`, so
    each token is copied a constant number of times on average. While it grows, the old and the new buffer
    exist together. Arrays handed out as `keys` and `values` are views: they see nothing of what is appended
    after the buffer has grown. One cache is for one thread at a time.

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
    """

    __slots__ = (
        "_batch", "_dtype", "_head_dim", "_k", "_kv_heads", "_lengths", "_longest", "_max_length", "_uniform",
        "_v", "_v_dim",
    )  # fmt: skip

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: Any,
        v_dim: int | None = None,
        max_length: int,
        page_size: int | None = None,
    ) -> None:
        if page_size is not None:
            raise ValueError(f"page_size: only contiguous caches (None) in this version, got {page_size!r}")
        self._batch = _size(batch, "batch", MAX_LENGTH)
        self._kv_heads = _size(kv_heads, "kv_heads", MAX_LENGTH)
        self._head_dim = _size(head_dim, "head_dim", MAX_HEAD_DIM)
        self._v_dim = self._head_dim if v_dim is None else _size(v_dim, "v_dim", MAX_HEAD_DIM)
        self._max_length = _size(max_length, "max_length", MAX_LENGTH)
        try:
            self._dtype: np.dtype[Any] = np.dtype(dtype)
        except TypeError as error:
            raise TypeError(f"dtype: expected float32, float16 or bfloat16, got {dtype!r}") from error
        if self._dtype not in KERNEL_DTYPES:
            raise TypeError(
                f"dtype: expected float32, float16 or bfloat16 in native byte order, got {dtype!r}"
            )
        self._lengths = np.zeros(self._batch, np.int64)
        self._longest = 0
        self._uniform = True  # all sequences have the same length
        self._k, self._v = self._buffers(min(_FIRST_CAPACITY, self._max_length))

    def __repr__(self) -> str:
        return (
            f"KVCache(batch={self._batch}, kv_heads={self._kv_heads}, head_dim={self._head_dim}, "
            f"dtype={self._dtype.name}, v_dim={self._v_dim}, max_length={self._max_length}; "
            f"longest sequence {self._longest})"
        )

    def _buffers(self, capacity: int) -> tuple[Array, Array]:
        # Zeros, not garbage: in a ragged batch, `keys` and `values` show the rows behind a short sequence.
        rows = (self._batch, self._kv_heads, capacity)
        return np.zeros((*rows, self._head_dim), self._dtype), np.zeros((*rows, self._v_dim), self._dtype)

    @property
    def lengths(self) -> Array:
        """Length of each sequence: int64, (B,), a copy."""
        return self._lengths.copy()

    @property
    def max_length(self) -> int:
        """Most tokens that a sequence can hold."""
        return self._max_length

    @property
    def keys(self) -> Array:
        """Keys up to the longest sequence: (B, Hkv, max(lengths), D), a read-only NumPy view."""
        return self._view(self._k)

    @property
    def values(self) -> Array:
        """Values up to the longest sequence: (B, Hkv, max(lengths), Dv), a read-only NumPy view."""
        return self._view(self._v)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache holds now."""
        return self._k.nbytes + self._v.nbytes

    def _view(self, buffer: Array) -> Array:
        view = buffer[:, :, : self._longest]
        view.flags.writeable = False
        return view

    def _incoming(self, x: Any, name: str, kind: str, dim: int) -> Array:
        array = operand(x, name, kind)
        if array.dtype != self._dtype and array.dtype != np.float32:
            raise TypeError(
                f"{name}: expected {self._dtype.name} (the cache's) or float32, got {array.dtype}"
            )
        shape = array.shape
        if len(shape) != 4 or shape[:2] != (self._batch, self._kv_heads) or shape[3] != dim:
            raise ValueError(
                f"{name}: expected shape (B, Hkv, S, D) = ({self._batch}, {self._kv_heads}, S, {dim}), "
                f"got {shape}"
            )
        return array

    def append(self, k: Any, v: Any, lengths: Any = None) -> None:
        """Append keys and values to every sequence.

        Parameters
        ----------
        k : array, shape (B, Hkv, S, D)
            Of the cache's dtype, or float32, which is rounded to it: past float16's range to inf, with
            NumPy's warning. NumPy, PyTorch, JAX, as in `attention`.
        v : array, shape (B, Hkv, S, Dv)
            Likewise, of k's kind.
        lengths : integer array, shape (B,), optional
            How many of the S tokens each sequence takes, from the front, 0 to S; by default all.

        Raises
        ------
        TypeError, ValueError
            An argument does not fit, or a sequence would pass `max_length`. The cache is as it was before.
        MemoryError
            There is no room to grow. The cache is as it was before.
        """
        _, kind = to_numpy(k, "k")
        new_k = self._incoming(k, "k", kind, self._head_dim)
        new_v = self._incoming(v, "v", kind, self._v_dim)
        count = new_k.shape[2]
        if new_v.shape[2] != count:
            raise ValueError(f"v: expected as many tokens as k has, {count}, got shape {new_v.shape}")
        if lengths is None:
            counts, ragged = None, not self._uniform
            new_longest = self._longest + count
        else:
            counts = self._counts(lengths, kind, count)
            ragged = not self._uniform or int(counts.min()) != int(counts.max())
            count = count if ragged else int(counts[0])
            new_longest = int((self._lengths + counts).max())
        if new_longest > self._max_length:
            raise ValueError(
                f"k: appending would make the longest sequence {new_longest}; max_length is "
                f"{self._max_length}, lengths are {self._lengths.tolist()}"
            )
        self._reserve(new_longest)

        # Rows from a sequence's length on are nobody's until the lengths change, last and in one step each.
        if not ragged:
            rows = slice(self._longest, new_longest)
            self._k[:, :, rows] = new_k[:, :, :count]
            self._v[:, :, rows] = new_v[:, :, :count]
            self._lengths += count
            self._longest = new_longest
            return
        added = np.full(self._batch, count, np.int64) if counts is None else counts
        for b, (old, n) in enumerate(zip(self._lengths.tolist(), added.tolist(), strict=True)):
            self._k[b, :, old : old + n] = new_k[b, :, :n]
            self._v[b, :, old : old + n] = new_v[b, :, :n]
        self._set_lengths(self._lengths + added)

    def _counts(self, lengths: Any, kind: str, most: int) -> Array:
        counts = operand(lengths, "lengths", kind)
        if counts.dtype.kind not in "iu":
            raise TypeError(f"lengths: expected integers, got dtype {counts.dtype}")
        if counts.shape != (self._batch,):
            raise ValueError(f"lengths: expected shape (B,) = ({self._batch},), got {counts.shape}")
        if int(counts.min()) < 0 or int(counts.max()) > most:
            raise ValueError(
                f"lengths: expected 0 to S = {most}, got {int(counts.min())} to {int(counts.max())}"
            )
        return counts.astype(np.int64)

    def _reserve(self, length: int) -> None:
        """Make room for `length` tokens; on MemoryError the cache is as it was."""
        capacity = self._k.shape[2]
        if length <= capacity:
            return
        k, v = self._buffers(min(self._max_length, max(length, 2 * capacity)))
        k[:, :, : self._longest] = self._k[:, :, : self._longest]
        v[:, :, : self._longest] = self._v[:, :, : self._longest]
        self._k, self._v = k, v

    def _set_lengths(self, lengths: Array) -> None:
        self._lengths = lengths
        self._longest = int(lengths.max())
        self._uniform = int(lengths.min()) == self._longest

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
            Queries: float32 or the cache's dtype; any kind that `attention` takes. Hq is a multiple of Hkv.
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
        rows = slice(self._longest)
        problem = validate(
            q, self._k[:, :, rows], self._v[:, :, rows], causal, window, mask, alibi_slopes, scale, softcap,
            sinks, None if self._uniform else self._lengths, q_offset, return_lse, out, backend, num_threads,
            True,
        )  # fmt: skip
        run(problem, backend)
        return problem.result(return_lse)

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on; shorter sequences stay as they are.

        Parameters
        ----------
        length : int
            At least 0.

        Raises
        ------
        TypeError, ValueError
            `length` is no integer, or negative.
        """
        keep = integer(length, "length", "an integer")
        if keep < 0:
            raise ValueError(f"length: expected at least 0, got {keep}")
        self._set_lengths(np.minimum(self._lengths, min(keep, self._max_length)))

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next sequences."""
        self.truncate(0)
