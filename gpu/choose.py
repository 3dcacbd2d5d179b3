"""Which kernel a problem gets, in which arrangement. Pure functions of numbers: no GPU, no CuPy.

Arrangements were measured (results/); the sizes follow the formulas in the kernels' own headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "ATOMS", "DECODE_ROWS", "MAX_SPLITS", "Configuration", "atom_of", "configure", "grid", "resident",
    "split_keys",
]  # fmt: skip

#: Tensor-core instructions there are kernels for, named by the compute capability that brought them.
ATOMS = (70, 75, 80)

#: Up to so many query rows of a KV head (its query heads times the queries), keys are split instead of rows.
DECODE_ROWS = 16

#: Parts that a row's keys are split into, at most: their factors lie in shared memory.
MAX_SPLITS = 512

#: Shared memory that a CTA may have on every card of an atom: Volta, Turing, and Ampere's smaller cards.
SHARED_BYTES = {70: 96 * 1024, 75: 64 * 1024, 80: 99 * 1024}

_FILES = {70: "04_prefetch.cu", 75: "06_turing.cu", 80: "07_ampere.cu"}
_ELEMENTS = {"float32": "Float", "float16": "Half", "bfloat16": "Bfloat", "int8": "Int8"}
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

#: Shared memory that an SM has on every card of an atom: V100, T4, and GeForce RTX 30 and 40.
SM_SHARED = {70: 96 * 1024, 75: 64 * 1024, 80: 100 * 1024}


@dataclass(frozen=True)
class Arrangement:
    """How a tensor-core kernel shares rows and keys out, for head dimensions up to `dim`.

    Attributes
    ----------
    warps, rows, keys : int
        Of a CTA, of a warp, of a tile.
    abreast : int
        Volta: quad-pairs side by side.
    plain : bool
        Only where rows are aligned and scores are not modified: there are no registers left for more.
    ctas : int
        Only where so many fit into an SM's shared memory. Four warps, one for each of an SM's schedulers, do
        not keep it busy.
    """

    dim: int
    warps: int
    rows: int
    keys: int
    abreast: int = 1
    plain: bool = False
    ctas: int = 1


# By atom, the first that fits. Measured at the shared memory of the cards in question, but for Volta's, which
# the audit's model chose (`make sass`).
_PREFILL = {
    70: (
        Arrangement(64, 4, 32, 64, 2),
        Arrangement(128, 8, 32, 32, 2, plain=True),
        Arrangement(128, 8, 16, 32, 2),
        Arrangement(256, 8, 16, 16, 2),
    ),
    75: (
        Arrangement(64, 4, 32, 48),
        Arrangement(128, 8, 16, 48),
        Arrangement(192, 4, 16, 32),
        Arrangement(256, 4, 16, 16),
    ),
    80: (
        Arrangement(64, 4, 32, 96, plain=True),
        Arrangement(64, 4, 32, 64),
        Arrangement(128, 4, 32, 48, plain=True, ctas=2),
        Arrangement(128, 8, 32, 32, plain=True),
        Arrangement(128, 8, 16, 64),
        Arrangement(256, 4, 16, 32, plain=True, ctas=2),
        Arrangement(256, 8, 16, 32),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """A kernel, and what it is compiled and launched with.

    Attributes
    ----------
    file : str
        In ``kernels/``.
    entry : str
        The function: "attention" (prefill: the grid's x axis is blocks of rows) or "decode" (parts of the
        keys).
    macros : tuple of (str, str)
        Names without their prefix ``FA_``.
    threads : int
        Of a CTA.
    rows : int
        Query rows of a CTA: of one query head in prefill, of one KV head in decode.
    step : int
        Keys that a CTA takes at a time.
    shared : int
        Bytes of dynamic shared memory; decode needs more with many parts (`decode_shared`).
    part : int
        Floats of a row's part, in decode.
    """

    file: str
    entry: str
    macros: tuple[tuple[str, str], ...]
    threads: int
    rows: int
    step: int
    shared: int
    part: int = 0

    def __post_init__(self) -> None:
        names = self.file, self.entry, self.macros, self.threads, self.rows, self.step, self.shared, self.part
        object.__setattr__(self, "_hash", hash(names))

    def __hash__(self) -> int:  # compiled kernels are looked up by it at every call
        return int(self._hash)  # type: ignore[attr-defined]

    def decode_shared(self, splits: int) -> int:
        """Bytes of dynamic shared memory that decode needs where keys are in so many parts."""
        return max(self.shared, self.rows * (splits + 2) * 4)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, b: int) -> int:
    return _ceil(a, b) * b


def atom_of(major: int, minor: int) -> int:
    """Return the atom of a compute capability.

    Raises
    ------
    ValueError
        Below 7.0 there are no tensor cores, and no kernels here.
    """
    capability = 10 * major + minor
    for atom in reversed(ATOMS):
        if capability >= atom:
            return atom
    raise ValueError(
        f"backend: 'gpu' needs compute capability 7.0 (Volta) or newer; this GPU has {major}.{minor}"
    )


@lru_cache(maxsize=4096)  # a pure function of a few numbers, asked at every call
def configure(
    atom: int, q_dtype: str, kv_dtype: str, head_dim: int, v_dim: int, rows: int, *, aligned: bool,
    modified: bool, paged: bool = False, sm_shared: int | None = None,
) -> Configuration:  # fmt: skip
    """Return the kernel of a problem.

    Parameters
    ----------
    atom : int
        One of `ATOMS`.
    q_dtype, kv_dtype : str
        "float32", "float16", "bfloat16"; of keys and values also "int8".
    head_dim, v_dim : int
        1 to 256.
    rows : int
        Query rows of a KV head: its query heads times the queries of the longest sequence.
    aligned : bool
        Rows of q, k and v begin at multiples of 16 bytes, and their lengths are such multiples.
    modified : bool
        Softcap, ALiBi, a mask, or an unusual scale.
    paged : bool
        Keys and values lie in pages.
    sm_shared : int, optional
        Bytes of shared memory of an SM; by default `SM_SHARED`.

    Raises
    ------
    TypeError
        bfloat16 on an atom that has none.
    """
    if atom < 80 and "bfloat16" in (q_dtype, kv_dtype):
        raise TypeError(
            f"q: bfloat16 needs compute capability 8.0 (Ampere) or newer, this is atom {atom}; "
            "use float16 or float32"
        )
    if rows <= DECODE_ROWS or paged or q_dtype != kv_dtype:
        return _decode(atom, q_dtype, kv_dtype, head_dim, v_dim, rows, aligned, modified, paged)
    if q_dtype == "float32":
        return _cuda_cores(head_dim, v_dim, modified)
    return _tensor_cores(atom, q_dtype, head_dim, v_dim, aligned, modified, sm_shared or SM_SHARED[atom])


def _macros(**values: str | int | bool) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name.upper(), value if isinstance(value, str) else str(int(value)))
        for name, value in sorted(values.items())
    )


def _cuda_cores(head_dim: int, v_dim: int, modified: bool) -> Configuration:
    """float32 (kernels/cuda_cores.cuh)."""
    wide, v_wide = _round_up(head_dim, 16), _round_up(v_dim, 16)
    rows = keys = 64
    padded, slices = rows + 4, 32
    shared = 4 * (2 * slices * padded + keys * padded + 16 * v_wide)
    macros = _macros(element="Float", head_dim=wide, v_dim=v_wide, modified=modified)
    return Configuration("02_tiling_mask.cu", "attention", macros, 256, rows, keys, shared)


def _tensor_cores(
    atom: int, dtype: str, head_dim: int, v_dim: int, aligned: bool, modified: bool, sm_shared: int
) -> Configuration:
    """float16 and bfloat16 (kernels/attention.cuh)."""
    reserved = 1024 if atom >= 80 else 0  # of each CTA's shared memory, by the system
    for a in _PREFILL[atom]:
        if max(head_dim, v_dim) > a.dim or (a.plain and (modified or not aligned)):
            continue
        found = arranged(
            atom, dtype, head_dim, v_dim, a.warps, a.rows, a.keys, a.abreast, aligned=aligned,
            modified=modified,
        )  # fmt: skip
        if a.ctas * (found.shared + reserved) <= sm_shared:
            return found
    raise AssertionError(f"no arrangement for head dimensions {head_dim} and {v_dim}")  # validated before


def arranged(
    atom: int, dtype: str, head_dim: int, v_dim: int, warps: int, warp_rows: int, keys: int, abreast: int, *,
    aligned: bool, modified: bool,
) -> Configuration:  # fmt: skip
    """Return a tensor-core kernel as an `Arrangement` says, whether `configure` would take it or not."""
    # Quad-pairs that stand side by side share 32 columns of values.
    wide, v_wide = _round_up(head_dim, 16), _round_up(v_dim, 16 * abreast)
    rows = warps * warp_rows
    stride, v_stride = wide // 8 | 1, v_wide // 8 | 1  # 16-byte chunks
    shared = 16 * (rows * stride + keys * stride + keys * v_stride)
    macros = _macros(
        element=_ELEMENTS[dtype], head_dim=wide, v_dim=v_wide, warps=warps, warp_rows=warp_rows,
        abreast=abreast, keys=keys, modified=modified, aligned=aligned,
        **{"async": aligned and atom == 80}, min_blocks=1,
    )  # fmt: skip
    return Configuration(_FILES[atom], "attention", macros, 32 * warps, rows, keys, shared)


def _decode(
    atom: int, q_dtype: str, kv_dtype: str, head_dim: int, v_dim: int, rows: int, aligned: bool,
    modified: bool, paged: bool,
) -> Configuration:  # fmt: skip
    """Few rows, or rows that only decode's kernels can read (kernels/05_decode.cu, parts.cuh)."""
    wide, v_wide = _round_up(head_dim, 16), _round_up(v_dim, 16)
    chunk = 16 // _SIZES[kv_dtype]  # elements of a 16-byte load
    # Tensor cores take float16, with keys as they are or int8, and bfloat16 as it is.
    on_tensor_cores = atom >= 75 and (q_dtype, kv_dtype) in (
        ("float16", "float16"), ("float16", "int8"), ("bfloat16", "bfloat16"),
    )  # fmt: skip
    common: dict[str, str | int | bool] = {
        "query": _ELEMENTS[q_dtype], "element": _ELEMENTS[kv_dtype], "head_dim": wide, "v_dim": v_wide,
        "modified": modified, "paged": paged, "aligned": aligned, "min_blocks": 1,
    }  # fmt: skip
    warps = 4
    if on_tensor_cores:
        # 16 rows of wide heads would spill; twice 8 read keys and values twice, the second time from L2.
        block_rows, step = 8 if rows <= 8 or (max(wide, v_wide) > 128 and kv_dtype != "int8") else 16, 16
        columns = _ceil(v_wide, 8 * chunk) * 8 * chunk
        # Bytes, where parts come to lie later.
        queries = _ceil(wide, 4 * chunk) * (chunk // 8) * (block_rows // 8) * 32 * 16
        warps = 8
        while _part_bytes(warps, block_rows, columns) > SHARED_BYTES[atom]:
            warps //= 2
        whole = head_dim == wide and v_dim == v_wide
        macros = _macros(atom=atom, warps=warps, rows=block_rows, whole=whole, **common)
    else:
        block_rows, keys, queries = 1, 4, 0
        most = 4 if kv_dtype == "int8" else 8  # more spill: a lane holds 16 elements of each int8 row
        while block_rows < min(rows, most):
            block_rows *= 2
        lanes = 1  # that hold one key
        while lanes < min(32, _ceil(max(wide, v_wide), chunk)):
            lanes *= 2
        step = 32 // lanes * keys
        columns = _ceil(v_wide, lanes * chunk) * lanes * chunk
        macros = _macros(atom=70, warps=warps, rows=block_rows, keys=keys, **common)
    shared = max(_part_bytes(warps, block_rows, columns), queries)
    return Configuration(
        "05_decode.cu", "decode", macros, 32 * warps, block_rows, warps * step, shared, columns + 4
    )


def _part_bytes(warps: int, rows: int, columns: int) -> int:
    return 4 * (warps * rows * (columns + 4) + rows * (warps + 2))


def resident(
    configuration: Configuration, registers: int, *, sm_threads: int, sm_registers: int, sm_shared: int
) -> int:
    """Return how many CTAs of a kernel that needs so many registers a thread fit on an SM, at least 1."""
    threads = configuration.threads
    by_registers = sm_registers // (_round_up(max(registers, 1), 8) * threads)
    by_shared = sm_shared // (configuration.shared + 1024)  # the system's own, from sm_80 on
    return max(1, min(by_registers, sm_threads // threads, by_shared))


def split_keys(step: int, keys: int, sets: int, slots: int) -> tuple[int, int]:
    """Return in how many parts decode reads the keys, and how many keys a part has.

    Parameters
    ----------
    step : int
        `Configuration.step`.
    keys : int
        Of the longest sequence, at least 1.
    sets : int
        CTAs that there are without a split.
    slots : int
        CTAs that run at a time.

    Notes
    -----
    As many CTAs as run at a time: a part more costs less in merging than the time it saves, down to one step.
    """
    splits = max(1, min(_ceil(keys, step), slots // max(sets, 1), MAX_SPLITS))
    size = _round_up(_ceil(keys, splits), step)
    return _ceil(keys, size), size


def grid(
    configuration: Configuration, *, batch: int, q_heads: int, kv_heads: int, q_len: int, splits: int = 1
) -> tuple[int, int, int]:
    """Return the grid: row blocks or parts, heads (times row blocks), sequences."""
    if configuration.entry == "decode":
        blocks = _ceil(q_heads // kv_heads * q_len, configuration.rows)
        return splits, kv_heads * blocks, batch
    return _ceil(q_len, configuration.rows), q_heads, batch
