"""What is measured: shapes, data types and visibility, and how much useful work each case holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DTYPES",
    "Case",
    "Data",
    "all_cases",
    "make_data",
    "select",
    "useful_flops",
    "visible_pairs",
    "window_mask",
]

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

#: Sets of cases, each containing the ones before it.
LEVELS = ("quick", "default", "full")

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the benchmark: a batch of one, queries at the end of the keys.

    Attributes
    ----------
    kind : str
        "prefill" (as many queries as keys) or "decode" (one query a head).
    dtype : str
        Key of `DTYPES`: of queries, keys, values and output.
    q_heads, kv_heads, q_len, k_len, head_dim : int
        Shapes; the values' head_dim is the keys'.
    causal : bool
        Keys after a query are hidden.
    window : tuple of int, optional
        (left, right): keys further away are hidden.
    mask : str, optional
        "bool" or "float32": a (1, 1, Sq, Sk) mask of random entries.
    threads : int
        Threads the kernel may use.
    level : str
        The smallest set of `LEVELS` that this case belongs to.
    """

    kind: str
    dtype: str
    q_heads: int
    kv_heads: int
    q_len: int
    k_len: int
    head_dim: int
    causal: bool = False
    window: tuple[int, int] | None = None
    mask: str | None = None
    threads: int = 1
    level: str = field(default="default", compare=False)

    @property
    def visibility(self) -> str:
        """What a query sees, in one word: "full", "causal", "window", "bool-mask" or "float-mask"."""
        if self.mask:
            return "bool-mask" if self.mask == "bool" else "float-mask"
        if self.window:
            return "window"
        return "causal" if self.causal else "full"

    @property
    def heads(self) -> str:
        """Query heads, and KV heads where they are fewer."""
        return str(self.q_heads) if self.q_heads == self.kv_heads else f"{self.q_heads}/{self.kv_heads}"

    @property
    def name(self) -> str:
        """What `--filter` matches, such as ``prefill/float32/causal/H8/D128/S4096/1t``."""
        visibility = self.visibility
        if self.window:
            visibility += str(self.window[0] + 1 + self.window[1])
        shape = f"H{self.heads.replace('/', ':')}/D{self.head_dim}/S{self.k_len}"
        return f"{self.kind}/{self.dtype}/{visibility}/{shape}/{self.threads}t"

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values together, each counted once however many query heads read it."""
        return 2 * self.kv_heads * self.k_len * self.head_dim * int(DTYPES[self.dtype].itemsize)

    @property
    def moved_bytes(self) -> int:
        """Bytes that any kernel must move at least: queries, keys, values in, output out."""
        return self.kv_bytes + 2 * self.q_heads * self.q_len * self.head_dim * int(
            DTYPES[self.dtype].itemsize
        )


@dataclass(frozen=True, slots=True)
class Data:
    """The arrays of a case: q (1, Hq, Sq, D); k, v (1, Hkv, Sk, D), the halves of the one buffer `kv`."""

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    kv: NDArray[Any]
    mask: NDArray[Any] | None


def visible_pairs(case: Case, mask: NDArray[Any] | None = None) -> int:
    """Count the (query, key) pairs of all query heads that visibility and a boolean mask allow.

    Parameters
    ----------
    case : Case
    mask : ndarray, optional
        bool, broadcasts to (1, Hq, Sq, Sk). A float mask only adds to scores and hides nothing.

    Returns
    -------
    int
    """
    position = np.arange(case.q_len) + case.k_len - case.q_len
    first = np.zeros(case.q_len, dtype=np.int64)
    last = np.full(case.q_len, case.k_len - 1)
    if case.window:
        first = np.maximum(first, position - case.window[0])
        last = np.minimum(last, position + case.window[1])
    if case.causal:
        last = np.minimum(last, position)
    if mask is None or mask.dtype != np.bool_:
        return case.q_heads * int(np.maximum(last - first + 1, 0).sum())
    key = np.arange(case.k_len)
    allowed = mask & (key >= first[:, None]) & (key <= last[:, None])  # (1, 1 or Hq, Sq, Sk)
    heads: int = allowed.shape[1]
    return int(allowed.sum()) * (case.q_heads // heads)


def useful_flops(case: Case, mask: NDArray[Any] | None = None) -> int:
    """Return 2 (D + Dv) for each visible pair: a multiply and an add an element of both products.

    The softmax counts nothing, and neither does work on hidden pairs, so that a kernel which computes hidden
    scores gains nothing by it.
    """
    return 2 * (case.head_dim + case.head_dim) * visible_pairs(case, mask)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    # From the start of a page, so that no library is favoured by chance.
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _PAGE, dtype=np.uint8)
    start = -raw.ctypes.data % _PAGE
    return raw[start : start + size].view(dtype).reshape(shape)


def window_mask(case: Case) -> NDArray[np.bool_]:
    """Return the case's window and causality as a boolean mask (Sq, Sk), for libraries without windows."""
    if case.window is None:
        raise ValueError(f"{case.name} has no window")
    position = np.arange(case.q_len)[:, None] + case.k_len - case.q_len
    key = np.arange(case.k_len)
    mask: NDArray[np.bool_] = (key >= position - case.window[0]) & (key <= position + case.window[1])
    return mask & (key <= position) if case.causal else mask


