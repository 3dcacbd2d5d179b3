"""CUDA's compiler and disassembler without CUDA and without a GPU: two packages of the extra ``sass``.

``nvidia-cuda-nvrtc-cu12`` compiles for every architecture from sm_50 on (13 dropped sm_70).
``nvidia-cuda-nvdisasm`` has no 12; 13 refuses files for sm_70, but sm_75 has the same instructions in the
same encoding, so that the bare code is read as sm_75's. (Compared with nvdisasm 12.4, which knows sm_70, over
three of the kernels, 15440 instructions: all came out the same.)
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .sass import Instruction, parse

PACKAGES = ("nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-nvdisasm==13.5.37")
KERNELS = Path(__file__).resolve().parent.parent / "kernels"


class ToolchainError(RuntimeError):
    """A tool is not installed, or refused its input."""


@dataclass(frozen=True)
class Compiled:
    """A kernel as it would be loaded.

    Attributes
    ----------
    cubin : bytes
        The ELF file.
    code : bytes
        Machine code of the entry.
    registers : int
        Of a thread.
    stack, spill_stores, spill_loads : int
        Bytes of a thread in local memory, and those stored and loaded for want of registers.
    static_shared : int
        Bytes of shared memory beside the dynamic.
    constants : bytes
        Numbers that the compiler laid into constant bank 2 for want of immediates; often none.
    """

    architecture: int
    cubin: bytes
    code: bytes
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int
    constants: bytes = b""


def _find(pattern: str, package: str) -> Path:
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob(pattern)):
            return path
    raise ToolchainError(f"{package} is not installed: pip install {' '.join(PACKAGES)}")


@cache
def _nvrtc() -> ctypes.CDLL:
    return ctypes.CDLL(str(_find("cuda_nvrtc/lib/libnvrtc.so.12", PACKAGES[0])))


def available() -> str:
    """Why the tools cannot be used; empty if they can."""
    try:
        _nvrtc()
        _find("cu13/bin/nvdisasm", PACKAGES[1])
    except (ToolchainError, OSError) as error:
        return str(error)
    return ""


def _text(get_size: str, get: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _nvrtc()[get_size](program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    _nvrtc()[get](program, buffer)
    return buffer.raw[: size.value]


def compile_kernel(
    source: str, architecture: int, definitions: dict[str, str | int], *, entry: str, folder: Path = KERNELS
) -> Compiled:
    """Compiles one kernel as CuPy does at run time.

    Parameters
    ----------
    source : str
        File in `folder`.
    architecture : int
        70 for sm_70, ...
    definitions : dict
        Macros, with their prefix.
    entry : str
        Name of the kernel.
    folder : Path
        Where the source and what it includes lie.

    Raises
    ------
    ToolchainError
        With the compiler's messages.
    """
    headers = {path.name: path.read_bytes() for path in sorted(folder.glob("*.cuh"))}
    lib, program = _nvrtc(), ctypes.c_void_p()
    strings = ctypes.c_char_p * len(headers)
    status = lib.nvrtcCreateProgram(
        ctypes.byref(program), (folder / source).read_bytes(), source.encode(), len(headers),
        strings(*headers.values()), strings(*(name.encode() for name in headers)),
    )  # fmt: skip
    if status:
        raise ToolchainError(f"{source}: nvrtcCreateProgram failed with status {status}")
    options = [f"--gpu-architecture=sm_{architecture}", "-std=c++17", "-default-device", "--ptxas-options=-v"]
    options += [f"-D{name}={value}" for name, value in definitions.items()]
    try:
        status = lib.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        )
        log = _text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program).rstrip(b"\0").decode()
        if status:
            raise ToolchainError(f"{source} for sm_{architecture} with {definitions}:\n{log}")
        cubin = _text("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
    code = _section(cubin, f".text.{entry}")
    if code is None:
        raise ToolchainError(f"the cubin has no code of {entry!r}")
    constants = _section(cubin, f".nv.constant2.{entry}") or b""
    return Compiled(architecture, cubin, code, **_resources(log, entry), constants=constants)


def _resources(log: str, entry: str) -> dict[str, int]:
    """What ``ptxas -v`` said of the entry."""
    about = log.partition(f"Compiling entry function '{entry}'")[2]
    memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", about)
    used = re.search(r"Used (\d+) registers", about)
    if not memory or not used:
        raise ToolchainError(f"the compiler's messages tell nothing of {entry!r}:\n{log}")
    shared = re.search(r"(\d+) bytes smem", about)
    return {
        "registers": int(used[1]),
        "stack": int(memory[1]),
        "spill_stores": int(memory[2]),
        "spill_loads": int(memory[3]),
        "static_shared": int(shared[1]) if shared else 0,
    }


def _section(elf: bytes, name: str) -> bytes | None:
    """Contents of a section of a 64-bit ELF file; None where it has none of that name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + n * size) for n in range(count)]
    for header in headers:
        at = headers[names][4] + header[0]
        if elf[at : elf.index(b"\0", at)].decode() == name:
            return elf[header[4] : header[4] + header[5]]
    return None


def disassemble(compiled: Compiled) -> list[Instruction]:
    """Instructions of a compiled kernel."""
    tool = _find("cu13/bin/nvdisasm", PACKAGES[1])
    read_as = 75 if compiled.architecture < 75 else compiled.architecture
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code"
        path.write_bytes(compiled.code)
        done = subprocess.run(
            [tool, "--binary", f"SM{read_as}", path], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise ToolchainError(f"{tool.name}: {done.stderr.strip()}")
    return parse(done.stdout, compiled.code)
