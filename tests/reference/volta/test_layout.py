"""The algebra, by its properties: each operation against what it means for functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reference.volta.layout import Layout, coalesce, composition, flatten, row_major
from reference.volta.swizzle import Composed, Swizzle

MODES = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=4)
POWERS = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8, 16])), max_size=4)


def flat(modes):
    return Layout(tuple(n for n, _ in modes), tuple(d for _, d in modes))


def nested(modes):
    """The same axes, those behind the first in one."""
    (n, d), *rest = modes
    return Layout((n, tuple(n for n, _ in rest)), (d, tuple(d for _, d in rest))) if rest else Layout(n, d)


@given(MODES)
def test_an_index_counts_through_coordinates_the_first_axis_fastest(modes):
    layout = flat(modes)
    coordinates = np.ndindex(*(n for n, _ in reversed(modes)))  # the last axis fastest: reversed
    by_coordinate = [layout(*reversed(at)) for at in coordinates]
    by_index = [layout(index) for index in range(layout.size)]
    assert by_coordinate == by_index == layout.addresses().tolist()
    assert max(by_index) + 1 == layout.cosize


@given(MODES)
def test_nesting_changes_no_address(modes):
    assert nested(modes).addresses().tolist() == flat(modes).addresses().tolist()
    assert [nested(modes)(i) for i in range(flat(modes).size)] == flat(modes).addresses().tolist()


def test_a_nested_axis_takes_an_index_or_a_coordinate():
    layout = Layout((2, (2, 3)), (2, (1, 4)))
    assert layout(1, 5) == layout(1, (1, 2)) == layout((1, (1, 2))) == layout(11) == 11


@given(MODES)
def test_coalescing_keeps_the_function_and_joins_what_can_be_joined(modes):
    layout, joined = nested(modes), coalesce(nested(modes))
    assert joined.addresses().tolist() == layout.addresses().tolist()
    shape, stride = flatten(joined.shape), flatten(joined.stride)
    assert all(n > 1 for n in shape) or shape == (1,)
    pairs = zip(shape, stride, shape[1:], stride[1:], strict=False)
    assert not any(d * n == next_d for n, d, _, next_d in pairs)


@settings(deadline=None)
@given(MODES, MODES)
def test_composition_is_composition(outer, inner):
    """Whatever it accepts is right; and it keeps the axes of the inner layout."""
    outer, inner = nested(outer), nested(inner)
    try:
        both = composition(outer, inner)
    except ValueError:
        assume(False)
    assert [both(i) for i in range(both.size)] == [outer(inner(i)) for i in range(inner.size)]
    if isinstance(inner.shape, tuple):
        at = tuple(
            n - 1 if isinstance(n, int) else np.prod(flatten(n), dtype=int).item() - 1 for n in inner.shape
        )
        assert both(*at) == outer(inner(*at))


@settings(deadline=None)
@given(POWERS, st.integers(0, 3), st.randoms())
def test_composition_accepts_every_way_to_cut_and_reorder_powers_of_two(modes, cut, random):
    outer = flat(modes) if modes else Layout(1, 0)
    bits = list(range(outer.size.bit_length() - 1))
    random.shuffle(bits)
    first, rest = bits[:cut], bits[cut:]
    inner = Layout(
        (tuple(2 for _ in first), tuple(2 for _ in rest)),
        (tuple(1 << b for b in first), tuple(1 << b for b in rest)),
    )  # a permutation of the bits of the index
    both = composition(outer, inner)
    assert both.addresses().tolist() == [outer(inner(i)) for i in range(inner.size)]


def test_composition_refuses_what_is_no_layout():
    with pytest.raises(ValueError, match="is not a layout"):
        composition(Layout((4, 2), (1, 8)), Layout(3, 3))  # 0, 3, 6 lie at 0, 3, 10
    with pytest.raises(ValueError, match="is not a layout"):
        composition(Layout((4, 2), (1, 8)), Layout((4, 2), (1, 3)))  # 3 + 3 carries
    with pytest.raises(ValueError, match="reaches index 8, beyond the 8"):
        composition(Layout(8, 1), Layout(9, 1))


@given(st.integers(0, 4), st.integers(0, 3), st.integers(0, 4), st.integers(0, 2000))
def test_a_swizzle_undoes_itself_and_keeps_all_but_its_bits(bits, base, more, address):
    swizzle = Swizzle(bits, base, bits + more)
    assert swizzle(swizzle(address)) == address
    assert (swizzle(address) ^ address) & ~(((1 << bits) - 1) << base) == 0


def test_a_swizzle_permutes():
    assert sorted(map(Swizzle(3, 3, 3), range(512))) == list(range(512))


def test_a_composed_layout_is_both_in_turn():
    inner, swizzle = row_major(8, 64), Swizzle(3, 3, 3)
    composed = Composed(swizzle, inner)
    assert composed.size == 512
    assert composed(3, 8) == swizzle(inner(3, 8)) == 3 * 64 + (1 ^ 3) * 8
    assert composed.addresses().tolist() == [swizzle(inner(i)) for i in range(512)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout((2, 3), 1), "must nest alike"),
        (lambda: Layout((2, (3, 4)), (1, 2)), "must nest alike"),
        (lambda: Layout(0, 1), "lengths start at 1"),
        (lambda: Layout(2, -1), "strides at 0"),
        (lambda: Swizzle(3, 0, 2), "bits <= shift"),
    ],
)
def test_what_is_no_layout_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("at", [(6,), (2, 0), (0, 3), (0, 0, 0), (-1, 0)])
def test_coordinates_out_of_range_are_refused(at):
    with pytest.raises(IndexError):
        Layout((2, 3), (3, 1))(*at)