def make_data(case: Case, seed: int = 0) -> Data:
    """Return standard normal q, k, v and, if the case has one, a mask: half true, or standard normal."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[case.dtype]

    def fill(array: NDArray[Any]) -> None:
        for part in array:  # one head at a time keeps the float32 draft of a large cache small
            part[...] = rng.standard_normal(part.shape, dtype=np.float32)

    q = _aligned((1, case.q_heads, case.q_len, case.head_dim), dtype)
    kv = _aligned((2, 1, case.kv_heads, case.k_len, case.head_dim), dtype)
    for array in (q[0], kv[0, 0], kv[1, 0]):
        fill(array)
    mask: NDArray[Any] | None = None
    if case.mask == "bool":
        mask = rng.random((1, 1, case.q_len, case.k_len)) < 0.5
    elif case.mask:
        mask = rng.standard_normal((1, 1, case.q_len, case.k_len), dtype=np.float32)
    return Data(q=q, k=kv[0], v=kv[1], kv=kv, mask=mask)


def _prefill(
    dtype: str,
    head_dim: int,
    length: int,
    *,
    heads: tuple[int, int] = (8, 8),
    visibility: str = "full",
    mask: str | None = None,
    threads: int = 1,
    level: str = "default",
) -> Case:
    return Case(
        "prefill",
        dtype,
        q_heads=heads[0],
        kv_heads=heads[1],
        q_len=length,
        k_len=length,
        head_dim=head_dim,
        causal=visibility in ("causal", "window"),
        window=(511, 0) if visibility == "window" else None,
        mask=mask,
        threads=threads,
        level=level,
    )


def _decode(dtype: str, kv_heads: int, length: int, *, threads: int = 1, level: str = "default") -> Case:
    return Case("decode", dtype, 32, kv_heads, 1, length, 128, threads=threads, level=level)


def all_cases(threads: int) -> Iterator[Case]:
    """Yield every case: the one-thread rows, then, if `threads` is more, the rows on that many threads."""
    for visibility in ("full", "causal"):
        for head_dim in (64, 128):
            short = "default" if (visibility, head_dim) == ("causal", 128) else "full"
            yield _prefill("float32", head_dim, 1024, visibility=visibility, level=short)
            quick = "quick" if head_dim == 128 else "default"
            yield _prefill("float32", head_dim, 4096, visibility=visibility, level=quick)
    for head_dim in (64, 128):
        yield _prefill("float32", head_dim, 4096, visibility="window")
    for dtype in ("bfloat16", "float16"):
        for visibility in ("full", "causal"):
            for head_dim in (64, 128):
                usual = "default" if head_dim == 128 else "full"
                yield _prefill(dtype, head_dim, 1024, visibility=visibility, level="full")
                yield _prefill(dtype, head_dim, 4096, visibility=visibility, level=usual)
    yield _prefill("float32", 128, 2048, heads=(32, 8), visibility="causal")
    yield _prefill("float32", 80, 4096, visibility="causal")
    yield _prefill("float32", 64, 1024, mask="bool")
    yield _prefill("float32", 64, 1024, mask="float32")
    yield _prefill("float32", 128, 4096, heads=(32, 8), visibility="causal", level="full")
    yield _prefill("float32", 128, 16384, visibility="causal", level="full")
    yield _prefill("float32", 128, 16384, visibility="window", level="full")

    for dtype in DTYPES:
        yield _decode(dtype, 32, 8192, level="quick" if dtype == "float32" else "default")
        yield _decode(dtype, 8, 8192)
        yield _decode(dtype, 8, 32768)
    yield _decode("float32", 4, 32768, level="full")
    yield _decode("float32", 8, 131072, level="full")

    if threads > 1:
        yield _prefill("float32", 128, 4096, threads=threads)
        yield _prefill("float32", 128, 4096, visibility="causal", threads=threads, level="quick")
        yield _prefill("bfloat16", 128, 4096, visibility="causal", threads=threads, level="full")
        yield _decode("float32", 32, 8192, threads=threads, level="quick")
        yield _decode("float32", 8, 32768, threads=threads)
        yield _decode("float16", 8, 32768, threads=threads, level="full")


def select(threads: int, level: str = "default", pattern: str | None = None) -> list[Case]:
    """Return the cases of `level` and of those it contains whose name has a part for each word of `pattern`.

    Parts of a name are separated by slashes, words by spaces or commas; a part begins with its word:
    ``"decode float16"``, ``"causal D128"``.
    """
    limit = LEVELS.index(level)
    words = (pattern or "").replace(",", " ").split()
    return [
        case
        for case in all_cases(threads)
        if LEVELS.index(case.level) <= limit and all(f"/{word}" in f"/{case.name}" for word in words)
    ]
