"""What is audited: what the launcher chooses, asked of the launcher itself, and the ladder before it.

Macros, threads and shared memory are `choose.Configuration`'s: nothing here decides any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .. import choose

#: Architectures, and the atom that the launcher gives each.
ATOM_OF = {70: 70, 75: 75, 80: 80, 86: 80, 90: 80}

#: Shared memory of their SMs (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
SM_SHARED = {70: 96 * 1024, 75: 64 * 1024, 80: 164 * 1024, 86: 100 * 1024, 90: 228 * 1024}

#: Element types of queries, and of keys and values.
KINDS = (("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "float32"), ("float16", "int8"))

_PLAIN = ((True, False),)  # aligned, modified
_VARIANTS = tuple(itertools.product((True, False), (False, True)))
_DIMS = ((64, 64), (128, 128), (256, 256))  # head dimensions of keys, and of values
# Between: tiles whose chunks do not divide the threads, and values of another length than keys.
_MORE_DIMS = ((48, 48), (80, 80), (96, 96), (112, 112), (192, 192), (64, 128), (192, 128), (128, 256))


@dataclass(frozen=True)
class Configuration:
    """One kernel, compiled for one architecture.

    Attributes
    ----------
    chosen : choose.Configuration
        As it would be launched.
    architecture : int
        70 for sm_70, ...
    """

    chosen: choose.Configuration
    architecture: int

    @property
    def source(self) -> str:
        """File in ``kernels``."""
        return self.chosen.file

    @property
    def definitions(self) -> dict[str, str]:
        """Macros, without their prefix ``FA_``."""
        return dict(self.chosen.macros)

    @property
    def macros(self) -> dict[str, str | int]:
        return {f"FA_{name}": value for name, value in self.chosen.macros}

    @property
    def prefill(self) -> bool:
        """Whether it is a tensor-core kernel of ``attention_entry.cuh``."""
        return "WARP_ROWS" in self.definitions

    def number(self, name: str) -> int:
        return int(self.definitions[name])

    def flag(self, name: str, otherwise: bool = False) -> bool:
        return bool(int(self.definitions.get(name, otherwise)))

    @property
    def plain(self) -> bool:
        """Whether it is what a call without extras, on aligned rows, takes."""
        return self.flag("ALIGNED", True) and not self.flag("MODIFIED")

    @property
    def principal(self) -> bool:
        """Whether it is one that most calls take: plain, at one of the usual head dimensions."""
        dims = tuple(int(self.definitions.get(name, _DIMS[0][0])) for name in ("HEAD_DIM", "V_DIM"))
        return self.plain and dims in _DIMS

    @property
    def label(self) -> str:
        d = self.definitions
        names = [d["QUERY"]] if d.get("QUERY", d["ELEMENT"]) != d["ELEMENT"] else []
        names.append(d["ELEMENT"])
        if "HEAD_DIM" in d:
            names.append(f"D={d['HEAD_DIM']}")
            names += [f"Dv={d['V_DIM']}"] if d["V_DIM"] != d["HEAD_DIM"] else []
        if self.prefill:
            names.append(f"{d['WARPS']}x{d['WARP_ROWS']} rows {d['KEYS']} keys")
            names += [f"{d['ABREAST']} abreast"] if self.architecture < 75 else []
        elif self.chosen.entry == "decode":
            names.append(f"{self.chosen.rows} rows, atom {d['ATOM']}")
        names += [
            word
            for word, name in (("modified", "MODIFIED"), ("async", "ASYNC"), ("paged", "PAGED"))
            if self.flag(name)
        ]
        names += [] if self.flag("ALIGNED", True) else ["unaligned"]
        return " ".join(names)

    def changed(self, **definitions: str | int) -> Configuration:
        """The same with other macros; shared memory and threads stay."""
        macros = self.definitions | {name: str(value) for name, value in definitions.items()}
        return replace(self, chosen=replace(self.chosen, macros=tuple(sorted(macros.items()))))


def launched(
    configure: Callable[..., choose.Configuration] = choose.configure,
    atom_of: dict[int, int] = ATOM_OF,
    *,
    kinds: Sequence[tuple[str, str]] = KINDS,
    dims: Sequence[tuple[int, int]] = _DIMS,
    rows: Sequence[int] = (1, 8, 4096),
    variants: Sequence[tuple[bool, bool]] = _VARIANTS,
) -> Iterator[Configuration]:
    """What a launcher chooses, each kernel once.

    Parameters
    ----------
    configure : callable
        As `choose.configure`, whose TypeError says that an atom does not have an element type.
    atom_of : dict
        Architectures, and the atom that each is given.
    kinds : sequence of (str, str)
        Element types of queries, and of keys and values.
    dims : sequence of (int, int)
        Head dimensions of keys, and of values.
    rows : sequence of int
        Query rows of a KV head.
    variants : sequence of (bool, bool)
        Whether rows are aligned, and whether scores are modified.
    """
    for architecture, atom in atom_of.items():
        seen = set()
        for (q_dtype, kv_dtype), (dim, v_dim), count, (aligned, modified) in itertools.product(
            kinds, dims, rows, variants
        ):
            try:
                chosen = configure(
                    atom,
                    q_dtype,
                    kv_dtype,
                    dim,
                    v_dim,
                    count,
                    aligned=aligned,
                    modified=modified,
                    paged=False,
                    sm_shared=SM_SHARED[architecture],
                )
            except TypeError:
                continue
            if chosen not in seen:
                yield Configuration(chosen, architecture)
            seen.add(chosen)


def ladder() -> Iterator[Configuration]:
    """The steps before, which no call takes: the launcher's choice for the step after, in their own files."""
    for architecture, atom in ATOM_OF.items():
        macros = (("ELEMENT", "Float"),)
        yield Configuration(
            choose.Configuration("00_naive.cu", "attention", macros, 128, 128, 1, 0), architecture
        )
        files = [("float32", "01_online_softmax.cu")] + [("float16", "03_tensor_cores.cu")] * (atom == 70)
        for (dtype, file), (dim, v_dim) in itertools.product(files, _DIMS):
            chosen = choose.configure(
                atom, dtype, dtype, dim, v_dim, 4096, aligned=True, modified=False, paged=False,
                sm_shared=SM_SHARED[architecture],
            )  # fmt: skip
            yield Configuration(replace(chosen, file=file), architecture)


