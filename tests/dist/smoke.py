"""What an installed FastAttention must do where nothing else is installed but what it requires.

Run by the interpreter of that environment, warnings as errors, outside the checkout. `--verify`: Rich is
there, too.

    python -W error smoke.py [--verify] [name=version ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import fastattention
from fastattention.verify.tolerances import Problem, error_in_tolerances, tolerances

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"window": (9, 0), "softcap": 5.0},
    {"kv_lengths": np.array([37, 3]), "sinks": np.array([0.5, -1.0, 2.0, 0.0], np.float32)},
)


def check_place(versions: list[str]) -> None:
    """The package is the installed one, and stands on the versions that are to be tried."""
    place = Path(fastattention.__file__).resolve()
    assert place.is_relative_to(Path(sys.prefix).resolve()), f"{place} is not in {sys.prefix}"
    for wanted in versions:
        name, _, number = wanted.partition("=")
        assert version(name) == number, f"{name} is {version(name)}, not {number}"


def check_attention() -> None:
    """On every instruction set of this machine, results are as near to float64 as they promise to be."""
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float16"):
        shapes = ((2, 4, 19, 40), (2, 2, 37, 40), (2, 2, 37, 24))
        q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
        for options in OPTIONS:
            out, lse = fastattention.reference.standard.attention(q, k, v, **options)
            allowed = tolerances(Problem(q, k, v, options), out, lse, dtype, "float32")
            for isa in fastattention.cpu_kernels.available_isas():
                fastattention.set_isa(isa)
                got = fastattention.attention(q, k, v, return_lse=True, **options)
                assert got[0].dtype == q.dtype, got[0].dtype
                for ours, exact, room in zip(got, (out, lse), allowed, strict=True):
                    error = error_in_tolerances(ours, exact, room).tolerances
                    assert error <= 1, f"{isa}, {dtype}, {options}: {error:.2f} tolerances from the reference"
            fastattention.set_isa(None)


def check_cache() -> None:
    """A paged cache, filled in two steps, says what one call over all keys says."""
    rng = np.random.default_rng(1)
    k, v = rng.standard_normal((2, 1, 2, 40, 32), dtype=np.float32)
    q = rng.standard_normal((1, 4, 1, 32), dtype=np.float32)
    cache = fastattention.KVCache(1, 2, 32, dtype="float32", page_size=16, max_length=64)
    cache.append(k[:, :, :33], v[:, :, :33])
    cache.append(k[:, :, 33:], v[:, :, 33:])
    np.testing.assert_allclose(cache.attend(q), fastattention.attention(q, k, v), rtol=1e-5, atol=1e-6)


def command(*arguments: str, code: int = 0) -> str:
    """Run the installed command; return what it printed. Its exit code must be `code`."""
    program = Path(sysconfig.get_path("scripts")) / "fastattention"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code, (
        f"fastattention {' '.join(arguments)}: {done.returncode}, not {code}\n{said}"
    )
    return said


def check_commands() -> None:
    """The command runs, plans without a GPU, and names the extra that it lacks."""
    assert command("--version").split() == ["fastattention", version("fastattention")]
    assert fastattention.get_isa() in command("config")
    plan = command(
        "plan", "--model", "llama-3-8b", "--gpu", "v100-16gb", "--context", "256k", "--json", "plan.json"
    )
    assert "V100" in plan, plan
    assert json.loads(Path("plan.json").read_text(encoding="utf-8")), "an empty plan"
    if importlib.util.find_spec("rich") is None:
        for name in ("verify fastattention:attention", "bench --list"):
            assert "fastattention[bench]" in command(*name.split(), code=2)


def check_verify() -> None:
    """The command that holds kernels to the reference finds nothing wrong with the installed ones."""
    command(
        "verify", "fastattention:attention", "--only", "causal", "--quick", "--seed", "3", "--json", "v.json"
    )
    report = json.loads(Path("v.json").read_text(encoding="utf-8"))
    assert report["seed"] == 3, report["seed"]
    assert len(report["results"]) > 10, report["results"]
    assert all(result["finding"] is None for result in report["results"])


def main() -> None:
    """Check all, in the current folder, and say on which versions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("versions", nargs="*")
    args = parser.parse_args()
    check_place(args.versions)
    if args.verify:
        check_verify()
        return
    check_attention()
    check_cache()
    check_commands()
    names = ("numpy", "cffi", "ml_dtypes")
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in names))


if __name__ == "__main__":
    main()
