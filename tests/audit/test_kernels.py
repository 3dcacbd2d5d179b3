"""The kernels' machine code, without a GPU: as required, right when executed; and mutations are caught."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastattention.gpu import choose
from fastattention.gpu.audit import configurations, launch, toolchain
from fastattention.gpu.audit.__main__ import main
from fastattention.gpu.audit.configurations import Configuration, prefill
from fastattention.gpu.audit.processor import Program
from fastattention.gpu.audit.study import TOLERANCE, Study, examine
from numpy.typing import NDArray

from reference import standard

pytestmark = [
    pytest.mark.sass,
    pytest.mark.skipif(bool(toolchain.available()), reason=toolchain.available() or "installed"),
]
VOLTA = [c for c in configurations.principal() if c.architecture == 70 and c.prefill]
SMALL = prefill(70, 32, 1, 32, 16)


@pytest.mark.parametrize("c", VOLTA, ids=lambda c: c.label)
def test_volta_is_as_required(c: Configuration) -> None:
    study = examine(c)
    assert not study.failures
    assert study.execution is not None
    assert study.loop_hmma == study.loop_hmma_needed


@pytest.mark.parametrize("architecture", [75, 80, 90])
def test_other_architectures_compile(architecture: int) -> None:
    (c,) = (
        c
        for c in configurations.principal()
        if c.architecture == architecture and c.prefill and c.number("HEAD_DIM") == 64
    )
    study = examine(c)
    assert study.loop_hmma == study.loop_hmma_needed
    assert 0 < study.registers <= 255


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cuda_cores_and_decode_compile_for_volta(dtype: str) -> None:
    chosen = [
        *configurations.launched(
            atom_of={70: 70}, kinds=[(dtype, dtype)], dims=[(64, 64)], rows=(8,), variants=[(True, False)]
        ),
        *(c for c in configurations.ladder() if c.architecture == 70 and c.definitions["ELEMENT"] == "Float"),
    ]
    chosen = [c for c in chosen if c.definitions.get("HEAD_DIM", "64") == "64"]
    assert {c.source[:2] for c in chosen} == {"00", "01", "05"}
    assert [c.label for c in chosen if examine(c).failures] == []


def operands(
    heads: int, q_len: int, k_len: int, dim: int, v_dim: int
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float16]]:
    rng = np.random.default_rng(q_len + k_len)
    q = rng.standard_normal((1, heads, q_len, dim)).astype(np.float16)
    k = rng.standard_normal((1, 1, k_len, dim)).astype(np.float16)
    return q, k, rng.standard_normal((1, 1, k_len, v_dim)).astype(np.float16)


def emulate(chosen: choose.Configuration, *arrays: NDArray[np.float16], **options: Any) -> launch.Result:
    """What a kernel's machine code for Volta makes of operands."""
    macros: dict[str, str | int] = {f"FA_{name}": value for name, value in chosen.macros}
    compiled = toolchain.compile_kernel(chosen.file, 70, macros, entry=chosen.entry)
    return launch.attention(
        Program(toolchain.disassemble(compiled), compiled.constants), chosen, *arrays, **options
    )


@pytest.mark.parametrize(
    ("c", "heads", "window", "softcap"),
    [
        (SMALL, 2, (-1, -1), 0.0),
        (SMALL, 1, (-1, 0), 0.0),
        (SMALL.changed(ALIGNED=0), 1, (7, 3), 0.0),
        (SMALL.changed(MODIFIED=1), 1, (-1, 0), 2.0),
        (prefill(70, 64, 2, 16, 16, abreast=2), 1, (-1, 0), 0.0),
        (prefill(70, 32, 1, 32, 32, v_dim=64, abreast=2), 1, (20, -1), 0.0),
        (prefill(70, 32, 1, 64, 16, abreast=1), 1, (-1, 0), 0.0),
    ],
    ids=[
        "grouped heads",
        "causal",
        "window, unaligned",
        "softcap",
        "two by two",
        "two tiles, Dv=64",
        "64 rows",
    ],
)
def test_machine_code_against_the_specification(
    c: Configuration, heads: int, window: tuple[int, int], softcap: float
) -> None:
    dims = c.number("HEAD_DIM"), c.number("V_DIM")
    q, k, v = operands(heads, c.chosen.rows + 5, 3 * c.number("KEYS") + 3, *dims)
    found = emulate(c.chosen, q, k, v, window=window, softcap=softcap)
    out, lse = standard.attention(q, k, v, window=window, softcap=softcap or None)
    np.testing.assert_allclose(found.out, out, atol=TOLERANCE)
    np.testing.assert_allclose(found.lse, lse, atol=1e-5)


