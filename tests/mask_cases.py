"""Masks of every broadcast pattern, number of axes, layout in memory and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .cases import Case, Options, Sizes, as_mask, twice


def _mask(transform: Callable[..., np.ndarray], kind: type = np.float32) -> Any:
    def draw(rng: np.random.Generator, n: Sizes) -> Options:
        return {"mask": as_mask(rng, transform(rng, n), kind)}

    return draw


def _masks() -> Iterator[Case]:
    """Masks of every broadcast pattern, number of axes, layout and dtype."""
    for kind in (np.bool_, np.float32):
        word = "bool" if kind is np.bool_ else "float"
        for pattern in range(16):
            kept = [bool(pattern >> axis & 1) for axis in range(4)]
            label = "".join(letter if keep else "1" for letter, keep in zip("BHQK", kept, strict=True))
            yield Case(
                f"{word} mask {label}",
                options=_mask(
                    lambda rng, n, kept=kept: rng.standard_normal(
                        tuple(size if keep else 1 for size, keep in zip(n.scores, kept, strict=True))
                    ),
                    kind,
                ),
            )
        for axes in range(4):
            yield Case(
                f"{word} mask of {axes} axes",
                options=_mask(
                    lambda rng, n, axes=axes: np.asarray(rng.standard_normal(n.scores[4 - axes :])), kind
                ),
            )
        yield Case(
            f"{word} mask of a batch, causal",
            options=lambda rng, n, kind=kind: {
                "mask": as_mask(rng, rng.standard_normal((n.batch, 1, 1, n.k_len)), kind),
                "causal": True,
            },
        )
    for name, view in {
        "transposed": lambda rng, n: rng.standard_normal((n.k_len, n.q_len)).astype(np.float32).T,
        "every second column": lambda rng, n: rng.standard_normal((n.q_len, 2 * n.k_len)).astype(np.float32)[
            :, ::2
        ],
        "reversed": lambda rng, n: rng.standard_normal(n.scores).astype(np.float32)[::-1, ::-1, ::-1, ::-1],
        "sliced": lambda rng, n: rng.standard_normal((9, n.q_len + 3, n.k_len + 5)).astype(np.float32)[
            3:7, 2:-1, 4:-1
        ],
        "heads last": lambda rng, n: (
            rng.standard_normal((n.q_len, n.k_len, n.q_heads)).astype(np.float32).transpose(2, 0, 1)
        ),
        "broadcast by stride 0": lambda rng, n: np.broadcast_to(
            rng.standard_normal((n.q_len, 1)).astype(np.float32), n.scores
        ),
    }.items():
        yield Case(f"float mask {name}", options=lambda rng, n, view=view: {"mask": view(rng, n)})
        yield Case(
            f"bool mask {name}", options=lambda rng, n, view=view: {"mask": _to_bool_in_place(view(rng, n))}
        )
    for dtype in (np.float64, np.float16):
        yield Case(
            f"{np.dtype(dtype).name} mask",
            options=lambda rng, n, dtype=dtype: {"mask": rng.standard_normal(n.scores).astype(dtype)},
        )


def _to_bool_in_place(mask: np.ndarray) -> np.ndarray:
    """A bool mask with the odd memory layout of a float one: strides are divided by four."""
    owner = mask < 0.43
    strides = tuple(stride // mask.itemsize for stride in mask.strides)
    room = 1 + sum(abs(s) * (size - 1) for s, size in zip(strides, mask.shape, strict=True))
    buffer = np.zeros(room, dtype=np.bool_)
    start = sum(-s * (size - 1) for s, size in zip(strides, mask.shape, strict=True) if s < 0)
    view = np.lib.stride_tricks.as_strided(buffer[start:], mask.shape, strides)
    view[...] = owner
    return view


MASKS = twice(_masks())
