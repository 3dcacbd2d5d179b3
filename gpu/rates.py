"""What a card does at best: the instructions that the kernels are made of, and copies of its memory.

Each probe in ``probes/`` is one idea: operands in registers, results added up, so that only the instruction's
own rate counts. Its first run is checked, sum by sum, against the products in NumPy: a rate of wrong
products, or of products that the compiler left out, is no limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .compile import compiled_probe
from .device import Card, load_cupy

__all__ = ["LIMITS", "Instruction", "Rates", "limits_of", "operands"]

THREADS = 256
CHECK_STEPS = 512  # few, so that sums in float32 are still exact enough to be compared
TOLERANCE = 1e-3  # of the sum of a lane's magnitudes
COPY_BYTES = 2**30

_TELLING = 5e-4  # seconds of a run that tells a speed
_MOST_STEPS = 2**24


@dataclass(frozen=True)
class Instruction:
    """One instruction of a card: what a warp does with it, and in which of `Rates`' probes.

    Attributes
    ----------
    name : str
    atom : int
        The first compute capability that has it, times ten.
    flops : int
        Of a warp in one step of the probe's loop.
    bfloat : bool
        Operands are bfloat16.
    """

    name: str
    atom: int
    flops: int
    bfloat: bool = False

    def emulated(self, capability: tuple[int, int]) -> bool:
        """Whether the compiler replaces it by a sequence of others on this card: m8n8k4 from sm_80 on."""
        return self.name == "m8n8k4" and capability >= (8, 0)


_CHAINS = 16  # of probes/fma_rate.cu
_TILES = (2, 4)  # operands of rows and of columns of probes/tensor_rate.cu

#: By name: tensor-core instructions with float32 sums, and the CUDA cores' multiply-add.
LIMITS: dict[str, Instruction] = {
    limit.name: limit
    for limit in (
        Instruction("m16n8k16", 80, 8 * 2 * 16 * 8 * 16),
        Instruction("m16n8k16 bfloat16", 80, 8 * 2 * 16 * 8 * 16, bfloat=True),
        Instruction("m16n8k8", 75, 8 * 2 * 16 * 8 * 8),
        Instruction("m8n8k4", 70, 8 * 4 * 2 * 8 * 8 * 4),
        Instruction("float32 FMA", 70, 32 * _CHAINS * 2),
    )
}


def limits_of(capability: tuple[int, int]) -> list[str]:
    """Return the names of `LIMITS` that a card has an instruction, or an emulation, for."""
    return [name for name, limit in LIMITS.items() if 10 * capability[0] + capability[1] >= limit.atom]


def operands(
    atom: int, bfloat: bool = False, seed: int = 0
) -> tuple[NDArray[np.uint32], NDArray[np.float64], NDArray[np.float64]]:
    """Return random operands of ``tensor_rate`` as lanes hold them, and what a step adds.

    Returns
    -------
    words : ndarray of uint32 (registers, 32)
        First of the two operands of rows, then of the four of columns.
    sums : ndarray of float64 (32,)
        What one step adds to all results of a lane together.
    magnitudes : ndarray of float64 (32,)
        The same with each result's magnitude.

    Notes
    -----
    The layout is that of the instructions' definition (PTX ISA, matrix fragments for ``mma``).
    """
    rng = np.random.default_rng(seed)
    dtype = np.dtype(ml_dtypes.bfloat16) if bfloat else np.dtype(np.float16)
    lane = np.arange(32)
    m, n, depth = {80: (16, 8, 16), 75: (16, 8, 8), 70: (32, 32, 4)}[atom]
    a = rng.standard_normal((_TILES[0], m, depth)).astype(dtype)
    b = rng.standard_normal((_TILES[1], depth, n)).astype(dtype)
    if atom == 70:
        # Four quad-pairs, each with eight rows and eight columns of its own.
        pair = lane >> 2 & 3
        row = column = 8 * pair + (lane & 3) + 4 * (lane >> 4)
        a_parts = [a[t][row, 2 * i : 2 * i + 2] for t in range(_TILES[0]) for i in range(2)]
        b_parts = [b[t][2 * i : 2 * i + 2, column].T for t in range(_TILES[1]) for i in range(2)]
        i = np.arange(8)[:, None]
        rows = 8 * pair + (lane & 1) + (i & 2) + 4 * (lane >> 4)
        columns = 8 * pair + (i & 4) + (lane & 2) + (i & 1)
    else:
        group, t4 = lane >> 2, 2 * (lane & 3)
        a_parts = [
            np.stack([a[t][group + 8 * (i & 1), t4 + 8 * (i >> 1) + j] for j in (0, 1)], -1)
            for t in range(_TILES[0])
            for i in range(depth // 4)
        ]
        b_parts = [
            np.stack([b[t][t4 + 8 * i + j, group] for j in (0, 1)], -1)
            for t in range(_TILES[1])
            for i in range(depth // 8)
        ]
        i = np.arange(4)[:, None]
        rows, columns = group + 8 * (i >> 1), t4 + (i & 1)
    pairs = np.ascontiguousarray(np.stack([*a_parts, *b_parts]))  # (registers, 32, 2)
    halves = pairs.view(np.uint16).astype(np.uint32)
    words: NDArray[np.uint32] = halves[..., 0] | halves[..., 1] << np.uint32(16)
    product = a.astype(np.float64)[:, None] @ b.astype(np.float64)[None]
    results = product[:, :, rows, columns].reshape(-1, 32)
    return words, results.sum(0), np.abs(results).sum(0)


class Rates:
    """The probes on one card, and memory to copy.

    Parameters
    ----------
    card : Card
        The current device.
    copy_bytes : int
        Bytes of the array that is copied.
    """

    def __init__(self, card: Card, copy_bytes: int = COPY_BYTES) -> None:
        self.card = card
        self.names = limits_of(card.capability)
        self._copy_bytes = copy_bytes
        self._launches: dict[str, tuple[Callable[[int], None], float]] = {}
        self._speeds: dict[str, float] = {}  # steps a second
        self._copies: tuple[Any, Any] | None = None

    def prepare(self, name: str) -> None:
        """Compile a probe, check what it computes, and find how long a step takes.

        Raises
        ------
        RuntimeError
            It cannot be compiled, or its sums are wrong.
        """
        if name in self._launches:
            return
        if name == "copy":
            self._launches[name] = self._copy()
        elif name == "float32 FMA":
            self._launches[name] = self._fma()
        else:
            self._launches[name] = self._tensor(LIMITS[name])
        launch, _ = self._launches[name]
        steps = 8 if name == "copy" else CHECK_STEPS
        self._seconds(launch, steps)
        seconds = self._seconds(launch, steps)
        while seconds < _TELLING and steps < _MOST_STEPS:
            steps *= 4
            seconds = self._seconds(launch, steps)
        if seconds <= 0:
            raise RuntimeError(f"the probe of {name} takes no time: {steps} steps in {seconds} s")
        self._speeds[name] = steps / seconds

    def measure(self, name: str, seconds: float = 0.004) -> float:
        """Return what the card does now: TFLOP/s, or for "copy" GB/s, bytes read and bytes written counted.

        Parameters
        ----------
        name : str
            Of `LIMITS`, or "copy".
        seconds : float
            How long the probe takes, about.
        """
        self.prepare(name)
        launch, work = self._launches[name]
        steps = max(1, round(seconds * self._speeds[name]))
        return work * steps / self._seconds(launch, steps)

    def _seconds(self, launch: Callable[[int], None], steps: int) -> float:
        cupy = load_cupy()
        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record()
        launch(steps)
        last.record()
        last.synchronize()
        return 1e-3 * float(cupy.cuda.get_elapsed_time(first, last))

    def _grid(self, registers: int) -> int:
        by_registers = self.card.sm_registers // (-(-registers // 8) * 8 * THREADS)
        return self.card.sms * max(1, min(4, by_registers, self.card.sm_threads // THREADS))

    def _tensor(self, limit: Instruction) -> tuple[Callable[[int], None], float]:
        cupy = load_cupy()
        macros = (("ATOM", str(limit.atom)), ("BFLOAT", str(int(limit.bfloat))))
        kernel = compiled_probe("tensor_rate", macros, self.card)
        words, wanted, magnitudes = operands(limit.atom, limit.bfloat)
        held, blocks = cupy.asarray(words), self._grid(kernel.registers)
        sums = cupy.full(blocks * THREADS, np.nan, np.float32)

        def launch(steps: int) -> None:
            kernel.function((blocks,), (THREADS,), (held, sums, np.int32(steps)))

        launch(CHECK_STEPS)
        _check(limit.name, sums, wanted, magnitudes)
        return launch, 1e-12 * limit.flops * blocks * (THREADS // 32)

    def _fma(self) -> tuple[Callable[[int], None], float]:
        cupy = load_cupy()
        kernel = compiled_probe("fma_rate", (), self.card)
        blocks = self._grid(kernel.registers)
        sums = cupy.full(blocks * THREADS, np.nan, np.float32)
        factor, addend = np.float32(0.9997), np.float32(0.37)

        def launch(steps: int) -> None:
            kernel.function((blocks,), (THREADS,), (factor, addend, sums, np.int32(steps)))

        launch(CHECK_STEPS)
        power = float(factor) ** CHECK_STEPS
        series = float(addend) * (1 - power) / (1 - float(factor))
        wanted = np.full(32, sum(i * power + series for i in range(_CHAINS)) / CHECK_STEPS)
        limit = LIMITS["float32 FMA"]
        _check(limit.name, sums, wanted, wanted)
        return launch, 1e-12 * limit.flops * blocks * (THREADS // 32)

    def _copy(self) -> tuple[Callable[[int], None], float]:
        cupy = load_cupy()
        count = self._copy_bytes // 4
        source = normal(self.card, (count,), "float32", seed=1)
        target = cupy.full(count, np.nan, np.float32)
        self._copies = source, target

        def launch(steps: int) -> None:
            for _ in range(steps):
                target.data.copy_from_device_async(source.data, 4 * count)

        launch(1)
        if not bool((source == target).all()):
            raise RuntimeError("the copy of device memory is not equal to its source")
        return launch, 1e-9 * 2 * 4 * count


def _check(name: str, sums: Any, wanted: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> None:
    found = sums.get().reshape(-1, 32).astype(np.float64)
    error = np.abs(found / CHECK_STEPS - wanted) / magnitudes
    worst = float(error.max()) if np.isfinite(found).all() else float("nan")
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"the probe of {name} computes something else: off by {worst:.1e} of its terms' magnitude, "
            f"expected at most {TOLERANCE:.0e}"
        )


_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}


def normal(card: Card, shape: tuple[int, ...], dtype: str, *, seed: int) -> Any:
    """Return a CuPy array of standard normal numbers on the current device, which is `card`.

    Parameters
    ----------
    card : Card
    shape : tuple of int
    dtype : str
        "float32", "float16" or "bfloat16".
    seed : int
        Not negative; the same numbers for the same seed, on any card but for the last bits.
    """
    cupy = load_cupy()
    count = int(np.prod(shape, dtype=np.int64))
    kernel = compiled_probe("normal", (("TYPE", str(_TYPES[dtype])),), card)
    bits = cupy.empty(count + count % 2, np.float32 if dtype == "float32" else np.uint16)
    blocks = min(card.sms * 8, -(-bits.size // (2 * THREADS)))
    kernel.function((blocks,), (THREADS,), (bits, np.uint64(bits.size), np.uint64(seed)))
    wanted = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    return cupy.ndarray(shape, wanted, memptr=bits.data)