@pytest.mark.parametrize(
    ("dims", "lengths", "options", "padding"),
    [
        ((64, 64), (131, 150), {"window": (-1, 0)}, 0),
        ((61, 47), (33, 131), {"window": (-1, 0), "softcap": 3.0}, 2),
        ((72, 64), (29, 70), {"window": (19, 5), "q_offset": 21}, 8),
        ((128, 128), (37, 77), {"window": (-1, 0), "q_offset": 3}, 0),
        ((113, 128), (19, 51), {}, 1),
        ((128, 120), (21, 45), {"softcap": 1.5, "window": (30, -1)}, 0),
        ((256, 256), (17, 37), {"window": (-1, 0)}, 0),
        ((131, 251), (18, 35), {"window": (9, 0), "q_offset": -4}, 3),
    ],
    ids=lambda x: str(x).replace(" ", ""),
)
def test_what_is_launched_on_volta_against_the_specification(
    dims: tuple[int, int], lengths: tuple[int, int], options: dict[str, Any], padding: int
) -> None:
    """Sizes that are no multiples of tiles, rows off multiples of 16 bytes, poison around."""
    q, k, v = operands(1, *lengths, *dims)
    aligned = all((n + padding) % 8 == 0 and n % 8 == 0 for n in dims)
    chosen = choose.configure(
        70, "float16", "float16", *dims, 4096, aligned=aligned, modified="softcap" in options
    )
    found = emulate(chosen, q, k, v, padding=padding, **options)
    out, lse = standard.attention(q, k, v, **options)
    np.testing.assert_allclose(found.out, out, atol=TOLERANCE)
    np.testing.assert_allclose(found.lse, lse, atol=1e-5)


def mutant(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the kernels with one thing changed."""
    shutil.copytree(toolchain.KERNELS, folder / "kernels")
    path = folder / "kernels" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return folder / "kernels"


def failures(study: Study) -> str:
    return "\n".join(study.failures)


def test_even_row_stride_is_caught(tmp_path: Path) -> None:
    kernels = mutant(tmp_path, "04_prefetch.cu", "FA_ODD_ROWS 1", "FA_ODD_ROWS 0")
    assert "bank conflicts: loads take" in failures(examine(VOLTA[0], kernels))


def test_missing_product_is_caught(tmp_path: Path) -> None:
    kernels = mutant(tmp_path, "atom_volta.cuh", "d < DIM / 8;", "d < DIM / 8 - 1;")
    found = failures(examine(VOLTA[0], kernels))
    assert "HMMA in the loop; expected" in found
    assert "wrong result" in found


def test_wrong_lane_is_caught(tmp_path: Path) -> None:
    """The weights of the wrong row: nothing but the executed result tells."""
    kernels = mutant(tmp_path, "atom_volta.cuh", "upper ? theirs : mine", "upper ? mine : theirs")
    assert failures(examine(VOLTA[0], kernels)).startswith("wrong result")


def test_missing_barrier_is_caught_by_poison(tmp_path: Path) -> None:
    """Warps that do not wait read what others have not written: NaN."""
    kernels = mutant(
        tmp_path, "attention.cuh", "      v_loads.land(v);\n      __syncthreads();", "      v_loads.land(v);"
    )
    assert failures(examine(VOLTA[0], kernels))


def test_spill_is_caught() -> None:
    assert "local memory" in failures(examine(VOLTA[0].changed(MIN_BLOCKS=4), execute=False))


def test_compiler_error_names_the_source() -> None:
    with pytest.raises(toolchain.ToolchainError, match=r"04_prefetch\.cu for sm_70"):
        examine(VOLTA[0].changed(ELEMENT="Quarter"))


def test_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    assert main(["--arch", "70", "--match", "04_prefetch", "--no-run", "--json", str(report)]) == 0
    assert '"HMMA"' not in report.read_text(encoding="utf-8")
    assert "3 of 3 configurations are as required" in capsys.readouterr().out
    monkeypatch.setattr(configurations, "principal", lambda: [VOLTA[0].changed(MIN_BLOCKS=4)])
    assert main(["--no-run"]) == 1
    assert "FAILS sm_70" in capsys.readouterr().out
    assert main(["--match", "no such thing"]) == 2
