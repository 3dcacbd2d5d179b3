"""Arrays on CUDA devices: CuPy's inside, of the caller's kind outside, on the caller's current stream.

The *kind* of such an array names its library and its device, "torch cuda:0"; that of an array in CPU memory
names the library alone. Arrays become CuPy's without a copy, PyTorch's by their addresses, JAX's and others
through DLPack. CuPy is imported when the first array on a device comes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from . import gpu

__all__ = [
    "addresses", "check_aligned", "check_beside", "check_dtype", "check_place", "check_tensors", "device_of",
    "empty", "import_array", "on_device", "scope", "to_caller",
]  # fmt: skip


class _Stream:
    """A stream of another library, as CuPy takes it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def on_device(kind: str) -> bool:
    """Return whether arrays of a kind lie on a device."""
    return "cuda:" in kind


def device_of(kind: str) -> int:
    """Return the device's number."""
    return int(kind.rpartition(":")[2])


def import_array(x: Any, name: str, library: str) -> tuple[Any, str]:
    """Return an array on a CUDA device as CuPy's, without a copy, and its kind.

    Raises
    ------
    ImportError
        There is no CuPy.
    TypeError
        CuPy cannot take it.
    """
    cupy = gpu.load_cupy()
    if library == "cupy":
        array = x
    elif library == "torch":
        array = _from_torch(x, name)
    else:
        try:
            array = cupy.from_dlpack(x)
        except (BufferError, RuntimeError, ValueError, TypeError) as error:
            raise TypeError(f"{name}: {type(x).__name__} cannot be taken through DLPack: {error}") from error
    return array, f"{library} cuda:{int(array.device.id)}"


def _from_torch(x: Any, name: str) -> Any:
    """Return a tensor as CuPy's array over the same memory, which keeps the tensor.

    DLPack says the same, but asks PyTorch for streams at every call, which `scope` has made the same already.
    """
    cupy = gpu.load_cupy()
    try:
        dtype, address = _numpy_dtype(x.dtype), x.data_ptr()
        size = dtype.itemsize
        steps = tuple([step * size for step in x.stride()])
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{name}: this {x.dtype} {x.layout} tensor cannot be read as an array: {error}"
        ) from error
    shape = tuple(x.shape)
    span = size + sum(step * (n - 1) for step, n in zip(steps, shape, strict=True))
    memory = cupy.cuda.UnownedMemory(address, max(span, 0), x, x.device.index)
    return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0), strides=steps)


@cache
def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return NumPy's dtype of the name that PyTorch's has."""
    name = str(dtype).rpartition(".")[2]
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@contextmanager
def scope(kind: str) -> Iterator[None]:
    """Make the device of a kind's arrays CuPy's current one, and the caller's current stream CuPy's."""
    cupy = gpu.load_cupy()
    number = device_of(kind)
    with cupy.cuda.Device(number):
        if not kind.startswith("torch "):  # CuPy's own stream; DLPack makes others wait for it
            yield
            if kind.startswith("jax "):
                # It knows nothing of this stream, and may write to an input as soon as nobody holds it.
                cupy.cuda.get_current_stream().synchronize()
            return
        handle = int(sys.modules["torch"].cuda.current_stream(number).cuda_stream)
        # Workspace from PyTorch, too, which knows what a CUDA graph that it captures still needs.
        with _stream(handle, number), cupy.cuda.using_allocator(_allocate_from_torch):
            yield


@lru_cache(maxsize=64)  # it is a number with methods: nothing is held
def _stream(handle: int, number: int) -> Any:
    """Return another library's stream as CuPy's."""
    cupy = gpu.load_cupy()
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Stream(handle))
    return cupy.cuda.ExternalStream(handle, number)  # CuPy 13


def _allocate_from_torch(nbytes: int) -> Any:
    """Return room on the current device as CuPy's allocators do."""
    cupy, torch = gpu.load_cupy(), sys.modules["torch"]
    number = cupy.cuda.Device().id
    try:
        room = torch.empty(nbytes, dtype=torch.uint8, device=f"cuda:{number}")
    except RuntimeError as error:
        if "OutOfMemory" not in type(error).__name__:  # whose place differs between versions
            raise
        raise MemoryError(str(error)) from error
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(room.data_ptr(), nbytes, room, number), 0)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], kind: str, name: str) -> Any:
    """Return room for a result on the device, from the caller's library where that can be asked.

    Raises
    ------
    MemoryError
        There is none: what was asked for, and what would fit.
    """
    cupy = gpu.load_cupy()
    try:
        if not kind.startswith("torch "):
            return cupy.empty(shape, dtype)
        torch = sys.modules["torch"]
        # PyTorch's own memory: two pools on one device would keep it from each other.
        own = torch.empty(shape, dtype=getattr(torch, dtype.name), device=kind.partition(" ")[2])
        return _from_torch(own, name)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "OutOfMemory" not in type(error).__name__:
            raise
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raise MemoryError(f"{name}: {gpu.no_room(size, f'{dtype} {shape}')}") from error


