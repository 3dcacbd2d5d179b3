"""AllReduce in tiles: the unsplit answer; the schedule against a simulation; best blocks by brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from reference import tiling_allreduce as tiles
from reference.tiling_allreduce import Costs

GRID = [
    Costs(1.0, communication, a, b, phi)
    for communication in (0.1, 0.5, 1.0, 2.5)
    for a, b in ((0.0, 0.0), (0.02, 0.0), (0.0, 0.03), (0.02, 0.01), (0.2, 0.3))
    for phi in (1.0, 1.25, 2.0)
]


def simulated(computes, communications, slowdown, step=1e-3):
    """Two machines, a small step of time after the other."""
    left, sums = list(computes), list(communications)
    computed = summed = 0
    time = 0.0
    while summed < len(sums):
        busy = summed < computed
        if computed < len(left):
            left[computed] -= step / (slowdown if busy else 1.0)
        if busy:
            sums[summed] -= step
            summed += sums[summed] <= 0
        if computed < len(left) and left[computed] <= 0:
            computed += 1
        time += step
    return time


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sizes", [[7], [1, 6], [1, 4, 2], [1] * 7], ids=str)
def test_equals_unsplit(ranks, sizes, make, rng, feature):
    q, k, v = make(Hq=8, Hkv=4, Sq=7, Sk=9)
    w_out = rng.standard_normal((32, 5))
    options = feature(rng, 2, 8, 7, 9)
    want = tiles.projected(q, k, v, w_out, **options)
    got = tiles.tiled(q, k, v, w_out, ranks=ranks, sizes=sizes, **options)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_schedule_equals_a_simulation(rng):
    for _ in range(20):
        number = int(rng.integers(1, 6))
        computes, sums = rng.uniform(0.1, 1.0, (2, number)).tolist()
        slowdown = float(rng.choice([1.0, 1.2, 3.0]))
        found = tiles.schedule(computes, sums, slowdown)
        assert found.time == pytest.approx(simulated(computes, sums, slowdown), abs=2e-3 * (2 * number + 1))


def test_nothing_overlaps_on_one_machine_and_order_is_kept(rng):
    found = tiles.schedule(*rng.uniform(0.1, 1.0, (2, 9)).tolist(), 1.5)
    for line in (found.compute, found.communication):
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(line))
    assert all(c[1] <= m[0] for c, m in zip(found.compute, found.communication, strict=True))


@pytest.mark.parametrize("costs", GRID, ids=str)
def test_closed_form_is_the_schedule_of_equal_blocks(costs):
    for number in (1, 2, 3, 7, 20):
        computes, sums = tiles.block_costs([1] * number, costs)
        assert tiles.time(number, costs) == pytest.approx(tiles.schedule(computes, sums, costs.slowdown).time)


def test_formula_of_one_overhead():
    for C, M in ((1.0, 0.4), (0.4, 1.0)):
        costs = Costs(C, M, *((0.01, 0.0) if C >= M else (0.0, 0.01)))
        for n in (1, 2, 5, 9):
            want = C / n + (n - 1) * max(C, M) / n + M / n + n * 0.01
            assert tiles.time(n, costs) == pytest.approx(want)


@pytest.mark.parametrize("costs", GRID, ids=str)
def test_best_number_by_brute_force(costs):
    for most in (1, 2, 5, 60):
        best = min(tiles.time(n, costs) for n in range(1, most + 1))
        assert tiles.time(tiles.best_number(costs, most), costs) == pytest.approx(best, rel=1e-12)


def cuts(rows, number):
    for edges in itertools.combinations(range(1, rows), number - 1):
        yield [b - a for a, b in itertools.pairwise((0, *edges, rows))]


SKEWED = [replace(costs, skew=skew) for costs in GRID for skew in (-0.4, 0.0, 0.6, 1.0)]


def longest_path(sizes, costs):
    """The longest of the paths P_j in the module's docstring, term by term."""
    computes, sums = tiles.block_costs(sizes, costs)
    gained = 1 - 1 / costs.slowdown
    return max(sum(computes[: j + 1]) + gained * sum(sums[:j]) + sum(sums[j:]) for j in range(len(sizes)))


