"""The kernels' machine code, without a GPU: as required, right when executed; and mutations are caught."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fastattention.gpu.audit import configurations, launch, toolchain
from fastattention.gpu.audit.__main__ import main
from fastattention.gpu.audit.configurations import Configuration, prefill
from fastattention.gpu.audit.processor import Program
from fastattention.gpu.audit.study import TOLERANCE, Study, examine

from reference import standard

pytestmark = [
    pytest.mark.sass,
    pytest.mark.skipif(bool(toolchain.available()), reason=toolchain.available() or "installed"),
]
VOLTA = [c for c in configurations.principal() if c.architecture == 70]
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
        c for c in configurations.principal() if c.architecture == architecture and c.number("HEAD_DIM") == 64
    )
    study = examine(c)
    assert study.loop_hmma == study.loop_hmma_needed
    assert 0 < study.registers <= 255


@pytest.mark.parametrize("element", ["Half", "Float"])
def test_cuda_cores_and_decode_compile_for_volta(element: str) -> None:
    chosen = [
        c
        for c in configurations.every()
        if c.architecture == 70
        and not c.prefill
        and c.definitions["ELEMENT"] == element
        and c.definitions.get("HEAD_DIM", 64) == 64
        and c.definitions.get("ROWS", 4) == 4
    ]
    assert {c.source[:2] for c in chosen} == {"00", "01", "02", "05"}
    assert [c.label for c in chosen if examine(c).failures] == []


def emulate(
    c: Configuration, q_len: int, k_len: int, *, heads: int = 1, **options: object
) -> tuple[launch.Result, tuple]:
    """A kernel's result, and the operands."""
    compiled = toolchain.compile_kernel(c.source, c.architecture, c.macros, entry=c.entry)
    program = Program(toolchain.disassemble(compiled))
    rng = np.random.default_rng(q_len + k_len)
    dims = c.number("HEAD_DIM"), c.number("HEAD_DIM"), c.number("V_DIM")
    shapes = zip((heads, 1, 1), (q_len, k_len, k_len), dims, strict=True)
    arrays = tuple(rng.standard_normal((1, *shape)).astype(np.float16) for shape in shapes)
    found = launch.attention(
        program,
        *arrays,
        rows=c.rows,
        threads=c.threads,
        shared_bytes=c.shared_bytes,
        **options,  # type: ignore[arg-type]
    )
    return found, arrays


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
    q_len, k_len = c.rows + 5, 3 * c.number("KEYS") + 3
    found, (q, k, v) = emulate(c, q_len, k_len, heads=heads, window=window, softcap=softcap)
    out, lse = standard.attention(q, k, v, window=window, softcap=softcap or None)
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
    assert main(["--arch", "70", "--match", "D=64", "--no-run", "--json", str(report)]) == 0
    assert '"HMMA"' not in report.read_text(encoding="utf-8")
    assert "1 of 1 configurations are as required" in capsys.readouterr().out
    monkeypatch.setattr(configurations, "principal", lambda: [VOLTA[0].changed(MIN_BLOCKS=4)])
    assert main(["--no-run"]) == 1
    assert "FAILS sm_70" in capsys.readouterr().out
    assert main(["--match", "no such thing"]) == 2
