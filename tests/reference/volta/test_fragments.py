"""The maps: each a bijection, equal to its layout, and right in a full product."""

from __future__ import annotations

import numpy as np
import pytest

from reference.volta import fragments
from reference.volta.fragments import FRAGMENTS, LAYOUTS, QUAD_PAIR, Fragment, collect, distribute
from reference.volta.layout import Layout
from reference.volta.warp import mma_m8n8k4, mma_m16n8k8, mma_m16n8k16, shfl_xor


def integers(rng, *shape):
    """Small integers: their products and sums are exact in float16 and float32."""
    return rng.integers(-3, 4, shape).astype(np.float16)


@pytest.mark.parametrize("name", FRAGMENTS)
def test_every_element_is_in_one_register_of_one_lane(name):
    fragment = FRAGMENTS[name]
    group = np.broadcast_to(fragment.group, fragment.rows.shape)
    places = set(
        zip(
            group.ravel().tolist(),
            fragment.rows.ravel().tolist(),
            fragment.columns.ravel().tolist(),
            strict=True,
        )
    )
    rows, columns = fragment.shape
    assert places == {
        (g, r, c) for g in range(fragment.matrices) for r in range(rows) for c in range(columns)
    }
    assert len(places) == fragment.rows.size  # no element twice


@pytest.mark.parametrize("name", FRAGMENTS)
def test_collect_undoes_distribute(name, rng):
    fragment = FRAGMENTS[name]
    matrices = rng.standard_normal((fragment.matrices, *fragment.shape))
    np.testing.assert_array_equal(collect(distribute(matrices, fragment), fragment), matrices)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layouts_say_the_same_as_the_functions(name):
    fragment, layout = FRAGMENTS[name], LAYOUTS[name]
    assert isinstance(layout, Layout)
    for t in range(8):
        lane = QUAD_PAIR(t)
        for i in range(fragment.registers):
            row, column = fragment.place(lane, i)
            assert layout(t, i) == row + fragment.shape[0] * column, (t, i)


def test_quad_pairs():
    lanes = {p: [lane for lane in range(32) if fragments.quad_pair(lane) == p] for p in range(4)}
    assert lanes[0] == [0, 1, 2, 3, 16, 17, 18, 19]
    assert lanes[3] == [12, 13, 14, 15, 28, 29, 30, 31]
    for pair in lanes.values():
        assert [fragments.quad_lane(lane) for lane in pair] == list(range(8))


