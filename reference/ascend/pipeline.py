"""A discrete-event model of units that work in order, wait for flags, and share buffers.

A **unit** (copy engine, Cube, Vector) runs its tasks one at a time, in program order. A **flag** is set at a
task's end, some cycles late, and waited for before another's start. A **ring** is a place for so many
operands in a buffer: a task that takes a slot waits until the one that had it before is done. A ring of no
slots is a counting flag: who sets it adds a slot, who takes it waits for the oldest. So a task starts at

    max(end of the unit's last task, its flags, its slots),

and the events of a whole program follow from one walk through it, in program order. All times are integers.

Attention repeats the same tasks thousands of times, and a state (when each unit, flag and slot is free) that
comes back, but for a shift in time, brings the same future. `Engine.run` remembers what a piece of program
did to a state, and jumps ahead by whole periods once a state recurs. This is exact, not an approximation:
times before the moment when the first unit is free cannot matter, so they are all the same to a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias


class Task(NamedTuple):
    """One thing that a unit does.

    Attributes
    ----------
    unit, name : str
        Who does what.
    cycles : int
        How long it takes.
    waits : tuple of str
        Flags that must have been set; a flag never set is down and does not hold anybody up.
    sets : tuple of (str, int)
        Flags to set at the end, or slots to add to a ring, each visible so many cycles later.
    takes, frees : tuple of str
        Rings: a slot taken at the start, one freed at the end.
    """

    unit: str
    name: str
    cycles: int
    waits: tuple[str, ...] = ()
    sets: tuple[tuple[str, int], ...] = ()
    takes: tuple[str, ...] = ()
    frees: tuple[str, ...] = ()


class Ring(NamedTuple):
    """So many slots of so many bytes in a buffer."""

    buffer: str
    slots: int
    bytes: int


class Span(NamedTuple):
    """A task in time, in cycles."""

    unit: str
    name: str
    start: int
    end: int


class Holding(NamedTuple):
    """A slot of a ring in time: from the start of the task that took it to the end of who freed it."""

    ring: str
    start: int
    end: int


class Timeline(NamedTuple):
    """What happened when."""

    spans: list[Span]
    held: list[Holding]
    end: int


@dataclass(frozen=True, eq=False)
class Piece:
    """Tasks in program order; a piece is equal to itself only, so that it is quickly found again."""

    tasks: tuple[Task, ...]

    @cached_property
    def work(self) -> Counter[str]:
        """Cycles of each unit."""
        total: Counter[str] = Counter()
        for task in self.tasks:
            total[task.unit] += task.cycles
        return total


#: Pieces, and how many times each is run.
Program: TypeAlias = Sequence[tuple[Piece, int]]
_State: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]


class Engine:
    """Units, flags and rings, and the walk through a program.

    Parameters
    ----------
    rings : mapping of str to Ring
        By name.
    capacities : mapping of str to int
        Bytes of each buffer.

    Raises
    ------
    ValueError
        When the rings of a buffer are larger than the buffer.

    Examples
    --------
    Two slots let loading and working overlap; with one they take turns.

    >>> def load_and_work(slots):
    ...     load = Task("copy", "load", 10, sets=(("loaded", 0),), takes=("in",))
    ...     work = Task("cube", "work", 10, waits=("loaded",), frees=("in",))
    ...     return Engine({"in": Ring("L1", slots, 100)}, {"L1": 200}).run([(Piece((load, work)), 1000)])
    >>> load_and_work(2), load_and_work(1)
    (10010, 20000)
    """

    def __init__(self, rings: Mapping[str, Ring], capacities: Mapping[str, int]) -> None:
        self.rings = dict(rings)
        self.capacities = dict(capacities)
        need: Counter[str] = Counter()
        for ring in self.rings.values():
            need[ring.buffer] += ring.slots * ring.bytes
        for buffer, size in need.items():
            if size > self.capacities[buffer]:
                raise ValueError(f"{buffer} has {self.capacities[buffer]} bytes, its rings need {size}")
        self._index = {name: i for i, name in enumerate(self.rings)}
        self._units: dict[str, int] = {}
        self._flags: dict[str, int] = {}
        self._programs: dict[Piece, list[_Compiled]] = {}
        self._steps: dict[tuple[Piece, _State], tuple[_State, int]] = {}

    def run(self, program: Program, *, compress: bool = True) -> int:
        """Return the cycles a program takes, from rest; without `compress`, by walking through all of it."""
        self._learn(program)
        state, now = self._rest(), 0
        for piece, count in program:
            seen: dict[_State, tuple[int, int]] = {}
            i = 0
            while i < count:
                if compress and state in seen:
                    before, then = seen[state]
                    periods, rest = divmod(count - i, i - before)
                    now += periods * (now - then)
                    i = count - rest
                    seen = {}  # the rest is shorter than a period: no state recurs
                    if not rest:
                        break
                elif compress:
                    seen[state] = i, now
                state, moved = self._step(state, piece, remember=compress)
                now += moved
                i += 1
        return now + max(state[0], default=0)

    def timeline(self, program: Program) -> Timeline:
        """Return every task and every slot in time."""
        self._learn(program)
        state = self._rest()
        spans: list[Span] = []
        open_: dict[str, list[int]] = {name: [] for name in self.rings}
        held: list[Holding] = []
        units, flags, slots = list(state[0]), list(state[1]), [list(ring) for ring in state[2]]
        for piece, count in program:
            for _ in range(count):
                starts = self._walk(self._programs[piece], units, flags, slots)
                for task, start in zip(piece.tasks, starts, strict=True):
                    end = start + task.cycles
                    spans.append(Span(task.unit, task.name, start, end))
                    for name in task.takes:
                        if self.rings[name].slots:
                            open_[name].append(start)
                    held += [Holding(name, open_[name].pop(0), end) for name in task.frees]
        end = max((span.end for span in spans), default=0)
        held += [Holding(name, start, end) for name, starts in open_.items() for start in starts]
        return Timeline(spans, held, end)

    def _learn(self, program: Program) -> None:
        """Number the units and flags of new pieces of program; a state of before has no place for them."""
        for piece, _ in program:
            if piece in self._programs:
                continue
            sizes = len(self._units), len(self._flags)
            self._programs[piece] = [
                _Compiled(
                    self._units.setdefault(task.unit, len(self._units)),
                    task.cycles,
                    tuple(self._flags.setdefault(flag, len(self._flags)) for flag in task.waits),
                    tuple(
                        (self._flags.setdefault(flag, len(self._flags)), late)
                        for flag, late in task.sets
                        if flag not in self._index
                    ),
                    tuple((self._index[flag], late) for flag, late in task.sets if flag in self._index),
                    tuple(self._index[ring] for ring in task.takes),
                    tuple(self._index[ring] for ring in task.frees),
                    task.name,
                )
                for task in piece.tasks
            ]
            if sizes != (len(self._units), len(self._flags)):
                self._steps.clear()

    def _rest(self) -> _State:
        rings = tuple((0,) * ring.slots for ring in self.rings.values())
        return (0,) * len(self._units), (0,) * len(self._flags), rings

    def _step(self, state: _State, piece: Piece, *, remember: bool) -> tuple[_State, int]:
        """Return the state after a piece, its first free unit's time being 0, and that time."""
        key = piece, state
        if remember and key in self._steps:
            return self._steps[key]
        units, flags, slots = list(state[0]), list(state[1]), [list(ring) for ring in state[2]]
        self._walk(self._programs[piece], units, flags, slots)
        floor = min(units)
        after = (
            tuple(t - floor for t in units),
            tuple(max(t - floor, 0) for t in flags),
            tuple(tuple(max(t - floor, 0) for t in ring) for ring in slots),
        )
        if remember:
            self._steps[key] = after, floor
        return after, floor

    def _walk(
        self, tasks: Iterable[_Compiled], units: list[int], flags: list[int], slots: list[list[int]]
    ) -> list[int]:
        """Run tasks, changing the times of units, flags and free slots; return when each started."""
        starts = []
        for unit, cycles, waits, sets, posts, takes, frees, name in tasks:
            start = units[unit]
            for flag in waits:
                start = max(start, flags[flag])
            for ring in takes:
                if not slots[ring]:
                    raise RuntimeError(
                        f"{name!r} waits for {list(self.rings)[ring]}, which only a later task frees"
                    )
                start = max(start, slots[ring].pop(0))
            end = start + cycles
            for ring in frees:
                slots[ring].append(end)
            for ring, late in posts:
                slots[ring].append(end + late)
            for flag, late in sets:
                flags[flag] = end + late
            units[unit] = end
            starts.append(start)
        return starts


class _Compiled(NamedTuple):
    """A task with numbers for names."""

    unit: int
    cycles: int
    waits: tuple[int, ...]
    sets: tuple[tuple[int, int], ...]
    posts: tuple[tuple[int, int], ...]
    takes: tuple[int, ...]
    frees: tuple[int, ...]
    name: str


def work(program: Program) -> Counter[str]:
    """Return the cycles each unit works, whatever it waits for: no program is faster than its busiest unit.

    Examples
    --------
    >>> work([(Piece((Task("cube", "product", 10), Task("copy", "load", 3))), 5)])
    Counter({'cube': 50, 'copy': 15})
    """
    total: Counter[str] = Counter()
    for piece, count in program:
        for unit, cycles in piece.work.items():
            total[unit] += count * cycles
    return total
