"""Every step of the ladder against the specification, on every instruction set it is compiled for."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastattention.cpu_kernels import ISAS, available_isas, ladder

from ..cases import solve
from ..test_isa_symbols import ARCHIVES, NEEDS_NM, _symbols
from ..tolerances import Expected, Problem, error_in_tolerances

HERE = Path(__file__).parents[2] / "cpu_kernels" / "ladder"
MARGIN = 64  # floats around each array, which no step may use

#: (queries, keys, head_dim): lengths around vectors, blocks and tiles of every step, then every head_dim.
SHAPES = [(n, n, 64) for n in (1, 2, 15, 16, 17, 47, 48, 49, 63, 64, 65, 127, 128, 129, 131, 193)]
SHAPES += [(1, 131, 32), (2, 17, 128), (17, 300, 48), (131, 200, 16), (200, 333, 80)]
SHAPES += [(17, 35, head_dim) for head_dim in range(16, 257, 16)]

steps = pytest.mark.parametrize("step", ladder.STEPS, ids=lambda step: step.name)
isas = pytest.mark.parametrize(
    "isa",
    [
        pytest.param(
            isa,
            marks=()
            if isa in ladder.available()
            else pytest.mark.skip(reason=f"this machine or this build lacks {isa}"),
        )
        for isa in ISAS
    ],
)


@functools.cache
def solved(
    queries: int, keys: int, head_dim: int, causal: bool, gain: float, heads: int = 2
) -> tuple[Problem, Expected]:
    """A problem of this shape whose queries are `gain` times standard normal, with its answer."""
    rng = np.random.default_rng([queries, keys, head_dim, causal])
    q, k, v = (rng.standard_normal((1, heads, n, head_dim)).astype(np.float32) for n in (queries, keys, keys))
    problem = Problem(np.float32(gain) * q, k, v, {"causal": causal})
    return problem, solve(problem, "float32", "float32")


def fenced(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a copy that lies between NaNs, and the whole buffer."""
    buffer = np.full(array.size + 2 * MARGIN, np.nan, dtype=np.float32)
    inside = buffer[MARGIN:-MARGIN].reshape(array.shape)
    inside[...] = array
    return inside, buffer


def run(step: ladder.Step, problem: Problem, isa: str, threads: int = 1) -> np.ndarray:
    """Return the output (1, H, Sq, D) of a step whose arrays lie between NaNs, and check the fence."""
    (q, _), (k, _), (v, _) = (fenced(x[0]) for x in (problem.q, problem.k, problem.v))
    out, buffer = fenced(np.full(q.shape, np.nan, dtype=np.float32))
    ladder.attention(
        step.number, q, k, v, out, causal=problem.options["causal"], isa=isa, num_threads=threads
    )
    assert np.isnan(buffer[:MARGIN]).all(), "wrote before the output"
    assert np.isnan(buffer[-MARGIN:]).all(), "wrote behind the output"
    return out[None]


def check(out: np.ndarray, expected: Expected, note: object) -> None:
    error = error_in_tolerances(out, expected.out, expected.out_tolerance)
    assert error.tolerances <= 1, f"{note}: {error}"


@steps
@isas
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_step_agrees_with_the_specification(step: ladder.Step, isa: str, causal: bool) -> None:
    for shape in SHAPES:
        problem, expected = solved(*shape, causal, 1.0)
        check(run(step, problem, isa), expected, shape)


@steps
@isas
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_large_logits(step: ladder.Step, isa: str, causal: bool) -> None:
    """Scores of thousands: no exponential may overflow, whenever in the row the maximum comes."""
    for shape in [(17, 17, 64), (131, 200, 128)]:
        problem, expected = solved(*shape, causal, 1000.0)
        assert np.abs(expected.lse).max() > 1000
        check(run(step, problem, isa), expected, shape)


@steps
@isas
def test_growing_and_falling_maximum(step: ladder.Step, isa: str) -> None:
    """The largest key comes last, so that every tile moves the maximum; then first, so that none does."""
    rows, head_dim = 150, 32
    rng = np.random.default_rng(1)
    q = np.abs(rng.standard_normal((1, 1, rows, head_dim))).astype(np.float32)
    v = rng.standard_normal((1, 1, rows, head_dim)).astype(np.float32)
    ramp = np.linspace(-20, 20, rows, dtype=np.float32)[None, None, :, None]
    for sign in (1, -1):
        problem = Problem(q, np.broadcast_to(sign * ramp, v.shape).copy(), v, {"causal": False})
        check(run(step, problem, isa), solve(problem, "float32", "float32"), sign)


@isas
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_nothing(isa: str, threads: int) -> None:
    threaded = next(step for step in ladder.STEPS if step.name.endswith("threads"))
    problem, _ = solved(333, 333, 64, True, 1.0, heads=3)
    one, several = (run(threaded, problem, isa, n) for n in (1, threads))
    np.testing.assert_array_equal(one, several)


