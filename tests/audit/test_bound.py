"""The two models of a sub-core, on tiles small enough to reckon by hand."""

from __future__ import annotations

import pytest
from fastattention.gpu.audit import bound
from fastattention.gpu.audit.sass import Instruction

PRODUCT = bound.issued(Instruction(0, "PT", "HMMA.884.F32.F32.STEP0", (), stall=2))
MULTIPLY = bound.issued(Instruction(0, "PT", "FFMA", (), stall=1))
EXPONENTIAL = bound.issued(Instruction(0, "PT", "MUFU.EX2", (), stall=1))
BARRIER = bound.issued(Instruction(0, "PT", "BAR.SYNC", (), stall=1))
LOAD = bound.issued(Instruction(0, "PT", "LDS.U.128", (), stall=1, write_board=0), wavefronts=4)
WAITING = bound.issued(Instruction(0, "PT", "HMMA.884.F32.F32.STEP0", (), stall=2, waits=1))


@pytest.mark.parametrize(
    ("tile", "share", "limit"),
    [
        ([PRODUCT] * 8, 1.0, "tensor"),
        ([PRODUCT] * 8 + [MULTIPLY] * 4, 1.0, "tensor"),  # 16 cycles of tensor, 12 of issue, 8 of float32
        ([PRODUCT] * 4 + [MULTIPLY] * 8, 0.5, "multiply"),
        ([PRODUCT] * 8 + [EXPONENTIAL] * 4, 0.5, "function"),
        ([PRODUCT] * 8 + [LOAD] * 2, 0.5, "memory"),  # 8 wavefronts here, as many on each other sub-core
        ([PRODUCT] * 8 + [BARRIER] * 24, 0.5, "issue"),
    ],
)
def test_throughput(tile: list[bound.Issued], share: float, limit: str) -> None:
    assert bound.throughput(tile) == (share, limit)


def test_conflicts_count() -> None:
    conflict = bound.issued(LOAD.instruction, wavefronts=32)
    assert bound.throughput([PRODUCT] * 64 + [conflict])[0] == 1.0
    assert bound.throughput([PRODUCT] * 32 + [conflict])[0] == 0.5


def test_in_order_alone() -> None:
    assert bound.in_order([PRODUCT] * 100, 1, 1) == pytest.approx(1)
    # 100 cycles of products, then 100 of float32, one after the other
    assert bound.in_order([PRODUCT] * 50 + [MULTIPLY] * 50, 1, 1) == pytest.approx(0.5, abs=0.02)


def test_in_order_waits_for_loads() -> None:
    """A product that needs a load stands still for 26 cycles and the load's own 16."""
    assert bound.in_order([LOAD, WAITING], 1, 1) == pytest.approx(2 / (2 + 26 + 16), abs=0.02)


def test_second_cta_fills_the_gaps() -> None:
    tile = [PRODUCT] * 50 + [MULTIPLY] * 50
    assert bound.in_order(tile, 2, 1) > 0.85  # 0.5 alone


def test_barriers_keep_warps_of_a_cta_together() -> None:
    """Between barriers both warps want the same pipe: two of one CTA gain less than one each of two CTAs."""
    tile = [*[PRODUCT] * 50, BARRIER, *[MULTIPLY] * 50, BARRIER]
    assert bound.in_order(tile, 1, 2) < 0.55
    assert bound.in_order(tile, 2, 1) > 0.7


def test_ctas_of_an_sm() -> None:
    assert bound.ctas_per_sm(255, 128, 1024) == 2  # 8192 registers a warp, 64 KiB of them a sub-core
    assert bound.ctas_per_sm(32, 128, 33 * 1024) == 2
    assert bound.ctas_per_sm(32, 1024, 0) == 2
    assert bound.ctas_per_sm(16, 32, 0) == 32
    assert bound.ctas_per_sm(255, 512, 1024) == 0
