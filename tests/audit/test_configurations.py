"""What is audited: every kernel and element type, and whatever the launcher chooses."""

from __future__ import annotations

from typing import Any

import pytest
from fastattention.gpu import choose
from fastattention.gpu.audit import configurations, toolchain


def configure(
    atom: int, q_dtype: str, kv_dtype: str, head_dim: int, v_dim: int, rows: int, **flags: bool
) -> choose.Configuration:
    if q_dtype == "bfloat16" and atom < 80:
        raise TypeError("none")
    macros = (("ELEMENT", kv_dtype), ("HEAD_DIM", str(head_dim)), ("ALIGNED", str(int(flags["aligned"]))))
    return choose.Configuration("00_naive.cu", "attention", macros, 32, 1, 1, head_dim)


def test_the_launcher_is_asked() -> None:
    found = list(configurations.launched(configure, dims=((64, 64), (128, 128))))
    kinds: dict[int, set[Any]] = {}
    for c in found:
        kinds.setdefault(c.architecture, set()).add(c.definitions["ELEMENT"])
        assert c.chosen.shared == c.number("HEAD_DIM")
        assert c.flag("ALIGNED") == (c.definitions["ALIGNED"] == "1")  # "0" would be true
    assert kinds[70] == kinds[75] == {"float16", "float32", "int8"}
    assert kinds[80] == kinds[90] == {"float16", "bfloat16", "float32", "int8"}
    # rows and modified change nothing here: each choice comes once for each way of asking that differs
    assert sum(c.architecture == 70 for c in found) == 3 * 2 * 2


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("aligned", "modified"), [(True, False), (False, True)])
def test_what_is_launched_is_audited(dim: int, aligned: bool, modified: bool) -> None:
    audited = configurations.every()
    for architecture, atom in configurations.ATOM_OF.items():
        for rows in (1, 4096):
            chosen = choose.configure(
                atom, "float16", "float16", dim, dim, rows, aligned=aligned, modified=modified,
                sm_shared=configurations.SM_SHARED[architecture],
            )  # fmt: skip
            assert configurations.Configuration(chosen, architecture) in audited


def test_principal_are_plain_and_few() -> None:
    found = configurations.principal()
    assert all(c.plain for c in found)
    assert {c.architecture for c in found if c.prefill} == set(configurations.ATOM_OF)
    assert set(found) < set(configurations.every())
    assert len(found) < 60


def test_every_source_is_audited() -> None:
    audited = {c.source for c in configurations.every()}
    kernels = {path.name for path in toolchain.KERNELS.glob("*.cu")}
    # No attention: a cache's rows, the joining of parts, the rest of a decoder, and bytes over the bus.
    assert audited == kernels - {"08_append.cu", "09_merge.cu", "10_decoder.cu", "11_carry.cu"}


def test_every_architecture_and_element() -> None:
    found = configurations.every()
    assert {c.architecture for c in found} == set(configurations.ATOM_OF)
    for architecture in (80, 90):
        assert any(c.architecture == architecture and c.definitions["ELEMENT"] == "Bfloat" for c in found)
    assert any(c.definitions["ELEMENT"] == "Int8" for c in found)
