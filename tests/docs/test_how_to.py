"""Code of the how-to pages that the book does not execute: it runs here, where its packages are installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastattention import gpu

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to"
PAGE = HOW_TO / "use-with-pytorch-jax-onnx.md"
ROOMS = ("cpu_kernels", "gpu", "fastattention", "reference", "tests")
NEEDS = {
    "PyTorch": ["torch"],
    "PyTorch on a GPU": ["torch", "cupy"],
    "JAX": ["jax"],
    "ONNX": ["onnx", "onnxruntime"],
}


def sections() -> dict[str, str]:
    """Return the code of each section that has some, in order."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    code = {
        title: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for title, text in found.items()
    }
    return {title: text for title, text in code.items() if text}


def run(title: str, folder: Path) -> str:
    """Run a section's code in a process of its own, outside the checkout, and return what it prints."""
    missing = [name for name in NEEDS[title] if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    environment = dict(os.environ)
    if title == "JAX":
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-W", "error", "-c", sections()[title]]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_section_with_code_is_run() -> None:
    assert sections().keys() == NEEDS.keys()
    for title, code in sections().items():
        compile(code, title, "exec")


@pytest.mark.peers
def test_pytorch(tmp_path: Path) -> None:
    output = run("PyTorch", tmp_path).splitlines()
    assert output[:2] == ["torch.Size([2, 100, 512])", "torch.bfloat16"]
    assert output[2] == "<class 'torch.Tensor'> torch.Size([1, 8, 1, 64]) [102]"


@pytest.mark.peers
@pytest.mark.gpu
@pytest.mark.skipif(bool(gpu.why_not()), reason=f"no CUDA device: {gpu.why_not()}")
def test_pytorch_on_a_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    assert run("PyTorch on a GPU", tmp_path) == "cuda:0 torch.float16\n"


@pytest.mark.peers
def test_jax(tmp_path: Path) -> None:
    first, last = run("JAX", tmp_path).splitlines()
    assert "jax" in first
    assert first.endswith("bfloat16")
    assert 0 < float(last.split()[-1]) < 4e-2


@pytest.mark.peers
def test_onnx(tmp_path: Path) -> None:
    output = run("ONNX", tmp_path).splitlines()
    assert output[:2] == ["(2, 8, 100, 64) float32", "[2, 8, 100, 64] tensor(float)"]
    assert "'w_k': ((512, 512), dtype('float32'))" in output[2]


def test_what_the_page_on_kernels_names_is_there() -> None:
    text = (HOW_TO / "add-a-kernel.md").read_text(encoding="utf-8")
    sources = {
        path: path.read_text(encoding="utf-8")
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in {".py", ".cpp", ".hpp", ".h", ".cu", ".cuh", ".build"}
    }
    words = set(re.findall(r"`([^`{}\n]+)`", text))
    files = {w for w in words if re.fullmatch(r"[\w./*]+\.(py|cpp|hpp|h|cu|cuh|build)", w)} - {"isa/name.cpp"}
    places = ("", "cpu_kernels", "gpu", "gpu/kernels", "fastattention", "fastattention/bench", "tests")
    assert len(files) > 20
    assert sorted(f for f in files if not any([*(ROOT / place).glob(f)] for place in places)) == []
    names = {w for w in words if re.fullmatch(r"[A-Za-z_]\w*", w) and ("_" in w.strip("_") or w[0].isupper())}
    names -= {"FA_ISA_NAME", "kernels_name"}  # those of the set that the page adds
    code = "\n".join(sources.values())
    assert len(names) > 15
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", code)) == []
