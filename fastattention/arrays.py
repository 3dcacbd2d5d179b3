"""Arrays in and out: NumPy, CuPy, PyTorch, JAX, or anything with ``__dlpack__``, without a copy.

A call takes arrays of one *kind*, named by the top-level module of their type ("numpy", "torch", "jax", ...),
and gives back arrays of that kind. Arrays on CUDA devices have kinds of their own, which device.py makes. No
array library is imported here: whoever passes a tensor has imported its library.
"""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .device import import_array as from_device
from .dlpack import Bfloat16Exporter, import_array

__all__ = ["BFLOAT16", "cuda_kind", "from_numpy", "to_array", "to_numpy"]

#: The bfloat16 of `ml_dtypes`, as a NumPy dtype.
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

# DLDeviceType: memory that the CPU can read (CPU, pinned CUDA host, pinned ROCm host), names for the rest.
_CPU_READABLE = frozenset((1, 3, 11))
_CUDA = frozenset((2, 13))
_DEVICE_NAMES = {
    2: "CUDA",
    4: "OpenCL",
    7: "Vulkan",
    8: "Metal",
    10: "ROCm",
    13: "CUDA managed",
    14: "oneAPI",
}

_kind_of_type: dict[type, str] = {np.ndarray: "numpy"}


def _kind(x: Any, name: str) -> str:
    """Return the kind of an array, or raise the TypeError that says why it is none."""
    cls = type(x)
    known = _kind_of_type.get(cls)
    if known is not None:
        return known
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported (their mask would be ignored); pass mask=")
    if isinstance(x, np.ndarray):
        kind = "numpy"
    else:
        roots = [base.__module__.partition(".")[0] for base in cls.__mro__]
        # A subclass of a tensor, wherever it is defined, is that library's.
        kind = "torch" if "torch" in roots else "jax" if roots[0] == "jaxlib" else roots[0]
        if kind == "jax" and "Tracer" in cls.__name__:
            raise TypeError(
                f"{name}: {cls.__name__} is a value JAX is tracing, not an array; call this outside jit, "
                "grad and vmap, or through jax.pure_callback"
            )
        if not (hasattr(cls, "__dlpack__") and hasattr(cls, "__dlpack_device__")):
            raise TypeError(
                f"{name}: expected an array (NumPy, PyTorch, JAX, or any with __dlpack__), got {cls.__name__}"
            )
    _kind_of_type[cls] = kind
    return kind


def _elsewhere(name: str, device: str) -> TypeError:
    return TypeError(
        f"{name}: expected an array in CPU memory, got one on {device}; here, kernels are those "
        "of CPUs and CUDA GPUs, and all arrays of a call lie on the same"
    )


def _refuse_gradient(x: Any, name: str) -> None:
    if x.requires_grad:
        raise TypeError(
            f"{name}: the tensor requires grad, and no gradient is computed here; pass {name}.detach()"
        )


def _from_torch(x: Any, name: str) -> NDArray[Any]:
    if x.device.type != "cpu":
        raise _elsewhere(name, str(x.device))
    _refuse_gradient(x, name)
    torch = sys.modules["torch"]
    array: NDArray[Any]
    try:
        # Tensor.numpy() has no bfloat16; a view of the bits as int16 has the same memory.
        bfloat16 = x.dtype is torch.bfloat16
        array = x.view(torch.int16).numpy().view(BFLOAT16) if bfloat16 else x.numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{name}: this {x.dtype} {x.layout} tensor cannot be read as an array: {error}"
        ) from error
    return array


def cuda_kind(x: Any, name: str = "q") -> str:
    """Return the kind of an array on a CUDA device; "" for all others, and for what is no array."""
    cls = type(x)
    if issubclass(cls, np.ndarray) or not hasattr(cls, "__dlpack_device__"):
        return ""
    library = _kind(x, name)
    if library == "torch":
        on_cuda = x.device.type == "cuda" and sys.modules["torch"].version.hip is None
        return f"torch cuda:{x.device.index}" if on_cuda else ""
    if library == "cupy" and hasattr(x, "device"):
        return f"cupy cuda:{int(x.device.id)}"
    try:
        device, number = x.__dlpack_device__()
    except (BufferError, RuntimeError, ValueError):  # to_numpy says what is wrong
        return ""
    return f"{library} cuda:{int(number)}" if int(device) in _CUDA else ""


def to_array(x: Any, name: str) -> tuple[Any, str]:
    """Return an array as `to_numpy` does, and one on a CUDA device as a CuPy array.

    Raises
    ------
    ImportError
        The array lies on a CUDA device, and there is no CuPy.
    TypeError
        As `to_numpy`; arrays on other devices than CPUs and CUDA's.
    """
    if type(x) is np.ndarray:
        return x, "numpy"
    kind = _kind(x, name)
    if not cuda_kind(x, name):
        return to_numpy(x, name)
    if kind == "torch":
        _refuse_gradient(x, name)
    return from_device(x, name, kind)


def to_numpy(x: Any, name: str) -> tuple[NDArray[Any], str]:
    """Return a NumPy view of an array, without a copy, and the array's kind.

    Parameters
    ----------
    x : array
        NumPy, PyTorch (CPU), JAX (CPU), or anything in CPU memory with ``__dlpack__``; bfloat16 included.
    name : str
        What the caller knows the array as, for error messages.

    Returns
    -------
    view : ndarray
        Same memory, shape and strides. It keeps the owner of the memory alive.
    kind : str
        "numpy", "torch", "jax", or the top-level module of another array type; `from_numpy` takes it.

    Raises
    ------
    TypeError
        When `x` is no array, lies in a device's memory, is being traced, or is a tensor that requires grad.
    """
    if type(x) is np.ndarray:
        return x, "numpy"
    kind = _kind(x, name)
    if kind == "numpy":
        return x.view(np.ndarray), kind
    if kind == "torch":
        return _from_torch(x, name), kind
    try:
        if kind == "jax":
            x.block_until_ready()  # JAX computes asynchronously; do not rely on its export to wait
        device = int(x.__dlpack_device__()[0])
        if device not in _CPU_READABLE:
            raise _elsewhere(name, f"a {_DEVICE_NAMES.get(device, f'DLPack type {device}')} device")
        return import_array(x), kind
    except (BufferError, RuntimeError, ValueError) as error:
        raise TypeError(f"{name}: {type(x).__name__} cannot be taken through DLPack: {error}") from error


def from_numpy(array: NDArray[Any], kind: str) -> Any:
    """Return a NumPy array as an array of another kind, without a copy where that library allows it.

    Parameters
    ----------
    array : ndarray
        float32, float16, bfloat16 or float64. The result shares its memory: nobody may write to it
        afterwards.
    kind : str
        As `to_numpy` returned it.

    Returns
    -------
    array
        Of that kind. A type whose library offers no ``from_dlpack`` gets the NumPy array.

    Notes
    -----
    JAX takes memory that is aligned to 64 bytes as it is, and copies what is not.
    """
    if kind == "numpy":
        return array
    library: Any = sys.modules.get(kind)
    if kind == "torch":
        if array.dtype == BFLOAT16:
            return library.from_numpy(array.view(np.int16)).view(library.bfloat16)
        return library.from_numpy(array)
    from_dlpack = library.dlpack.from_dlpack if kind == "jax" else getattr(library, "from_dlpack", None)
    if from_dlpack is None:
        return array
    return from_dlpack(Bfloat16Exporter(array) if array.dtype == BFLOAT16 else array)
