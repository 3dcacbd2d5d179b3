"""The problem as Python fills it and as the kernels read it."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from fastattention.gpu import KERNELS
from fastattention.gpu.problem import PROBLEM, divider

TYPES = {"i64": "<i8", "int": "<i4", "u32": "<u4", "float": "<f4"}


def fields_of(file: str, struct: str) -> list[tuple[str, np.dtype]]:
    """A struct's members in order; pointers are 8 bytes."""
    text = (KERNELS / file).read_text()
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", text, re.DOTALL)[1]
    body = re.sub(r"//.*", "", body)
    found = []
    for declaration in filter(None, (line.strip() for line in body.split(";"))):
        kind, names = re.match(r"(?:const )?(\w+)\s+(.*)", declaration, re.DOTALL).groups()
        for name in names.split(","):
            star, plain, count = re.match(r"(\*?)(\w+)(?:\[(\d+)\])?$", name.strip()).groups()
            base = "<u8" if star else TYPES[kind]
            found.append((plain, np.dtype((base, (int(count),)) if count else base)))
    return found


def test_names_order_and_types():
    assert [(name, PROBLEM[name]) for name in PROBLEM.names] == fields_of("problem.cuh", "Problem")


def test_offsets_are_the_compilers(tmp_path):
    """The struct as a C++ compiler lays it out."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler named c++")
    text = (KERNELS / "problem.cuh").read_text()
    body = re.search(r"struct Problem \{.*?\n\};", text, re.DOTALL)[0]
    prints = "".join(f'std::printf("%zu\\n", offsetof(Problem, {name}));\n' for name in PROBLEM.names)
    source = tmp_path / "layout.cpp"
    source.write_text(
        f"#include <cstddef>\n#include <cstdio>\ntypedef long long i64;\ntypedef unsigned u32;\n{body}\n"
        f'int main() {{\n{prints}std::printf("%zu\\n", sizeof(Problem));\n}}\n'
    )
    program = tmp_path / "layout"
    subprocess.run([compiler, "-std=c++17", "-o", program, source], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    offsets = [PROBLEM.fields[name][1] for name in PROBLEM.names]
    assert [int(line) for line in done.stdout.split()] == [*offsets, PROBLEM.itemsize]


@pytest.mark.parametrize("n", [*range(2, 70), 96, 127, 128, 129, 1000, 32767, 65535, 2**20 + 7, 2**31 - 1])
def test_division_by_multiplication(n):
    rng = np.random.default_rng(n)
    multiplier, shift = divider(n)
    assert 0 < multiplier < 2**32
    edges = [m * n + d for m in (0, 1, 2, (2**31 - 1) // n) for d in (-1, 0, 1)]
    for x in [*edges, 2**31 - 1, *map(int, rng.integers(0, 2**31, 500))]:
        if 0 <= x < 2**31:
            assert (x * multiplier >> 32) >> shift == x // n, x
