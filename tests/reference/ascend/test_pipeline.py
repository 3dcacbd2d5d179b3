"""The engine against its own definition, stepped cycle by cycle, and against conservation."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.ascend.pipeline import Engine, Piece, Ring, Task, work

UNITS = ("copy", "cube", "vector")
FLAGS = ("f", "g")
RINGS = {"a": Ring("L1", 1, 10), "b": Ring("L1", 3, 5), "n": Ring("flags", 0, 0)}


@st.composite
def pieces(draw):
    """A piece of program that can be repeated: each ring is taken and freed in turn."""
    tasks = []
    for _ in range(draw(st.integers(1, 6))):
        unit, cycles = draw(st.sampled_from(UNITS)), draw(st.integers(1, 7))
        waits = tuple(draw(st.lists(st.sampled_from(FLAGS), max_size=2, unique=True)))
        sets = tuple((f, draw(st.integers(0, 4))) for f in draw(st.lists(st.sampled_from(FLAGS), max_size=1)))
        takes, frees = (), ()
        for ring in draw(st.lists(st.sampled_from(("a", "b")), max_size=2, unique=True)):
            takes, frees = (*takes, ring), (*frees, ring)
        tasks.append(Task(unit, "x", cycles, waits, sets, takes, frees))
    if draw(st.booleans()):  # one task takes, another frees, and a counting flag goes between
        late = draw(st.integers(0, 5))
        tasks.append(Task("copy", "first", draw(st.integers(1, 9)), sets=(("n", late),), takes=("b",)))
        tasks.append(Task("vector", "second", draw(st.integers(1, 9)), takes=("n",), frees=("b",)))
    return Piece(tuple(tasks))


def engine():
    return Engine(RINGS, {"L1": 25, "flags": 0})


def stepped(program):
    """Run a program cycle by cycle, from the rule alone: who may start now, does."""
    tasks = [task for piece, count in program for _ in range(count) for task in piece.tasks]
    setter: dict[str, tuple[int, int]] = {}
    needs: list[list[tuple[int, int]]] = []  # (task, cycles after its end)
    slots = {name: [(-1, 0)] * ring.slots for name, ring in RINGS.items()}
    for i, task in enumerate(tasks):
        needs.append([setter[flag] for flag in task.waits if flag in setter])
        needs[i] += [slots[ring].pop(0) for ring in task.takes]
        for ring in task.frees:
            slots[ring].append((i, 0))
        for flag, late in task.sets:
            if flag in RINGS:
                slots[flag].append((i, late))
            else:
                setter[flag] = i, late
    queues = {unit: [i for i, task in enumerate(tasks) if task.unit == unit] for unit in UNITS}
    starts: dict[int, int] = {}
    free = dict.fromkeys(UNITS, 0)
    now = 0
    while len(starts) < len(tasks):
        for unit, queue in queues.items():
            if queue and free[unit] <= now:
                ready = all(
                    j < 0 or (j in starts and starts[j] + tasks[j].cycles + late <= now)
                    for j, late in needs[queue[0]]
                )
                if ready:
                    i = queue.pop(0)
                    starts[i], free[unit] = now, now + tasks[i].cycles
        now += 1
    return [starts[i] for i in range(len(tasks))], max(
        starts[i] + task.cycles for i, task in enumerate(tasks)
    )


@settings(deadline=None, max_examples=150)
@given(program=st.lists(st.tuples(pieces(), st.integers(1, 4)), min_size=1, max_size=3))
def test_the_walk_is_the_cycle_by_cycle_run(program):
    timeline = engine().timeline(program)
    starts, end = stepped(program)
    assert [span.start for span in timeline.spans] == starts
    assert timeline.end == end == engine().run(program, compress=False)


@settings(deadline=None, max_examples=150)
@given(program=st.lists(st.tuples(pieces(), st.integers(0, 200)), min_size=1, max_size=4))
def test_compression_is_exact(program):
    one = engine()
    assert one.run(program) == engine().run(program, compress=False)
    assert one.run(program) == engine().run(program)  # what an engine remembers does no harm


@settings(deadline=None, max_examples=80)
@given(program=st.lists(st.tuples(pieces(), st.integers(1, 9)), min_size=1, max_size=3))
def test_conservation(program):
    timeline = engine().timeline(program)
    check_conservation(timeline, engine(), program)


def check_conservation(timeline, engine, program):
    """One thing at a time, nothing overfull, all work done and none else, no faster than the busiest unit."""
    done: Counter[str] = Counter()
    free: dict[str, int] = {}
    for unit, _, start, end in sorted(timeline.spans, key=lambda span: span.start):
        assert start >= free.get(unit, 0)
        free[unit] = end
        done[unit] += end - start
    assert done == work(program)
    assert timeline.end == max(free.values()) >= max(done.values())
    for buffer, capacity in engine.capacities.items():
        events = []
        for ring, start, end in timeline.held:
            if engine.rings[ring].buffer == buffer:
                events += [(start, 1, engine.rings[ring].bytes), (end, 0, -engine.rings[ring].bytes)]
        level = 0
        for _, _, change in sorted(events):  # at one moment, what is freed comes first
            level += change
            assert 0 <= level <= capacity


def test_a_million_blocks_in_no_time():
    load = Task("copy", "load", 7, sets=(("loaded", 3),), takes=("b",))
    product = Task("cube", "product", 11, waits=("loaded",), frees=("b",))
    one = engine()
    assert one.run([(Piece((load, product)), 10**6)]) == 10 + 11 * 10**6
    assert len(one._steps) < 20


def test_rings_larger_than_their_buffer_are_refused():
    with pytest.raises(ValueError, match="L1 has 24 bytes, its rings need 25"):
        Engine(RINGS, {"L1": 24, "flags": 0})


def test_a_program_that_cannot_go_on_says_so():
    stuck = Piece((Task("copy", "load", 1, takes=("a",)),))
    with pytest.raises(RuntimeError, match="'load' waits for a, which only a later task frees"):
        engine().run([(stuck, 2)])
