"""How much work each dataflow is, in closed form: what `tile.attention` counts, without running it.

The inner loop of a kernel is one *visit*: one warp, one tile of keys. Its instructions are known from the
shape alone, so the loop of real machine code can be held against them: HMMA, SHFL, LDS and STS. With
C = D / 8 and E = Dv / 8 chunks a row, N keys and T tiles of rows a warp:

==================  =================  =====================  =====================
a visit             quad-pairs         2 x 2                  m16n8k16 (k8)
==================  =================  =====================  =====================
matrix products     T N (C + E) / 4    T N (C + E) / 8        T N (C + E) / 16 (8)
loads of Q          T C                T C                    T C / 2
loads of K          N C / 8            N C / 16               N C / 32
loads of V          N E / 8            N E / 16               N E / 32
P stored, loaded    none               T N / 4, T N / 8       none
shuffles            2 T + T N / 4      4 T                    4 T
P by shuffles                          4 T + 3 T N / 8
==================  =================  =====================  =====================

A load is 16 bytes a lane, four wavefronts; a store of P is one word a lane, one wavefront. Copying n rows of
C chunks to shared memory is n C / 8 wavefronts. The sum l takes as many shuffles as the maximum, once a warp.
One m8n8k4 with float32 sums is four HMMA.884 in machine code (STEP0 to STEP3); the others are one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import product

from ..visibility import Tile, Window, classify
from .kernel import Kernel
from .mma16 import Mma16
from .quad_pairs import QuadPairs
from .two_by_two import TwoByTwo

#: Cycles of an SM that one matrix instruction takes, with all four sub-cores at work: 8 of a sub-core each,
#: by the peak rates of V100 (m8n8k4), T4 (m16n8k8) and A100 (m16n8k16).
MMA_CYCLES = 2


@dataclass(frozen=True)
class Work:
    """Instructions and cycles of some piece of work.

    Attributes
    ----------
    mma, shuffles : int
        As in `warp.Counts`.
    instructions, wavefronts : Counter of (str, str)
        By tile and kind, ("K", "load") and so on.
    """

    mma: int = 0
    shuffles: int = 0
    instructions: Counter[tuple[str, str]] = field(default_factory=Counter)
    wavefronts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.mma + other.mma,
            self.shuffles + other.shuffles,
            self.instructions + other.instructions,
            self.wavefronts + other.wavefronts,
        )

    def __rmul__(self, times: int) -> Work:
        return Work(times * self.mma, times * self.shuffles, *(
            Counter({key: times * n for key, n in counter.items() if times * n})
            for counter in (self.instructions, self.wavefronts)
        ))  # fmt: skip


def visit(kernel: Kernel, head_dim: int, v_dim: int) -> Work:
    """Return the work of one warp on one tile of keys: the inner loop without the copies.

    Examples
    --------
    >>> work = visit(Kernel(QuadPairs(), keys=64), 128, 128)
    >>> work.mma, work.shuffles, work.instructions["K", "load"], work.wavefronts["K", "load"]
    (512, 18, 128, 512)
    """
    atom, N, T = kernel.atom, kernel.keys, kernel.atom.tiles
    C, E = (width // 8 for width in kernel.widths(head_dim, v_dim))
    if isinstance(atom, QuadPairs):
        loads = {"Q": T * C, "K": N * C // 8, "V": N * E // 4 * 8 // atom.value_width}
        waves = {"Q": 4, "K": 4, "V": atom.value_width // 4}
        return _work(T * N * (C + E) // 4, 2 * T + T * N // 4, loads, waves)
    if isinstance(atom, TwoByTwo):
        loads = {"Q": T * C, "K": N * C // 16, "V": N * E // 16}
        if not atom.uses_p:
            return _work(T * N * (C + E) // 8, 4 * T + 3 * T * N // 8, loads, dict.fromkeys(loads, 4))
        loads["P"] = T * N // 8
        work = _work(T * N * (C + E) // 8, 4 * T, loads, dict.fromkeys(loads, 4))
        store = Counter({("P", "store"): T * N // 4})
        return work + Work(instructions=store, wavefronts=store)
    if isinstance(atom, Mma16):
        loads = {"Q": T * C // 2, "K": N * C // 32, "V": N * E // 32}
        return _work(T * N * (C + E) // atom.step, 4 * T, loads, dict.fromkeys(loads, 4))
    raise TypeError(f"no closed form for {atom}")


def copy(name: str, rows: int, width: int) -> Work:
    """Return the work of storing a tile of `rows` rows of `width` halves.

    Examples
    --------
    >>> copy("K", 64, 128).wavefronts["K", "store"]
    128
    """
    chunks = rows * width // 8
    return Work(
        instructions=Counter({(name, "store"): -(-chunks // 32)}),
        wavefronts=Counter({(name, "store"): -(-chunks // 8)}),
    )


def turn(kernel: Kernel, head_dim: int, v_dim: int) -> Work:
    """Return the work of a whole CTA on one tile of keys: the copies of K and V, and a visit of each warp."""
    dim, v_width = kernel.widths(head_dim, v_dim)
    copies = copy("K", kernel.keys, dim) + copy("V", kernel.keys, v_width)
    return copies + kernel.warps * visit(kernel, head_dim, v_dim)


def balance(kernel: Kernel, head_dim: int, v_dim: int) -> float:
    """Return the cycles of shared memory over those of the tensor cores in the inner loop.

    Shuffles pass through shared memory's data path and take a cycle each. Beyond 1 the loop waits for shared
    memory however well it is scheduled, and the share of the tensor cores' peak is at most the inverse.

    Examples
    --------
    >>> for atom in (QuadPairs(), QuadPairs(tiles=2), TwoByTwo(), TwoByTwo(uses_p=False), Mma16()):
    ...     print(atom.name, *(f"{balance(Kernel(atom), D, D):.2f}" for D in (64, 128, 256)))
    quad-pairs, 32 rows a warp 1.16 1.14 1.13
    quad-pairs, 64 rows a warp 0.63 0.61 0.60
    2 x 2, 32 rows a warp, P by shared memory 0.89 0.79 0.74
    2 x 2, 32 rows a warp, P by shuffles 0.80 0.74 0.71
    m16n8k16, 16 rows a warp 1.41 1.39 1.38
    """
    work = turn(kernel, head_dim, v_dim)
    return (work.wavefronts.total() + work.shuffles) / (MMA_CYCLES * work.mma)


def accumulators(kernel: Kernel, v_dim: int) -> int:
    """Return the 32-bit registers that scores and outputs take in each lane, of the 255 there are.

    Examples
    --------
    >>> [accumulators(Kernel(atom, keys=64), 128) for atom in (QuadPairs(), QuadPairs(tiles=2), TwoByTwo())]
    [192, 384, 192]
    """
    return kernel.atom.warp_rows * (kernel.widths(8, v_dim)[1] + kernel.keys) // 32


def expected(
    kernel: Kernel,
    shape: tuple[int, int, int, int],
    *,
    causal: bool = False,
    window: Window = None,
    kv_length: int | None = None,
    q_offset: int | None = None,
) -> Work:
    """Return the work of `tile.attention` on a whole problem.

    Parameters
    ----------
    kernel : Kernel
        Its atom and tile sizes.
    shape : (int, int, int, int)
        Sq, Sk, D, Dv.
    causal, window, kv_length, q_offset
        As in `tile.attention`: they decide which tiles are visited.

    Examples
    --------
    >>> kernel = Kernel(QuadPairs(), warps=1, keys=32)
    >>> [expected(kernel, (64, 64, 64, 64), causal=causal).mma for causal in (False, True)]
    [512, 384]
    """
    Sq, Sk, D, Dv = shape
    n = Sk if kv_length is None else kv_length
    offset = n - Sq if q_offset is None else q_offset
    dim, v_width = kernel.widths(D, Dv)
    ctas, turns, visits = range(0, Sq, kernel.rows), 0, 0
    for first, key in product(ctas, range(0, n, kernel.keys)):
        past = min(first + kernel.rows, Sq)
        kinds = [
            classify(
                (row, min(row + kernel.atom.warp_rows, past)), (key, key + kernel.keys),
                causal=causal, window=window, kv_length=n, q_offset=offset,
            )
            for row in range(first, past, kernel.atom.warp_rows)
        ]  # fmt: skip
        seen = sum(kind is not Tile.EMPTY for kind in kinds)
        visits += seen
        turns += seen > 0
    copies = copy("K", kernel.keys, dim) + copy("V", kernel.keys, v_width)
    ends = Work(shuffles=2 * kernel.atom.tiles * len(kernel.atom.row_masks) * kernel.warps)
    each_cta = copy("Q", kernel.rows, dim) + ends
    return len(ctas) * each_cta + turns * copies + visits * visit(kernel, D, Dv)


def _work(mma: int, shuffles: int, loads: dict[str, int], waves: dict[str, int]) -> Work:
    return Work(
        mma,
        shuffles,
        Counter({(name, "load"): n for name, n in loads.items()}),
        Counter({(name, "load"): waves[name] * n for name, n in loads.items()}),
    )
