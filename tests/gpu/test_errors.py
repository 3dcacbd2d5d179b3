"""What is said where the GPU backend cannot run, with a module in CuPy's place; no kernel is imitated."""

from __future__ import annotations

import builtins
import types

import numpy as np
import pytest
from fastattention.gpu import compile, device, launch
from fastattention.gpu.choose import configure

import fastattention

MIB = 2**20


class CUDARuntimeError(RuntimeError):
    pass


class CompileException(Exception):  # noqa: N818, CuPy's name
    pass


def fake_cupy(*, major=8, minor=0, cuda=12090, count=1, free=5 * MIB):
    """As much of CuPy as asking for the card takes."""

    def get_device():
        if not count:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return 0

    properties = {
        "name": b"A card", "major": major, "minor": minor, "multiProcessorCount": 80,
        "maxThreadsPerMultiProcessor": 2048, "regsPerMultiprocessor": 65536,
        "sharedMemPerMultiprocessor": 96 * 1024, "sharedMemPerBlockOptin": 96 * 1024,
    }  # fmt: skip
    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDevice=get_device, getDeviceProperties=lambda n: properties,
        runtimeGetVersion=lambda: cuda, memGetInfo=lambda: (free, 16 * MIB),
    )  # fmt: skip

    def alloc(nbytes):
        raise MemoryError("pool")

    def raw_module(**kwargs):
        raise CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)")

    return types.SimpleNamespace(
        __version__="14.0.0", RawModule=raw_module,
        cuda=types.SimpleNamespace(
            runtime=runtime, alloc=alloc, compiler=types.SimpleNamespace(CompileException=CompileException)
        ),
    )  # fmt: skip


@pytest.fixture
def cupy(monkeypatch):
    """Put a fake CuPy in place."""

    def use(**properties):
        fake = fake_cupy(**properties)
        for module in (device, launch, compile):
            monkeypatch.setattr(module, "load_cupy", lambda: fake)
        device._card.cache_clear()
        return fake

    yield use
    device.set_atom(None)
    device._card.cache_clear()


def test_no_cupy(monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs CuPy.*cupy-cuda12x.*V100.*cupy-cuda13x") as caught:
        device.load_cupy()
    assert device.why_not() == str(caught.value)
    assert not device.available()
    assert device.describe() is None


def test_no_device(cupy):
    cupy(count=0)
    with pytest.raises(RuntimeError, match="found no CUDA device that works: cudaErrorNoDevice"):
        device.card()
    with pytest.raises(RuntimeError, match="found no CUDA device"):
        fastattention.get_gpu_atom()
    assert "no CUDA device" in device.why_not()


def test_cuda_13_dropped_volta(cupy):
    cupy(major=7, minor=0, cuda=13000)
    with pytest.raises(RuntimeError, match=r"capability 7\.0, which CUDA 13 dropped.*cupy-cuda12x"):
        device.card()
    cupy(major=7, minor=0, cuda=12090)
    assert device.get_atom() == 70
    cupy(major=7, minor=5, cuda=13000)
    assert device.get_atom() == 75


def test_too_old(cupy):
    cupy(major=6, minor=1)
    with pytest.raises(ValueError, match=r"needs compute capability 7\.0"):
        device.card()
    assert not device.available()


def test_forced_atoms(cupy):
    cupy(major=7, minor=5)
    assert fastattention.get_gpu_atom() == 75
    fastattention.set_gpu_atom(70)
    assert fastattention.get_gpu_atom() == 70
    for wrong, message in (
        (80, "has kernels up to 75, got 80"),
        (71, "one of"),
        (True, "one of"),
        ("70", "one of"),
    ):
        with pytest.raises(ValueError, match=f"set_gpu_atom: .*{message}"):
            fastattention.set_gpu_atom(wrong)
        assert fastattention.get_gpu_atom() == 70
    fastattention.set_gpu_atom(None)
    assert fastattention.get_gpu_atom() == 75


def test_show_config(cupy, capsys):
    cupy(major=8, minor=6)
    fastattention.set_gpu_atom(75)
    shown = fastattention.show_config()
    assert shown["gpu"]["compute_capability"] == (8, 6)
    line = (
        "gpu               A card, compute capability 8.6, kernels 75 (set_gpu_atom), CuPy 14.0.0 (CUDA 12.9)"
    )
    assert line in capsys.readouterr().out


def test_no_room(cupy):
    cupy(free=5 * MIB)
    with pytest.raises(
        MemoryError, match=r"room on the GPU for parts: asked for 12\.0 MiB, 5\.0 of 16\.0 MiB .*1/3"
    ):
        launch.allocate(12 * MIB, "parts")


def test_a_compiler_that_refuses(cupy):
    cupy(major=12)
    c = configure(80, "float32", "float32", 64, 64, 99, aligned=True, modified=False)
    with pytest.raises(
        RuntimeError, match=r"02_tiling_mask\.cu cannot be compiled for A card.*12\.0.*gpu-arch"
    ):
        compile.compiled(c, device.card())


def test_more_shared_memory_than_the_card_has(cupy):
    cupy()
    c = configure(80, "float16", "float16", 256, 256, 99, aligned=True, modified=False)
    with pytest.raises(RuntimeError, match=r"needs 101376 bytes of shared memory.*gives a block 98304"):
        compile.compiled(c, device.card())


@pytest.mark.parametrize("backend", ["gpu"])
def test_arrays_in_cpu_memory_are_not_moved(backend):
    q = np.ones((1, 1, 2, 8), np.float32)
    with pytest.raises(
        TypeError, match=r"q: backend='gpu' needs arrays on a CUDA device.*cupy\.asarray\(q\)"
    ):
        fastattention.attention(q, q, q, backend=backend)
    cache = fastattention.KVCache(1, 1, 8, dtype="float32", max_length=8)
    cache.append(q, q)
    with pytest.raises(ValueError, match="backend: this KVCache keeps its keys and values in CPU memory"):
        cache.attend(q, backend=backend)
