"""The smallest case that still fails: sizes go down one by one, as long as something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from .cases import Sizes

__all__ = ["shrink"]


def shrink(sizes: Sizes, fails: Callable[[Sizes], bool], most: int = 150) -> Sizes:
    """Return sizes at which a case still fails, none of which can be made smaller alone.

    Parameters
    ----------
    sizes : Sizes
        At which it fails.
    fails : callable
        Whether it fails at others.
    most : int
        Calls of `fails`.
    """
    left = most
    going = True
    while going:
        going = False
        for smaller in _smaller(sizes):
            if not left:
                return sizes
            left -= 1
            if fails(smaller):
                sizes, going = smaller, True
                break
    return sizes


def _smaller(sizes: Sizes) -> Iterator[Sizes]:
    """Yield sizes with one number less, the largest steps first; square problems stay square."""
    for name in ("batch", "q_heads", "k_len", "q_len", "head_dim", "v_dim"):
        now = getattr(sizes, name)
        tied = [other.name for other in fields(sizes) if getattr(sizes, other.name) == now]
        for value in dict.fromkeys((1, now // 2, now - now // 4, now - 1)):
            if not 1 <= value < now:
                continue
            change = {name: value}
            if name in ("k_len", "q_len") and {"k_len", "q_len"} <= set(tied):
                change = {"k_len": value, "q_len": value}
            if name in ("head_dim", "v_dim") and {"head_dim", "v_dim"} <= set(tied):
                change = {"head_dim": value, "v_dim": value}
            if name == "q_heads":
                if sizes.q_heads == sizes.kv_heads:
                    change["kv_heads"] = value
                elif value % sizes.kv_heads:
                    change["kv_heads"] = 1
            yield replace(sizes, **change)
