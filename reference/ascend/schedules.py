"""FlashAttention on the NPU of `machine` as programs for `pipeline`: one level of tiles, or two.

A core's job is one block of queries of one head, from its first key to its last. It is one Cube core with
two Vector cores, which take half the rows each and are alike, so one of them is modelled. The units of the
Cube core are MTE2 (L2 to L1), MTE1 (L1 to L0A and L0B), Cube, and FIX (L0C to L2); those of a Vector core
MTE2v (L2 to UB), Vector, and MTE3v (UB to L2). The steps of a level-1 block are those of `two_level`: QK on
the Cube, softmax on the Vector, PV on the Cube, rescaling on the Vector, with a counting flag between them
(S, P, O). With a `lookahead` of 1 or 2 the Cube multiplies Q K^T that many blocks ahead while the Vector
works on softmax; with 0 they take turns.

Operands stream through rings of two slots or more, so that copies run ahead. Unified (one-level) tiling is
this same program with `Blocks.unified`. Between its jobs a core comes to rest, which costs a filling of the
pipeline each; cores share the jobs, longest first. All of this is our model of the machine, not Huawei's
kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..two_level import Blocks, _cut
from ..visibility import Tile, Window, band, classify
from .machine import Machine
from .pipeline import Engine, Piece, Program, Ring, Task

# One level-1 block: for each row of tiles that sees any key, its height, and each tile's number, width and
# whether it is masked.
_Shape = tuple[tuple[int, tuple[tuple[int, int, bool], ...]], ...]
_OUTPUT_ROWS = 32  # rows of O that a Vector core rescales at a time


@dataclass(frozen=True)
class Problem:
    """Attention of `heads` heads (of all sequences) in 16 bits.

    Attributes
    ----------
    q_len, k_len, head_dim, v_dim, heads : int
        Sq, Sk, D, Dv, and B * Hq.
    causal, window
        As in `standard.attention`; the last query stands at the last key.
    """

    q_len: int
    k_len: int
    head_dim: int = 128
    v_dim: int = 128
    heads: int = 1
    causal: bool = False
    window: Window = None

    def __post_init__(self) -> None:
        if min(self.q_len, self.k_len, self.head_dim, self.v_dim, self.heads) < 1:
            raise ValueError(f"lengths, head sizes and heads start at 1, got {self}")


@dataclass(frozen=True)
class Fused:
    """FlashAttention in tiles: the pieces of program of one core.

    Attributes
    ----------
    machine, problem, blocks
        What runs, what on, in which sizes.
    lookahead : int
        How many blocks Q K^T is ahead of P V.

    Examples
    --------
    >>> fused = Fused(Machine(), Problem(1024, 1024, causal=True), Blocks(128, 256, 128, 128, 32))
    >>> engine = fused.engine()
    >>> cycles = [engine.run(fused.job(first)) for first in range(0, 1024, 128)]
    >>> cycles == sorted(cycles)  # later queries see more keys
    True
    """

    machine: Machine
    problem: Problem
    blocks: Blocks
    lookahead: int = 2

    @cached_property
    def _cache(self) -> dict[tuple[_Shape | None, _Shape | None] | str | tuple[str, int], Piece]:
        return {}

    def rings(self) -> dict[str, Ring]:
        """Return the rings: what lies in which buffer. The sums of O stay in UB, in a ring of their own.

        A tile of keys that several rows of tiles read stays in L1 for all; the ring then holds a whole block.
        """
        b, D, Dv = self.blocks, self.problem.head_dim, self.problem.v_dim
        stays = -(-b.block_k // b.tile_k) if b.block_q > b.tile_q else 0
        half = self._part(b.block_q)
        piece = min(b.vector_rows, self._part(b.tile_q)) * b.block_k
        return {
            "L1 Q": Ring("L1", 1, b.block_q * D * 2),
            "L1 K": Ring("L1", stays + 2, b.tile_k * D * 2),
            "L1 V": Ring("L1", stays + 2, b.tile_k * Dv * 2),
            "L1 P": Ring("L1", 2, b.tile_q * b.tile_k * 2),
            "L0A": Ring("L0A", 2, b.tile_q * max(D, b.tile_k) * 2),
            "L0B": Ring("L0B", 2, b.tile_k * max(D, Dv) * 2),
            "L0C": Ring("L0C", 2, b.tile_q * max(b.tile_k, Dv) * 4),
            "UB S": Ring("UB", 2, piece * 5),  # float32 scores, and a byte of mask
            "UB P": Ring("UB", 2, piece * 2),
            "UB O": Ring("UB", 2, min(_OUTPUT_ROWS, half) * Dv * 4),
            "UB state": Ring("UB", 1, half * (Dv + 3) * 4),  # O, m, l and the factor between
            "workspace S": Ring("L2", 2, b.block_q * b.block_k * 4),
            "workspace P": Ring("L2", 1 + max(self.lookahead, 1), b.block_q * b.block_k * 2),
            "workspace O": Ring("L2", 2, b.block_q * Dv * 4),
            **{name: Ring("flags", 0, 0) for name in ("S", "P", "O")},
        }

    def engine(self) -> Engine:
        """Return an engine with these rings; ValueError when the blocks do not fit the machine."""
        m = self.machine
        share = m.l2 // m.cube_cores
        sizes = {"L0A": m.l0a, "L0B": m.l0b, "L0C": m.l0c, "L1": m.l1, "UB": m.ub, "L2": share, "flags": 0}
        return Engine(self.rings(), sizes)

    @cached_property
    def kv_rate(self) -> float:
        """Bytes a cycle at which K and V come: L2's while those of all heads at work fit, else memory's."""
        p, m = self.problem, self.machine
        at_work = min(p.heads, -(-m.cube_cores // -(-p.q_len // self.blocks.block_q)))
        fits = at_work * p.k_len * (p.head_dim + p.v_dim) * 2 <= m.l2
        return float(m.l2_read) if fits else min(m.hbm_share, m.l2_read)

    def jobs(self) -> Iterator[tuple[Program, int]]:
        """Yield the different jobs of one head, and how many there are of each."""
        p, size = self.problem, self.blocks.block_q
        if p.causal or p.window is not None:
            yield from ((self.job(first), 1) for first in range(0, p.q_len, size))
            return
        whole, rest = divmod(p.q_len, size)
        if whole:
            yield self.job(0), whole
        if rest:
            yield self.job(whole * size), 1

    def job(self, first: int) -> Program:
        """Return the program of the block of queries that begins at `first`."""
        p, b = self.problem, self.blocks
        rows = slice(first, min(first + b.block_q, p.q_len))
        shapes = list(self._shapes(rows))
        if not shapes:
            return [(self._piece(("end", rows.stop - rows.start)), 1)]
        program: list[tuple[Piece, int]] = [(self._piece(("begin", rows.stop - rows.start)), 1)]
        new, old = [*shapes, (None, self.lookahead)], [(None, self.lookahead), *shapes]
        program += [(self._tick(*pair), count) for pair, count in _together(new, old)]
        return [*program, (self._piece(("end", rows.stop - rows.start)), 1)]

    def _shapes(self, rows: slice) -> Iterator[tuple[_Shape, int]]:
        """Yield the shapes of the level-1 blocks of these queries, and how many alike follow each other."""
        p, b = self.problem, self.blocks
        offset = p.k_len - p.q_len
        left, right = band(p.causal, p.window)
        p0, p1 = offset + rows.start, offset + rows.stop - 1
        # The keys that any of these queries sees, and those that all of them see.
        first_any, first_all = (0, 0) if left is None else (max(p0 - left, 0), max(p1 - left, 0))
        end = p.k_len
        past_any, past_all = (
            (end, end) if right is None else (min(p1 + right + 1, end), min(p0 + right + 1, end))
        )
        if first_any >= past_any:
            return
        j, last = first_any // b.block_k, (past_any - 1) // b.block_k
        while j <= last:
            whole = past_all // b.block_k - j if j * b.block_k >= first_all else 0  # no tile needs a mask
            count = max(whole, 1)
            cols = slice(j * b.block_k, min((j + 1) * b.block_k, p.k_len))
            yield self._shape(rows, cols), count
            j += count

    def _shape(self, rows: slice, cols: slice) -> _Shape:
        p, b = self.problem, self.blocks
        shape = []
        for r in _cut(rows.start, rows.stop, b.tile_q):
            tiles = []
            for number, c in enumerate(_cut(cols.start, cols.stop, b.tile_k)):
                kind = classify(
                    (r.start, r.stop), (c.start, c.stop),
                    causal=p.causal, window=p.window, kv_length=p.k_len, q_offset=p.k_len - p.q_len,
                )  # fmt: skip
                if kind is not Tile.EMPTY:
                    tiles.append((number, c.stop - c.start, kind is Tile.PARTIAL))
            if tiles:
                shape.append((r.stop - r.start, tuple(tiles)))
        return tuple(shape)

    def _tick(self, new: _Shape | None, old: _Shape | None) -> Piece:
        key = new, old
        if key not in self._cache:
            if self.lookahead:
                parts = [
                    self._qk(new) if new else [], self._pv(old) if old else [],
                    self._softmax(new) if new else [], self._rescale(old) if old else [],
                ]  # fmt: skip
            else:
                assert new is not None
                parts = [self._qk(new), self._softmax(new), self._pv(new), self._rescale(new)]
            self._cache[key] = Piece(tuple(task for part in parts for task in part))
        return self._cache[key]

    def _piece(self, key: tuple[str, int]) -> Piece:
        if key not in self._cache:
            m, p, (what, rows) = self.machine, self.problem, key
            half = self._part(rows)
            if what == "begin":
                load = _copy(rows * p.head_dim * 2, m.l2_read, m.copy_startup)
                tasks = [Task("MTE2", "load Q", load, sets=(("Q", m.flag_local),), takes=("L1 Q",))]
            else:
                divide = self._pass(half * p.v_dim, 1.0)
                store = _copy(half * (p.v_dim * 2 + 4), m.ub_write, m.copy_startup)
                tasks = [
                    Task("Vector", "divide", divide, sets=(("out", m.flag_local),)),
                    Task("MTE3v", "store out", store, waits=("out",)),
                ]
            self._cache[key] = Piece(tuple(tasks))
        return self._cache[key]

    def _part(self, rows: int) -> int:
        """Return the rows that the first Vector core takes of these, no core more."""
        return -(-rows // self.machine.vectors_per_cube)

    def _pass(self, elements: int, passes: float) -> int:
        """Return the cycles of so many passes of a Vector core over float32 elements."""
        m = self.machine
        return round(passes * (-(-elements * 4 // m.vector_bytes) + m.vector_startup))

    def _load(self, name: str, width: int, dim: int, done: bool) -> Task:
        m = self.machine
        freed = (f"L1 {name}",) if done else ()
        cycles = _copy(width * dim * 2, self.kv_rate, m.copy_startup)
        return Task(
            "MTE2", f"load {name}", cycles, sets=((name, m.flag_local),), takes=(f"L1 {name}",), frees=freed
        )

    def _product(
        self, name: str, rows: int, inner: int, columns: int, takes: bool, frees: tuple[str, ...], last: bool
    ) -> Task:
        m = self.machine
        cycles = -(-_up(rows) * _up(inner) * _up(columns) // m.cube_macs) + m.cube_startup
        sets = (("sums", m.flag_local),) if last else ()
        return Task("Cube", name, cycles, ("A", "B"), sets, ("L0C",) if takes else (), frees)

    def _inner(self, name: str, size: int, to: str, waits: str, frees: tuple[str, ...] = ()) -> Task:
        m = self.machine
        rate, flag = (m.l1_to_l0a, "A") if to == "L0A" else (m.l1_to_l0b, "B")
        cycles = _copy(size, rate, m.inner_startup)
        return Task("MTE1", f"{name} to {to}", cycles, (waits,), ((flag, m.flag_local),), (to,), frees)

    def _fix(self, name: str, size: int, first: bool, last: bool) -> Task:
        m = self.machine
        cycles = _copy(size, min(m.l0c_read, m.l2_write), m.copy_startup)
        return Task(
            "FIX", f"store {name}", cycles, ("sums",), ((name, m.flag_cross),) if last else (),
            (f"workspace {name}",) if first else (), ("L0C",),
        )  # fmt: skip

    def _qk(self, shape: _Shape) -> list[Task]:
        D, tasks = self.problem.head_dim, []
        loaded: set[int] = set()
        for r, (height, tiles) in enumerate(shape):
            tasks.append(self._inner("Q", height * D * 2, "L0A", "Q"))
            for t, (number, width, _) in enumerate(tiles):
                done = not any(number == n for _, later in shape[r + 1 :] for n, _, _ in later)
                if number not in loaded:
                    tasks.append(self._load("K", width, D, done=False))
                    loaded.add(number)
                tasks.append(self._inner("K", width * D * 2, "L0B", "K", ("L1 K",) if done else ()))
                end = t == len(tiles) - 1
                frees = ("L0B", "L0A") if end else ("L0B",)
                tasks.append(self._product("Q K^T", height, D, width, True, frees, True))
                tasks.append(self._fix("S", height * width * 4, r == t == 0, end and r == len(shape) - 1))
        return tasks

    def _softmax(self, shape: _Shape) -> list[Task]:
        m, tasks = self.machine, []
        pieces = [
            (
                piece.stop - piece.start,
                sum(w for _, w, _ in tiles),
                sum(w for _, w, masked in tiles if masked),
            )
            for height, tiles in shape
            for piece in _cut(0, self._part(height), self.blocks.vector_rows)
        ]
        sides = sum(edge is not None for edge in band(self.problem.causal, self.problem.window))
        for i, (rows, keys, masked) in enumerate(pieces):
            first, last = i == 0, i == len(pieces) - 1
            size = rows * (keys * 4 + masked * sides)
            cycles = self._pass(rows * keys, m.softmax_passes)
            if masked:
                cycles += self._pass(rows * masked, m.mask_passes * sides)
            tasks += [
                Task(
                    "MTE2v",
                    "load S",
                    _copy(size, m.l2_read, m.copy_startup),
                    (),
                    (("S in UB", m.flag_local),),
                    ("S", "UB S") if first else ("UB S",),
                    ("workspace S",) if last else (),
                ),
                Task(
                    "Vector",
                    "softmax",
                    cycles,
                    ("S in UB",),
                    (("P in UB", m.flag_local),),
                    ("UB P",),
                    ("UB S",),
                ),
                Task(
                    "MTE3v",
                    "store P",
                    _copy(rows * keys * 2, m.ub_write, m.copy_startup),
                    ("P in UB",),
                    (("P", m.flag_cross),) if last else (),
                    ("workspace P",) if first else (),
                    ("UB P",),
                ),
            ]
        return tasks

    def _pv(self, shape: _Shape) -> list[Task]:
        m, Dv, tasks = self.machine, self.problem.v_dim, []
        loaded: set[int] = set()
        for r, (height, tiles) in enumerate(shape):
            for t, (number, width, _) in enumerate(tiles):
                end = t == len(tiles) - 1
                done = not any(number == n for _, later in shape[r + 1 :] for n, _, _ in later)
                if number not in loaded:
                    tasks.append(self._load("V", width, Dv, done=False))
                    loaded.add(number)
                last = ("workspace P",) if end and r == len(shape) - 1 else ()
                first = ("P", "L1 P") if r == t == 0 else ("L1 P",)
                load = _copy(height * width * 2, m.l2_read, m.copy_startup)
                tasks += [
                    Task("MTE2", "load P", load, (), (("P in L1", m.flag_local),), first, last),
                    self._inner("P", height * width * 2, "L0A", "P in L1", ("L1 P",)),
                    self._inner("V", width * Dv * 2, "L0B", "V", ("L1 V",) if done else ()),
                    self._product("P V", height, width, Dv, t == 0, ("L0A", "L0B"), end),
                ]
            tasks.append(self._fix("O", height * Dv * 4, r == 0, r == len(shape) - 1))
        return tasks

    def _rescale(self, shape: _Shape) -> list[Task]:
        m, Dv, tasks = self.machine, self.problem.v_dim, []
        rows = [c.stop - c.start for height, _ in shape for c in _cut(0, self._part(height), _OUTPUT_ROWS)]
        for i, n in enumerate(rows):
            load = _copy(n * Dv * 4, m.l2_read, m.copy_startup)
            takes = ("O", "UB O") if i == 0 else ("UB O",)
            tasks += [
                Task(
                    "MTE2v",
                    "load O",
                    load,
                    (),
                    (("O in UB", m.flag_local),),
                    takes,
                    ("workspace O",) if i == len(rows) - 1 else (),
                ),
                Task(
                    "Vector", "rescale", self._pass(n * Dv, m.rescale_passes), ("O in UB",), (), (), ("UB O",)
                ),
            ]
        return tasks


def _together(
    a: list[tuple[_Shape | None, int]], b: list[tuple[_Shape | None, int]]
) -> Iterator[tuple[tuple[_Shape | None, _Shape | None], int]]:
    """Yield two run-length encoded lists of one length as one of pairs."""
    a, b = [run for run in a if run[1]][::-1], [run for run in b if run[1]][::-1]
    while a:
        (x, m), (y, n) = a.pop(), b.pop()
        count = min(m, n)
        a += [(x, m - count)] if m > count else []
        b += [(y, n - count)] if n > count else []
        yield (x, y), count


def _copy(size: int, rate: float, startup: int) -> int:
    return startup + int(-(-size // rate))


def _up(n: int) -> int:
    return -(-n // 16) * 16
