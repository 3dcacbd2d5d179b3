"""Standard attention on the NPU: operators one after the other, the whole S in memory between them.

S = Q K^T and P V are matrix products on the Cube cores; what lies between reads and writes all of S on the
Vector cores, operator by operator: scaling, adding the mask (when causal; none of its work is skipped),
softmax, and the casts to float32 and back that some models put around it. Each operator is a program of
`pipeline` for one core, its share of the work; S comes at L2's rate if that of all heads fits, else at
memory's.

How many operators there are decides everything, and is a matter of the code that one compares with:
`Operators` holds the choice. How each works is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .machine import Machine
from .pipeline import Engine, Piece, Program, Ring, Task
from .schedules import Problem, _copy, _up

_CHUNK = 4096  # elements that a Vector core takes at a time


@dataclass(frozen=True)
class Operators:
    """What the compared code does between its two products.

    Attributes
    ----------
    scale : bool
        Multiply S by the scale in an operator of its own.
    upcast : bool
        Cast S to float32, take its softmax there, cast P back: three operators for one.
    """

    scale: bool = True
    upcast: bool = False


class Operator(NamedTuple):
    """One operator: what a core runs, so many times, coming to rest in between."""

    name: str
    engine: Engine
    program: Program
    times: int

    def cycles(self) -> int:
        """Return the cycles of a core."""
        return self.times * self.engine.run(self.program)


def score_bytes(problem: Problem) -> int:
    """Return the bytes of S in 16 bits.

    Examples
    --------
    >>> score_bytes(Problem(16384, 16384)) / 2**20  # MiB, one head
    512.0
    """
    return problem.heads * problem.q_len * problem.k_len * 2


def fits(machine: Machine, problem: Problem) -> bool:
    """Say whether memory could hold S and P at all; `cycles` does not ask.

    Examples
    --------
    >>> [fits(Machine(), Problem(n, n, heads=32)) for n in (16384, 32768)]
    [True, False]
    """
    return 2 * score_bytes(problem) <= machine.hbm


def cycles(machine: Machine, problem: Problem, operators: Operators | None = None) -> int:
    """Return the cycles of standard attention.

    Examples
    --------
    >>> one, two = (cycles(Machine(), Problem(8192, 8192, heads=h)) for h in (8, 16))
    >>> round(two / one, 1)
    2.0
    """
    each = operator_list(machine, problem, operators)
    return sum(op.cycles() + machine.launch for op in each) + machine.dispatch * (len(each) - 1)


def operator_list(machine: Machine, problem: Problem, operators: Operators | None = None) -> list[Operator]:
    """Return the operators in order."""
    return list(_operators(machine, problem, Operators() if operators is None else operators))


def _operators(machine: Machine, problem: Problem, operators: Operators) -> Iterator[Operator]:
    m, p = machine, problem
    in_l2 = score_bytes(p) <= m.l2
    read = float(m.l2_read) if in_l2 else min(m.hbm_share, m.l2_read)
    write = float(m.l2_write) if in_l2 else min(m.hbm_share, m.l2_write)
    wide = max(p.head_dim, p.v_dim)
    tile = next((n for n in (128, 64, 32, 16) if max(n, wide) * n * 4 <= min(m.l0a, m.l0b, m.l0c // 2)), 0)
    if not tile:
        raise ValueError(f"L0A, L0B or L0C does not hold two tiles of 16 rows of head size {wide}")
    jobs = -(-p.heads * -(-p.q_len // tile) // m.cube_cores)
    yield Operator("Q K^T", _matrix_engine(m, p, tile), _qk(m, p, tile, write), jobs)
    both = [rate / 2 if not in_l2 else rate for rate in (read, write)]  # memory is read and written at once
    each = [rate / m.vectors_per_cube if not in_l2 else rate for rate in both]
    half = m.vector_bytes / 2  # elements of 16 bits a pass and cycle

    def elementwise(name: str, into: float, out: int, passes: float) -> Operator:
        busy = round(passes * (-(-_CHUNK // int(half)) + m.vector_startup))
        chunks = -(-p.heads * p.q_len * p.k_len // (_CHUNK * m.cube_cores * m.vectors_per_cube))
        piece = Piece((
            Task("MTE2v", "load", _copy(int(_CHUNK * into), each[0], m.copy_startup),
                 sets=(("in", m.flag_local),), takes=("UB in",)),
            Task("Vector", name, busy, ("in",), (("out", m.flag_local),), ("UB out",), ("UB in",)),
            Task("MTE3v", "store", _copy(_CHUNK * out, min(each[1], m.ub_write), m.copy_startup),
                 ("out",), (), (), ("UB out",)),
        ))  # fmt: skip
        rings = {"UB in": Ring("UB", 2, _CHUNK * 8), "UB out": Ring("UB", 2, _CHUNK * 4)}
        return Operator(name, Engine(rings, {"UB": m.ub}), [(piece, chunks)], 1)

    if operators.scale:
        yield elementwise("scale", 2, 2, 1.0)
    if p.causal or p.window is not None:
        yield elementwise("mask", 4, 2, 1.0)
    size = 4 if operators.upcast else 2
    if operators.upcast:
        yield elementwise("to float32", 2, 4, 2.0)
    twice = 2 if p.k_len * size * 2 > m.ub else 1  # a row that does not fit is read again, for its sum
    yield elementwise("softmax", twice * size, size, 2 * m.softmax_passes)  # in float32, half the lanes
    if operators.upcast:
        yield elementwise("to 16 bits", 4, 2, 2.0)
    yield Operator("P V", _matrix_engine(m, p, tile), _pv(m, p, tile, read), jobs)


def _matrix_engine(m: Machine, p: Problem, tile: int) -> Engine:
    D, Dv = p.head_dim, p.v_dim
    rings = {
        "L1 A": Ring("L1", 2, tile * max(D, tile) * 2),
        "L1 B": Ring("L1", 2, tile * max(D, Dv) * 2),
        "L0A": Ring("L0A", 2, tile * max(D, tile) * 2),
        "L0B": Ring("L0B", 2, tile * max(D, Dv) * 2),
        "L0C": Ring("L0C", 2, tile * max(tile, Dv) * 4),
    }
    return Engine(rings, {"L1": m.l1, "L0A": m.l0a, "L0B": m.l0b, "L0C": m.l0c})


def _product(
    m: Machine, a: int, b: int, rates: tuple[float, float], mnk: tuple[int, int, int], first: bool, last: bool
) -> list[Task]:
    """Return the tasks that load both operands, a and b bytes, and multiply them."""
    rows, columns, inner = mnk
    cube = -(-_up(rows) * _up(columns) * _up(inner) // m.cube_macs) + m.cube_startup
    flag = m.flag_local
    return [
        Task("MTE2", "load A", _copy(a, rates[0], m.copy_startup), (), (("A1", flag),), ("L1 A",)),
        Task("MTE2", "load B", _copy(b, rates[1], m.copy_startup), (), (("B1", flag),), ("L1 B",)),
        Task(
            "MTE1",
            "A to L0A",
            _copy(a, m.l1_to_l0a, m.inner_startup),
            ("A1",),
            (("A", flag),),
            ("L0A",),
            ("L1 A",),
        ),
        Task(
            "MTE1",
            "B to L0B",
            _copy(b, m.l1_to_l0b, m.inner_startup),
            ("B1",),
            (("B", flag),),
            ("L0B",),
            ("L1 B",),
        ),
        Task(
            "Cube",
            "product",
            cube,
            ("A", "B"),
            (("C", flag),) if last else (),
            ("L0C",) if first else (),
            ("L0A", "L0B"),
        ),
    ]


def _store(m: Machine, size: int, rate: float) -> Task:
    return Task("FIX", "store", _copy(size, min(rate, m.l0c_read), m.copy_startup), ("C",), (), (), ("L0C",))


def _qk(m: Machine, p: Problem, tile: int, rate: float) -> Program:
    """Return Q K^T of a row of tiles; Q comes again for each tile, from L2."""
    rows = min(tile, p.q_len)

    def piece(keys: int) -> Piece:
        sizes, rates = (rows * p.head_dim * 2, keys * p.head_dim * 2), (float(m.l2_read), float(m.l2_read))
        product = _product(m, *sizes, rates, (rows, keys, p.head_dim), True, True)
        return Piece((*product, _store(m, rows * keys * 2, rate)))

    whole, rest = divmod(p.k_len, tile)
    return [(piece(keys), n) for keys, n in ((tile, whole), (rest, 1)) if keys and n]


def _pv(m: Machine, p: Problem, tile: int, rate: float) -> Program:
    """Return P V of a row of tiles, summed over all keys in L0C."""
    rows = min(tile, p.q_len)
    keys = [min(tile, p.k_len - first) for first in range(0, p.k_len, tile)]

    def piece(keys: int, first: bool, last: bool) -> Piece:
        sizes, rates = (rows * keys * 2, keys * p.v_dim * 2), (rate, float(m.l2_read))
        tasks = _product(m, *sizes, rates, (rows, p.v_dim, keys), first, last)
        return Piece((*tasks, *([_store(m, rows * p.v_dim * 2, float(m.l2_write))] if last else [])))

    if len(keys) == 1:
        return [(piece(keys[0], True, True), 1)]
    middle = [(piece(tile, False, False), len(keys) - 2)] if len(keys) > 2 else []
    return [(piece(tile, True, False), 1), *middle, (piece(keys[-1], False, True), 1)]