def to_caller(array: Any, kind: str) -> Any:
    """Return a CuPy array as one of the caller's kind, without a copy."""
    library = kind.partition(" ")[0]
    if library == "cupy":
        return array
    if library == "torch":
        owner = getattr(array.data.mem, "_owner", None)
        # What `empty` asked PyTorch for, unless the array is a part of it.
        if isinstance(owner, sys.modules["torch"].Tensor) and tuple(owner.shape) == array.shape:
            return owner
    module: Any = sys.modules.get(library)
    from_dlpack = module.dlpack.from_dlpack if library == "jax" else getattr(module, "from_dlpack", None)
    return array if from_dlpack is None else from_dlpack(array)


def check_beside(kind: str, name: str, place: str) -> None:
    """Raise unless arrays of a kind lie where a cache does: "cpu", or "cuda:0"."""
    where = kind.partition(" ")[2] or "cpu"
    if where == place:
        return
    got = "in CPU memory" if where == "cpu" else f"on {where}"
    if place == "cpu":
        how = f"KVCache(..., device={where!r}) keeps keys and values there"
    elif where == "cpu":
        library = kind.partition(" ")[0]
        how = {"torch": f"{name}.to({place!r})", "numpy": f"cupy.asarray({name})"}.get(library, "move it")
    else:
        how = "move it"
    here = "in CPU memory" if place == "cpu" else f"on {place}"
    raise TypeError(
        f"{name}: the cache lies {here}, and nothing is moved from one place to another; got an array {got} "
        f"({kind}): {how}"
    )


def check_place(backend: str, kind: str) -> bool:
    """Raise unless the arrays lie where the backend works; return whether they lie in CPU memory."""
    if on_device(kind):
        if backend not in ("auto", "gpu"):
            raise TypeError(
                f"q: backend={backend!r} needs arrays in CPU memory, got one on a CUDA device ({kind}); "
                "move it, or use backend='gpu' or 'auto'"
            )
        return False
    if backend == "gpu":
        move = {"torch": "q.to('cuda')", "jax": "jax.device_put(q, jax.devices('gpu')[0])"}
        raise TypeError(
            f"q: backend='gpu' needs arrays on a CUDA device, got one in CPU memory ({kind}); move all "
            f"arrays there first, for example by {move.get(kind, 'cupy.asarray(q)')}"
        )
    return True


def check_tensors(q: Any, k: Any, v: Any, kind: str) -> None:
    """Raise unless the GPU's kernels can read q, k and v, whose shapes are checked already.

    Raises
    ------
    RuntimeError, ValueError
        The device cannot be used; elements lie off the multiples of their size.
    TypeError
        The device has no bfloat16.
    """
    atom = gpu.get_atom(device_of(kind))
    for name, array in (("q", q), ("k", k), ("v", v)):
        check_aligned(array, name)
        _refuse_bfloat16(array.dtype, name, kind, atom)


def check_aligned(array: Any, name: str) -> None:
    """Raise unless each element lies at a multiple of its size."""
    size = array.dtype.itemsize
    if array.data.ptr % size or any(step % size for step in array.strides):
        raise ValueError(f"{name}: expected addresses that are multiples of {size} bytes")


def check_dtype(dtype: np.dtype[Any], place: str) -> None:
    """Raise a TypeError unless a device ("cuda:0") can keep rows of this type: bfloat16 needs Ampere."""
    _refuse_bfloat16(dtype, "dtype", place, gpu.get_atom(device_of(place)))


def _refuse_bfloat16(dtype: np.dtype[Any], name: str, where: str, atom: int) -> None:
    if atom < 80 and dtype.name == "bfloat16":
        raise TypeError(
            f"{name}: bfloat16 needs compute capability 8.0 (Ampere) or newer, and no kernels for it are in "
            f"force on {where} (atom {atom}); use float16 or float32"
        )


class _Addresses:
    """Where a device array's elements lie, for NumPy to reason about and never to read."""

    def __init__(self, array: Any) -> None:
        self.__array_interface__ = {
            "version": 3, "shape": array.shape, "strides": array.strides, "typestr": f"|V{array.itemsize}",
            "data": (int(array.data.ptr), True),
        }  # fmt: skip


def addresses(array: Any) -> NDArray[Any]:
    """Return a NumPy array of a device array's addresses; its elements must not be read."""
    return np.asarray(_Addresses(array))
