"""What is audited: every kernel with the macros, threads and shared memory that it is launched with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

ATOM_SOURCES = {70: "04_prefetch.cu", 75: "06_turing.cu", 80: "07_ampere.cu"}
ATOM_OF = {70: 70, 75: 75, 80: 80, 90: 80}  # architecture to atom


@dataclass(frozen=True)
class Configuration:
    """One kernel, compiled for one architecture.

    Attributes
    ----------
    source, entry : str
        File in ``kernels`` and name of the kernel in it.
    architecture : int
        70 for sm_70, ...
    definitions : dict
        Macros, without their prefix ``FA_``.
    shared : int, optional
        Bytes of dynamic shared memory as the launcher gives them; else they are computed.
    """

    source: str
    entry: str
    architecture: int
    definitions: dict[str, str | int] = field(hash=False)
    shared: int | None = None

    @property
    def macros(self) -> dict[str, str | int]:
        return {f"FA_{name}": value for name, value in self.definitions.items()}

    @property
    def prefill(self) -> bool:
        """Whether it is a tensor-core kernel of ``attention_entry.cuh``."""
        return self.entry == "attention" and "WARP_ROWS" in self.definitions

    def number(self, name: str) -> int:
        return int(self.definitions[name])

    @property
    def rows(self) -> int:
        """Query rows of a CTA of a tensor-core kernel."""
        return self.number("WARPS") * self.number("WARP_ROWS")

    @property
    def threads(self) -> int:
        return 32 * self.number("WARPS") if "WARPS" in self.definitions else 256

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a tensor-core kernel: Kernel::SHARED_BYTES of attention.cuh."""
        if self.shared is not None:
            return self.shared
        odd = 1 if self.source != "03_tensor_cores.cu" else 0
        k_chunks, v_chunks = (self.number(name) // 8 | odd for name in ("HEAD_DIM", "V_DIM"))
        keys = self.number("KEYS")
        return 16 * (self.rows * k_chunks + keys * k_chunks + keys * v_chunks)

    @property
    def label(self) -> str:
        d = self.definitions
        if not self.prefill:
            names = [
                f"{name.lower()}={value}" for name, value in d.items() if name not in ("ATOM", "MIN_BLOCKS")
            ]
            return " ".join(names)
        sides = f" {d['ABREAST']} abreast" if self.architecture < 75 else ""
        flags = [name for name, value in (("modified", "MODIFIED"), ("async", "ASYNC")) if d[value]]
        flags += [] if d["ALIGNED"] else ["unaligned"]
        dims = f"D={d['HEAD_DIM']}" + (f" Dv={d['V_DIM']}" if d["V_DIM"] != d["HEAD_DIM"] else "")
        shape = f"{d['WARPS']}x{d['WARP_ROWS']} rows {d['KEYS']} keys{sides}"
        return " ".join([str(d["ELEMENT"]), dims, shape, *flags])

    def changed(self, **definitions: str | int) -> Configuration:
        return replace(self, definitions=self.definitions | definitions)


def prefill(
    architecture: int,
    dim: int,
    warps: int,
    warp_rows: int,
    keys: int,
    *,
    v_dim: int = 0,
    abreast: int = 1,
    element: str = "Half",
    modified: int = 0,
    aligned: int = 1,
) -> Configuration:
    """A tensor-core kernel; copies by the copy engine where there is one and rows are aligned."""
    atom = ATOM_OF[architecture]
    definitions: dict[str, str | int] = {
        "ELEMENT": element, "HEAD_DIM": dim, "V_DIM": v_dim or dim, "WARPS": warps, "WARP_ROWS": warp_rows,
        "KEYS": keys, "MODIFIED": modified, "ALIGNED": aligned, "ASYNC": int(atom == 80 and aligned),
        "MIN_BLOCKS": 1,
    }  # fmt: skip
    if atom == 70:
        definitions["ABREAST"] = abreast
    return Configuration(ATOM_SOURCES[atom], "attention", architecture, definitions)


def launched(
    configure: Callable[..., Any], atom_of: dict[int, int] = ATOM_OF, dims: tuple[int, ...] = (64, 128, 256)
) -> Iterator[Configuration]:
    """All that a launcher chooses, asked of the launcher itself.

    Parameters
    ----------
    configure : callable
        ``configure(atom, q_dtype, kv_dtype, head_dim, v_dim, rows, *, aligned, modified, paged)``: something
        with the attributes ``file``, ``entry``, ``macros`` (pairs of names, without prefix, and values) and
        ``shared``. It raises TypeError for element types that the atom does not have.
    atom_of : dict
        Architectures, and the atom that each is given.
    dims : tuple of int
        Head dimensions.
    """
    for architecture, atom in atom_of.items():
        seen = set()
        for q_dtype, kv_dtype in (("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "float32"),
                                  ("float16", "int8")):  # fmt: skip
            for dim, rows, aligned, modified in itertools.product(
                dims, (1, 8, 4096), (True, False), (False, True)
            ):
                try:
                    one = configure(
                        atom,
                        q_dtype,
                        kv_dtype,
                        dim,
                        dim,
                        rows,
                        aligned=aligned,
                        modified=modified,
                        paged=False,
                    )
                except TypeError:
                    break
                values = {name: int(value) if str(value).isdigit() else value for name, value in one.macros}
                if one not in seen:
                    yield Configuration(one.file, one.entry, architecture, values, one.shared)
                seen.add(one)


def _shapes() -> Iterator[Configuration]:
    """For each architecture and head dimension the best known, or for Volta the best by the models."""
    for dim, warps, rows, keys in ((64, 4, 32, 64), (128, 8, 32, 32), (256, 8, 16, 16)):
        yield prefill(70, dim, warps, rows, keys, abreast=2)
    for dim, rows, keys in ((64, 32, 64), (128, 32, 32), (256, 16, 16)):
        yield prefill(75, dim, 4, rows, keys)
    for architecture in (80, 90):
        for dim, rows, keys in ((64, 32, 96), (128, 32, 64), (256, 16, 64)):
            yield prefill(architecture, dim, 4, rows, keys)


def _cuda_cores() -> Iterator[Configuration]:
    for architecture in ATOM_OF:
        for element in ("Float", "Half"):
            yield Configuration("00_naive.cu", "attention", architecture, {"ELEMENT": element})
            for source in ("01_online_softmax.cu", "02_tiling_mask.cu"):
                for dim in (64, 128, 256):
                    d: dict[str, str | int] = {
                        "ELEMENT": element,
                        "HEAD_DIM": dim,
                        "V_DIM": dim,
                        "MODIFIED": 0,
                    }
                    yield Configuration(source, "attention", architecture, d)


def _decode() -> Iterator[Configuration]:
    for architecture, atom in ATOM_OF.items():
        for query, element in (("Half", "Half"), ("Half", "Int8"), ("Float", "Float")):
            for dim in (64, 128, 256):
                for rows in (1, 4, 8):
                    tensor = atom != 70 and query == "Half"
                    if tensor and rows != 8:
                        continue  # tensor cores take 16 rows, whatever there are
                    yield Configuration("05_decode.cu", "decode", architecture, {
                        "ATOM": atom if tensor else 70, "QUERY": query, "ELEMENT": element, "HEAD_DIM": dim,
                        "V_DIM": dim, "ROWS": rows, "KEYS": 4, "WARPS": 4, "MODIFIED": 0, "PAGED": 0,
                        "ALIGNED": 1,
                        "MIN_BLOCKS": 1,
                    })  # fmt: skip


def principal() -> list[Configuration]:
    """The tensor-core kernels in the configurations that a call without extras takes."""
    return list(_shapes())


def every() -> list[Configuration]:
    """All that the launcher can choose, an element type and a way of loading at a time."""
    found = principal()
    for c in principal():
        found += [c.changed(MODIFIED=1), c.changed(ALIGNED=0, ASYNC=0)]
        if c.architecture >= 80:
            found.append(c.changed(ELEMENT="Bfloat"))
        if c.architecture == 70:
            found.append(replace(c, source="03_tensor_cores.cu"))
    return [*found, *_cuda_cores(), *_decode()]


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
                    if c.shared_bytes <= 96 * 1024 and held <= 235:
                        found.append(c)
    return found
