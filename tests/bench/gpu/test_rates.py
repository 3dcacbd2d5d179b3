"""What the probes compute, multiplied out again by the fragment maps of the specification."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fastattention.gpu import rates

from reference.volta import fragments as maps

#: Rows, columns and depth of an instruction; registers of A and B; maps of A, B and the result.
SHAPES = {
    80: (16, 8, 16, 4, 2, maps.m16n8k16_a, maps.m16n8k16_b, maps.m16n8_c),
    75: (16, 8, 8, 2, 1, maps.m16n8k8_a, maps.m16n8k8_b, maps.m16n8_c),
    70: (8, 8, 4, 2, 2, maps.m8n8k4_a_row, maps.m8n8k4_b_col, maps.m8n8k4_c_f32),
}


def product(atom: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the results of each lane, added up, of one instruction; a, b: (registers, 32, 2)."""
    rows, columns, depth, _, _, map_a, map_b, map_c = SHAPES[atom]
    sums = np.zeros(32)
    parts = [np.flatnonzero(maps.quad_pair(np.arange(32)) == p) for p in range(4)]
    for lanes in parts if atom == 70 else [np.arange(32)]:  # m8n8k4 is four products at once
        left, right = np.full((rows, depth), np.nan), np.full((depth, columns), np.nan)
        for matrix, held, where in ((left, a, map_a), (right, b, map_b)):
            for lane in lanes.tolist():
                for i, number in enumerate(held[:, lane].reshape(-1)):
                    matrix[where(lane, i)] = number
        result = left @ right
        for lane in lanes.tolist():
            sums[lane] = sum(result[map_c(lane, i)] for i in range(8 if atom == 70 else 4))
    return sums


@pytest.mark.parametrize(("atom", "bfloat"), [(80, False), (80, True), (75, False), (70, False)])
def test_operands_are_laid_out_as_the_instruction_takes_them(atom: int, bfloat: bool) -> None:
    dtype: Any = ml_dtypes.bfloat16 if bfloat else np.float16
    words, sums, magnitudes = rates.operands(atom, bfloat)
    rows, columns = SHAPES[atom][3:5]
    assert words.shape == (2 * rows + 4 * columns, 32)
    assert words.dtype == np.uint32
    numbers = np.stack([words & 0xFFFF, words >> 16], -1).astype(np.uint16).view(dtype).astype(np.float64)
    a = numbers[: 2 * rows].reshape(2, rows, 32, 2)
    b = numbers[2 * rows :].reshape(4, columns, 32, 2)
    np.testing.assert_allclose(sum(product(atom, x, y) for x in a for y in b), sums, rtol=1e-9)
    assert (magnitudes > np.abs(sums)).all()
    assert np.abs(numbers).min() > 0, "no zeros: they cost less power"


def test_flops_are_those_of_a_step() -> None:
    # Eight results a step: two operands of rows, four of columns.
    for name, size in (("m16n8k16", 16 * 8 * 16), ("m16n8k8", 16 * 8 * 8), ("m8n8k4", 4 * 8 * 8 * 4)):
        assert rates.LIMITS[name].flops == 8 * 2 * size


def test_limits_of_cards() -> None:
    assert rates.limits_of((7, 0)) == ["m8n8k4", "float32 FMA"]
    assert rates.limits_of((7, 5)) == ["m16n8k8", "m8n8k4", "float32 FMA"]
    assert rates.limits_of((9, 0)) == list(rates.LIMITS)


@pytest.mark.parametrize(("capability", "emulated"), [((7, 0), False), ((7, 5), False), ((8, 0), True)])
def test_only_newer_cards_emulate(capability: tuple[int, int], emulated: bool) -> None:
    assert rates.LIMITS["m8n8k4"].emulated(capability) == emulated
    assert not rates.LIMITS["m16n8k8"].emulated(capability)


def test_probes_include_nothing() -> None:
    from fastattention.gpu.compile import PROBES

    sources = sorted(PROBES.glob("*.cu"))
    assert [path.stem for path in sources] == ["fma_rate", "normal", "tensor_rate"]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert "#include" not in text
        assert f'extern "C" __global__ void __launch_bounds__({rates.THREADS}) {path.stem}(' in text
