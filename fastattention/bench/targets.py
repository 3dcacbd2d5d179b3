"""What the kernels are meant to reach, in percent of what the machine can do. A release adds lines.

The limit of a prefill row is the arithmetic peak, of a decode row the read bandwidth (see `limits`). Targets
count for long rows on one thread: there nothing but the kernel stands between the limit and the figure.
"""

from __future__ import annotations

from .cases import Case

__all__ = ["TARGETS", "target"]

_PREFILL_LENGTH = 4096

#: (kind, dtype, visibility, head_dim, whether several query heads share a KV head): percent
TARGETS: dict[tuple[str, str, str, int, bool], float] = {
    ("prefill", "float32", "full", 128, False): 75,
    ("prefill", "float32", "causal", 128, False): 70,
    ("decode", "float32", "full", 128, False): 85,
}


def target(case: Case) -> float | None:
    """Return the percentage of the limit that `case` is meant to reach; None where none is set."""
    if case.threads != 1 or (case.kind == "prefill" and case.q_len != _PREFILL_LENGTH):
        return None
    grouped = case.q_heads != case.kv_heads
    return TARGETS.get((case.kind, case.dtype, case.visibility, case.head_dim, grouped))