def test_steps_and_files_agree() -> None:
    """Numbers without gaps, one file a step, one line of README.md a step, and the build has them all."""
    assert [step.name[:3] for step in ladder.STEPS] == [f"{i:02d}_" for i in range(len(ladder.STEPS))]
    assert [step.number for step in ladder.STEPS] == list(range(len(ladder.STEPS)))
    files = sorted(path.stem for path in HERE.glob("[0-9]*.cpp"))
    assert files == [step.name for step in ladder.STEPS]
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in readme.splitlines() if line.startswith("| `")]
    assert [name for name in listed if name.endswith(".cpp")] == [f"{name}.cpp" for name in files]


@steps
def test_every_step_is_one_lesson(step: ladder.Step) -> None:
    """It opens with a comment that says why and what binds, declares the one interface, and stays short."""
    text = (HERE / f"{step.name}.cpp").read_text(encoding="utf-8")
    opening = text.partition("#include")[0]
    assert all(line.startswith("//") for line in opening.splitlines())
    assert "What binds" in opening
    assert step.number == 0 or "Why it is" in opening
    assert text.count(f"LADDER_STEP({step.number:02d})") == 1
    assert len(text.splitlines()) < 120
    assert step.idea


def test_ladder_is_not_imported_with_the_package() -> None:
    code = "import sys, fastattention; sys.exit(any('ladder' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@NEEDS_NM
@pytest.mark.skipif(not ARCHIVES, reason="not an editable build: the objects of the steps are not at hand")
@pytest.mark.parametrize("isa", ladder.available())
def test_no_code_is_shared_between_instruction_sets(isa: str) -> None:
    """No weak symbol, of which the linker might keep the newer set's; and every name says whose it is."""
    archive = next(iter(ARCHIVES.values())).parent / "ladder" / f"libladder_{isa}.a"
    defined = [(kind, name) for kind, name in _symbols(archive) if kind != "U"]
    assert len(defined) > len(ladder.STEPS)
    assert not [name for kind, name in defined if kind in "wWvVu"]
    assert not [name for kind, name in defined if kind.isupper() and not name.endswith(f"_{isa}")]


def test_closest_isa() -> None:
    assert ladder.closest_isa("baseline") == "baseline"
    assert ladder.closest_isa(ISAS[-1]) == ladder.available()[-1]
    assert set(ladder.available()) <= set(available_isas())
    with pytest.raises(ValueError, match="avx1024"):
        ladder.closest_isa("avx1024")


def arrays(queries: int = 4, keys: int = 4, head_dim: int = 16) -> list[np.ndarray]:
    return [np.ones((1, n, head_dim), dtype=np.float32) for n in (queries, keys, keys, queries)]


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"step": len(ladder.STEPS)}, ValueError, "step: expected 0 to"),
        ({}, {"step": -1}, ValueError, "step: expected 0 to"),
        ({}, {"isa": "avx1024"}, ValueError, "isa: expected one of"),
        ({}, {"num_threads": 0}, ValueError, "num_threads: expected 1 or more"),
        ({0: np.ones((1, 4, 16))}, {}, TypeError, "q: expected float32"),
        ({1: np.ones((4, 16), dtype=np.float32)}, {}, ValueError, "k: expected a C-contiguous array"),
        ({2: np.ones((1, 16, 4), dtype=np.float32).swapaxes(1, 2)}, {}, ValueError, "v: expected a C-cont"),
        ({1: np.ones((1, 4, 32), dtype=np.float32)}, {}, ValueError, "k: expected shape"),
        ({2: np.ones((1, 5, 16), dtype=np.float32)}, {}, ValueError, "v: expected shape"),
        ({3: np.ones((1, 5, 16), dtype=np.float32)}, {}, ValueError, "out: expected shape"),
        (dict(enumerate(arrays(head_dim=24))), {}, ValueError, "multiple of 16"),
        (dict(enumerate(arrays(head_dim=272))), {}, ValueError, "at most 256"),
        (dict(enumerate(arrays(queries=5))), {"causal": True}, ValueError, "5 queries and 4 keys"),
        (dict(enumerate(arrays(keys=0))), {}, ValueError, "k: expected a C-contiguous array"),
    ],
)
def test_bad_input(
    change: dict[int, np.ndarray], options: dict[str, object], error: type[Exception], message: str
) -> None:
    given = arrays()
    for place, array in change.items():
        given[place] = array
    before = given[3].copy()
    with pytest.raises(error, match=message):
        ladder.attention(**{"step": 0, **options}, **dict(zip("qkv", given[:3], strict=True)), out=given[3])
    np.testing.assert_array_equal(given[3], before)


def test_out_must_not_be_an_input() -> None:
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        ladder.attention(0, q, k, v, v)
    fixed = np.ones_like(q)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected an array that can be written to"):
        ladder.attention(0, q, k, v, fixed)