@pytest.mark.parametrize("costs", SKEWED, ids=str)
def test_time_is_the_longest_path(costs, rng):
    for _ in range(5):
        sizes = rng.integers(1, 9, int(rng.integers(1, 7))).tolist()
        found = tiles.schedule(*tiles.block_costs(sizes, costs), costs.slowdown).time
        assert found == pytest.approx(longest_path(sizes, costs), rel=1e-12)


@pytest.mark.parametrize("costs", SKEWED, ids=str)
@pytest.mark.parametrize(("rows", "unit"), [(12, 1), (35, 3)])
def test_best_sizes_by_brute_force(costs, rows, unit):
    def time(sizes):
        return tiles.schedule(*tiles.block_costs(sizes, costs), costs.slowdown).time

    def of_rows(units):
        return [*(unit * size for size in units[:-1]), rows - unit * sum(units[:-1])]

    brute = {n: min(time(of_rows(sizes)) for sizes in cuts(12, n)) for n in (1, 2, 3, 5)}
    for number, best in brute.items():
        sizes = tiles.best_sizes(rows, number, costs, unit)
        assert (sum(sizes), len(sizes)) == (rows, number)
        assert all(size % unit == 0 for size in sizes[:-1])
        assert time(sizes) == pytest.approx(best, rel=1e-12)
    assert time(tiles.choose(rows, costs, most=5, unit=unit)) <= min(brute.values()) * (1 + 1e-12)


def test_of_causal_rows_later_blocks_have_fewer():
    """Half of the queries, the later ones, are three quarters of causal attention."""
    even, skewed = (tiles.best_sizes(4096, 4, Costs(1.0, 1.0, skew=skew)) for skew in (0.0, 1.0))
    assert even == [1024] * 4
    assert skewed[1] > skewed[2] > skewed[3]
    costs = Costs(1.0, 1.0, skew=1.0)

    def time(sizes):
        return tiles.schedule(*tiles.block_costs(sizes, costs)).time

    assert time(skewed) < time(even)


def test_skew_is_what_causal_attention_costs():
    """Counted pair by pair: Sq queries among Sk keys, and a product of each row."""
    Sq, Sk, product = 24, 40, 7.0
    rows = (
        np.arange(Sk - Sq, Sk) + 0.5 + product
    )  # visible keys of each row, the diagonal's half a pair early
    skew = (rows[-1] - rows[0] + 1) / (2 * rows.mean())
    shares = [tiles.work(x / Sq, skew) for x in range(Sq + 1)]
    np.testing.assert_allclose(np.diff(shares), rows / rows.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiles.heads_of(0, 2, 9, 3), "9 query and 3 KV heads"),
        (lambda: tiles.heads_of(2, 2, 4, 4), "rank 2"),
        (lambda: tiles.even_sizes(3, 4), "3 rows"),
        (lambda: tiles.best_sizes(3, 4, Costs(1.0, 1.0)), "3 rows"),
        (lambda: tiles.best_number(Costs(1.0, 1.0), 0), "most"),
        (lambda: tiles.schedule([1.0], []), "1 computes and 0 sums"),
        (lambda: Costs(1.0, -1.0), "at least 0"),
        (lambda: Costs(1.0, 1.0, slowdown=0.9), "slowdown"),
        (lambda: Costs(1.0, 1.0, skew=1.5), "skew must be from -1 to 1, got 1.5"),
        (lambda: Costs(1.0, 1.0, skew=float("nan")), "skew"),
        (lambda: tiles.time(2, Costs(1.0, 1.0, skew=0.5)), "a skew of 0.5"),
        (lambda: tiles.best_sizes(9, 4, Costs(1.0, 1.0), unit=3), "3 units of 3 rows"),
        (lambda: tiles.slowdown(4, 4), "4 of 4"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("sizes", [[], [3], [0, 7], [8]])
def test_sizes_must_make_up_the_sequence(sizes, make):
    q, k, v = make(Sq=7)
    with pytest.raises(ValueError, match="add up to Sq = 7"):
        tiles.tiled(q, k, v, np.zeros((16, 2)), ranks=1, sizes=sizes)