def principal() -> list[Configuration]:
    """What calls without extras take."""
    return list(launched(kinds=KINDS[:1], rows=(1, 8, 4096), variants=_PLAIN))


def every() -> list[Configuration]:
    """All that is launched, variants and head dimensions between included, and the ladder."""
    found = dict.fromkeys([*principal(), *launched(), *launched(dims=_MORE_DIMS, rows=(4096,)), *ladder()])
    return list(found)


def prefill(
    architecture: int,
    dim: int,
    warps: int,
    warp_rows: int,
    keys: int,
    *,
    v_dim: int = 0,
    abreast: int = 1,
    dtype: str = "float16",
    modified: bool = False,
    aligned: bool = True,
) -> Configuration:
    """A tensor-core kernel in an arrangement that the launcher may not choose."""
    chosen = choose.arranged(
        ATOM_OF[architecture], dtype, dim, v_dim or dim, warps, warp_rows, keys, abreast,
        aligned=aligned, modified=modified,
    )  # fmt: skip
    return Configuration(chosen, architecture)


def candidates() -> list[Configuration]:
    """Volta's arrangements to choose from; the audit tells which fit, and what the models say of each."""
    found = []
    for dim in (64, 128, 256):
        for warps in (4, 8):
            for rows, abreast in ((16, 2), (32, 2), (48, 2), (64, 2), (32, 1), (64, 1)):
                for keys in (16, 32, 48, 64):
                    c = prefill(70, dim, warps, rows, keys, abreast=abreast)
                    # Registers of a lane for the output, the scores, and a tile on its way.
                    held = rows * (dim + keys) // 32 + keys * dim // (64 * warps)
                    if c.chosen.shared <= choose.SHARED_BYTES[70] and held <= 235:
                        found.append(c)
    return found
