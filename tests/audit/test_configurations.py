"""What is audited: every kernel and element type, and whatever the launcher chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastattention.gpu.audit import configurations, toolchain


@dataclass(frozen=True)
class Choice:
    file: str
    entry: str
    macros: tuple[tuple[str, str], ...]
    shared: int


def configure(
    atom: int, q_dtype: str, kv_dtype: str, head_dim: int, v_dim: int, rows: int, **flags: bool
) -> Choice:
    if q_dtype == "bfloat16" and atom < 80:
        raise TypeError("none")
    macros = (("ELEMENT", kv_dtype), ("HEAD_DIM", str(head_dim)), ("ALIGNED", str(int(flags["aligned"]))))
    return Choice("00_naive.cu", "attention", macros, head_dim)


def test_the_launcher_is_asked() -> None:
    found = list(configurations.launched(configure, dims=(64, 128)))
    kinds: dict[int, set[Any]] = {}
    for c in found:
        kinds.setdefault(c.architecture, set()).add(c.definitions["ELEMENT"])
        assert c.shared_bytes == c.number("HEAD_DIM")
        assert isinstance(c.definitions["ALIGNED"], int)  # "0" would be true
    assert kinds[70] == kinds[75] == {"float16", "float32", "int8"}
    assert kinds[80] == kinds[90] == {"float16", "bfloat16", "float32", "int8"}
    # rows and modified change nothing here: each choice comes once for each way of asking that differs
    assert sum(c.architecture == 70 for c in found) == 3 * 2 * 2


def test_every_source_is_audited() -> None:
    audited = {c.source for c in configurations.every()}
    kernels = {path.name for path in toolchain.KERNELS.glob("*.cu")}
    assert audited == kernels - {"08_append.cu"}  # which writes a cache's rows; no attention


def test_every_architecture_and_element() -> None:
    found = configurations.every()
    assert {c.architecture for c in found} == set(configurations.ATOM_OF)
    for architecture in (80, 90):
        assert any(c.architecture == architecture and c.definitions["ELEMENT"] == "Bfloat" for c in found)
    assert any(c.definitions.get("ELEMENT") == "Int8" for c in found)