#: The PTX manual's rules, case by case: (lane, i) -> (row, column). `low` is the half warp of lanes below 16,
#: `group` the lane by 4, `place` the lane modulo 4.
MANUAL = {
    "m8n8k4 A row": lambda low, group, place, lane, i: (place if low else place + 4, i),
    "m8n8k4 A col": lambda low, group, place, lane, i: (i % 4 if low else i % 4 + 4, place),
    "m8n8k4 B row": lambda low, group, place, lane, i: (place, i if low else i + 4),
    "m8n8k4 B col": lambda low, group, place, lane, i: (i, place if low else place + 4),
    "m8n8k4 C f16": lambda low, group, place, lane, i: (place if low else place + 4, i),
    "m8n8k4 C f32": lambda low, group, place, lane, i: (
        (lane % 2 + (2 if i in (2, 3, 6, 7) else 0)) + (0 if low else 4),
        (4 if i >= 4 else 0) + (2 if place >= 2 else 0) + i % 2,
    ),
    "m16n8k8 A": lambda low, group, place, lane, i: (group if i < 2 else group + 8, place * 2 + i % 2),
    "m16n8k8 B": lambda low, group, place, lane, i: (place * 2 + i, group),
    "m16n8k16 A": lambda low, group, place, lane, i: (
        group if i < 2 or 4 <= i < 6 else group + 8,
        place * 2 + i % 2 + (0 if i < 4 else 8),
    ),
    "m16n8k16 B": lambda low, group, place, lane, i: (place * 2 + i % 2 + (0 if i < 2 else 8), group),
    "m16n8 C": lambda low, group, place, lane, i: (group if i < 2 else group + 8, place * 2 + i % 2),
    "ldmatrix": lambda low, group, place, lane, i: (group, place * 2 + i),
    "ldmatrix trans": lambda low, group, place, lane, i: (place * 2 + i, group),
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_against_the_rules_of_the_manual(name):
    """Written down a second time, in the manual's words: a bijection alone need not be the hardware's."""
    fragment = FRAGMENTS[name]
    for lane in range(32):
        for i in range(fragment.registers):
            rule = MANUAL[name](lane < 16, lane // 4, lane % 4, lane, i)
            assert (fragment.rows[lane, i], fragment.columns[lane, i]) == rule, (lane, i)
            assert fragment.place(lane, i) == rule  # plain integers, too


def test_a_lane_of_the_manuals_figures():
    c = fragments.m8n8k4_c_f32
    assert [c(3, i) for i in range(8)] == [(1, 2), (1, 3), (3, 2), (3, 3), (1, 6), (1, 7), (3, 6), (3, 7)]
    assert [c(16, i) for i in range(4)] == [(4, 0), (4, 1), (6, 0), (6, 1)]


@pytest.mark.parametrize("accumulator", [np.float32, np.float16])
@pytest.mark.parametrize("b_order", ["row", "col"])
@pytest.mark.parametrize("a_order", ["row", "col"])
def test_m8n8k4_is_four_products(a_order, b_order, accumulator, rng):
    A, B, C = integers(rng, 4, 8, 4), integers(rng, 4, 4, 8), integers(rng, 4, 8, 8)
    a = distribute(A, FRAGMENTS[f"m8n8k4 A {a_order}"])
    b = distribute(B, FRAGMENTS[f"m8n8k4 B {b_order}"])
    c_fragment = FRAGMENTS["m8n8k4 C f16" if accumulator == np.float16 else "m8n8k4 C f32"]
    d = mma_m8n8k4(a, b, distribute(C.astype(accumulator), c_fragment), a_order=a_order, b_order=b_order)
    assert d.dtype == accumulator
    np.testing.assert_array_equal(collect(d, c_fragment), A @ B + C)


@pytest.mark.parametrize(("mma", "k"), [(mma_m16n8k8, 8), (mma_m16n8k16, 16)])
def test_m16n8(mma, k, rng):
    A, B, C = integers(rng, 16, k), integers(rng, k, 8), integers(rng, 16, 8).astype(np.float32)
    a, b = distribute(A, FRAGMENTS[f"m16n8k{k} A"]), distribute(B, FRAGMENTS[f"m16n8k{k} B"])
    d = mma(a, b, distribute(C, FRAGMENTS["m16n8 C"]))
    np.testing.assert_array_equal(collect(d, FRAGMENTS["m16n8 C"])[0], A @ B + C)


def test_m16n8k16_is_two_steps_of_m16n8k8(rng):
    a, b, c = integers(rng, 32, 8), integers(rng, 32, 4), integers(rng, 32, 4).astype(np.float32)
    two = mma_m16n8k8(a[:, 4:], b[:, 2:], mma_m16n8k8(a[:, :4], b[:, :2], c))
    np.testing.assert_array_equal(mma_m16n8k16(a, b, c), two)


def test_float16_results_of_volta_are_operands_as_they_lie(rng):
    D = rng.standard_normal((4, 8, 8))
    d = distribute(D, FRAGMENTS["m8n8k4 C f16"])
    for half in (0, 1):
        a = distribute(D[:, :, 4 * half : 4 * half + 4], FRAGMENTS["m8n8k4 A row"])
        np.testing.assert_array_equal(d[:, 4 * half : 4 * half + 4], a)


def test_results_of_turing_are_operands_as_they_lie(rng):
    D = rng.standard_normal((16, 8))
    np.testing.assert_array_equal(distribute(D, FRAGMENTS["m16n8 C"]), distribute(D, FRAGMENTS["m16n8k8 A"]))


def test_one_map_mixed_up_with_another_is_noticed(rng):
    """The product is wrong when an operand is laid out for the other order: the test above can fail."""
    A, B = integers(rng, 4, 8, 4), integers(rng, 4, 4, 8)
    a, b = distribute(A, FRAGMENTS["m8n8k4 A col"]), distribute(B, FRAGMENTS["m8n8k4 B col"])
    d = mma_m8n8k4(a, b, np.zeros((32, 8), np.float32))
    assert (collect(d, FRAGMENTS["m8n8k4 C f32"]) != A @ B).any()


def test_the_inner_dimension_may_be_permuted_alike_in_both_operands(rng):
    """Why a 16-byte load of Q and of K serves two products, whatever the order of its halves."""
    A, B = integers(rng, 4, 8, 4), integers(rng, 4, 4, 8)
    order = [2, 0, 3, 1]
    a = distribute(A[:, :, order], FRAGMENTS["m8n8k4 A row"])
    b = distribute(B[:, order], FRAGMENTS["m8n8k4 B col"])
    d = mma_m8n8k4(a, b, np.zeros((32, 8), np.float32))
    np.testing.assert_array_equal(collect(d, FRAGMENTS["m8n8k4 C f32"]), A @ B)


def test_shuffles():
    lane = np.arange(32)
    for mask in range(32):
        np.testing.assert_array_equal(shfl_xor(lane, mask), lane ^ mask)


def test_types_and_shapes_are_checked():
    half, single = np.zeros((32, 4), np.float16), np.zeros((32, 8), np.float32)
    with pytest.raises(TypeError, match="mma takes float16, float16 and an accumulator, got float32"):
        mma_m8n8k4(single[:, :4], half, single)
    with pytest.raises(TypeError, match="float64"):
        mma_m8n8k4(half, half, single.astype(np.float64))
    with pytest.raises(ValueError, match=r"expected registers \(32, 8\), got shape \(32, 4\)"):
        mma_m8n8k4(half, half, single[:, :4])


def test_a_fragment_of_ones_own():
    mine = Fragment(lambda lane, i: (lane >> 2, 2 * (lane & 3) + i), 2, (8, 8), 1)
    np.testing.assert_array_equal(mine.rows, FRAGMENTS["ldmatrix"].rows)
