"""Tiles for cards whose SMs have less shared memory than this one's: the same cases, told of such a card."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fastattention.gpu import launch
from fastattention.gpu.choose import SM_SHARED

from fastattention import gpu

from ..cases import Case, Sizes, options, solve
from ..conftest import Engine

pytestmark = pytest.mark.gpu

CARDS = {"RTX 30": SM_SHARED[80], "A100": 164 * 1024}


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(
    ("head_dim", "v_dim"), [(64, 64), (128, 128), (100, 128), (72, 116), (256, 256), (136, 72)]
)
def test_smaller_cards(
    card: str,
    softcap: float | None,
    head_dim: int,
    v_dim: int,
    gpu_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = gpu.card()
    if gpu_engine.atom != gpu.atom_of(*here.capability) or gpu_engine.atom != 80:
        pytest.skip("a forced atom runs in its own generation's tiles, whatever the card")
    if here.sm_shared < CARDS[card]:
        pytest.skip(f"{here.name} has less shared memory than {card}")
    told = []

    def smaller(number: int | None = None) -> gpu.Card:
        told.append(replace(here, sm_shared=CARDS[card]))
        return told[-1]

    monkeypatch.setattr(launch, "card", smaller)
    case = Case(card, Sizes(2, 4, 2, 157, 333, head_dim, v_dim), options(causal=True, softcap=softcap))
    problem = case.problem("float16")
    gpu_engine.check(problem, solve(problem, "float16", gpu_engine.accumulation))
    assert told
