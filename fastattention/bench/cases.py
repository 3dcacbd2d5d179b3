"""What a row is: shapes, data types and visibility, and how much useful work it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "LEVELS", "Case", "useful_flops", "visible_pairs", "window_mask"]

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}

#: Sets of cases, each containing the ones before it.
LEVELS = ("quick", "default", "full")

_SCALE_BYTES = 4  # of an int8 cache: a float32 for each row of keys, and another for each row of values


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the benchmark: queries at the end of the keys.

    Attributes
    ----------
    kind : str
        "prefill" (as many queries as keys), "decode" (few queries a head) or "memory" (what a call needs
        beside its inputs and output; its time is no matter).
    dtype : str
        Key of `DTYPES`: of keys and values, and, unless it is "int8", of queries and output.
    q_heads, kv_heads, q_len, k_len, head_dim : int
        Shapes; head_dim is the queries' and keys'.
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
    batch : int
        Sequences, all of the same length.
    v_dim : int, optional
        Head dimension of the values; None: the keys'.
    page_size : int, optional
        Keys and values lie in pages of so many tokens, in shuffled order; None: contiguous.
    isa : str, optional
        Instruction set to force; None: the run's.
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
    batch: int = 1
    v_dim: int | None = None
    page_size: int | None = None
    isa: str | None = None

    @property
    def visibility(self) -> str:
        """What a query sees, in one word: "full", "causal", "window", "bool-mask" or "float-mask"."""
        if self.mask:
            return "bool-mask" if self.mask == "bool" else "float-mask"
        if self.window:
            return "window"
        return "causal" if self.causal else "full"

    @property
    def q_dtype(self) -> str:
        """Key of `DTYPES`: of queries and output."""
        return "float32" if self.dtype == "int8" else self.dtype

    @property
    def value_dim(self) -> int:
        """Head dimension of values and output, Dv."""
        return self.head_dim if self.v_dim is None else self.v_dim

    @property
    def heads(self) -> str:
        """Query heads, and KV heads where they are fewer."""
        return str(self.q_heads) if self.q_heads == self.kv_heads else f"{self.q_heads}/{self.kv_heads}"

    @property
    def name(self) -> str:
        """What `--filter` matches, such as ``prefill/float32/causal/H8/D128/S4096/1t``.

        After the usual parts come those that most cases lack: ``B8`` (batch), ``Q16`` (queries of decode),
        ``P64`` (tokens of a page), a forced instruction set. ``D192:128``: values have another dimension.
        """
        visibility = self.visibility
        if self.window:
            visibility += str(self.window[0] + 1 + self.window[1])
        dims = str(self.head_dim) + (f":{self.v_dim}" if self.value_dim != self.head_dim else "")
        parts = [self.kind, self.dtype, visibility, f"H{self.heads.replace('/', ':')}", f"D{dims}"]
        parts += [f"S{self.k_len}", f"{self.threads}t"]
        if self.batch > 1:
            parts.append(f"B{self.batch}")
        if self.kind == "decode" and self.q_len > 1:
            parts.append(f"Q{self.q_len}")
        if self.page_size:
            parts.append(f"P{self.page_size}")
        if self.isa:
            parts.append(self.isa)
        return "/".join(parts)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values with their scales, each counted once however many query heads read it."""
        row = (self.head_dim + self.value_dim) * DTYPES[self.dtype].itemsize
        if self.dtype == "int8":
            row += 2 * _SCALE_BYTES
        return self.batch * self.kv_heads * self.k_len * row

    @property
    def moved_bytes(self) -> int:
        """Bytes that any kernel must move at least: queries, keys, values in, output out."""
        row = (self.head_dim + self.value_dim) * DTYPES[self.q_dtype].itemsize
        return self.kv_bytes + self.batch * self.q_heads * self.q_len * row


def visible_pairs(case: Case, mask: NDArray[Any] | None = None) -> int:
    """Count the (query, key) pairs of all sequences and query heads that visibility and a mask allow.

    Parameters
    ----------
    case : Case
    mask : ndarray, optional
        bool, (1, 1 or Hq, Sq, Sk). A float mask only adds to scores and hides nothing.

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
        return case.batch * case.q_heads * int(np.maximum(last - first + 1, 0).sum())
    key = np.arange(case.k_len)
    allowed = mask & (key >= first[:, None]) & (key <= last[:, None])  # (1, 1 or Hq, Sq, Sk)
    heads: int = allowed.shape[1]
    return case.batch * int(allowed.sum()) * (case.q_heads // heads)


def useful_flops(case: Case, mask: NDArray[Any] | None = None) -> int:
    """Return 2 (D + Dv) for each visible pair: a multiply and an add an element of both products.

    The softmax counts nothing, and neither does work on hidden pairs, so that a kernel which computes hidden
    scores gains nothing by it.
    """
    return 2 * (case.head_dim + case.value_dim) * visible_pairs(case, mask)


def window_mask(case: Case) -> NDArray[np.bool_]:
    """Return the case's window and causality as a boolean mask (Sq, Sk), for libraries without windows."""
    if case.window is None:
        raise ValueError(f"{case.name} has no window")
    position = np.arange(case.q_len)[:, None] + case.k_len - case.q_len
    key = np.arange(case.k_len)
    mask: NDArray[np.bool_] = (key >= position - case.window[0]) & (key <= position + case.window[1])
    return mask & (key <= position) if case.causal else mask
