"""bfloat16 across DLPack, in both directions and without a copy.

NumPy imports and exports DLPack capsules, and gets their lifetime right, but it knows no bfloat16. So this
module leaves the capsule to NumPy and changes only the label inside: a bfloat16 tensor is presented as
uint16, taken by NumPy, and viewed as `ml_dtypes.bfloat16`; on the way out, the reverse. Nothing here ever
calls a deleter: the capsule, with the producer's deleter in it, goes from producer to consumer as if this
module were not there.

The structures are those of ``dlpack.h`` 1.x [1]_; only their fields up to the element type are declared.

References
----------
.. [1] https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["Bfloat16Exporter", "import_array"]

_UINT, _BFLOAT = 1, 4  # DLDataTypeCode


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    """DLTensor, and the start of DLManagedTensor, which begins with one."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
    ]


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned: the version and the owner come first, the tensor after them."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _element_type(capsule: Any) -> _DataType | None:
    """Return the element type inside a capsule, as a live view; None where its layout is unknown here."""
    if _is_valid(capsule, b"dltensor"):
        tensor = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
        element: _DataType = tensor.dtype
        return element
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        # Another major version may have another layout: leave it for NumPy to refuse.
        element = managed.tensor.dtype
        return element if managed.major == 1 else None
    return None


def _relabel(capsule: Any, old: int, new: int) -> bool:
    """Change a 16-bit element type `old` to `new` inside the capsule; return whether it was `old`.

    Writing is sound: a capsule's structure belongs to whoever asked for it until it is consumed.
    """
    element = _element_type(capsule)
    if element is None or (element.code, element.bits, element.lanes) != (old, 16, 1):
        return False
    element.code = new
    return True


class _Importer:
    """Pass on another exporter's capsule, with bfloat16 presented as uint16."""

    __slots__ = ("bfloat16", "source")

    def __init__(self, source: Any) -> None:
        self.source = source
        self.bfloat16 = False

    def __dlpack__(self, **kwargs: Any) -> Any:
        # A TypeError about unknown keywords (producers older than DLPack 1.0) is for NumPy: it asks again
        # without.
        capsule = self.source.__dlpack__(**kwargs)
        self.bfloat16 = _relabel(capsule, _BFLOAT, _UINT)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.source.__dlpack_device__()
        return device


def import_array(source: Any) -> NDArray[Any]:
    """Return a NumPy view of anything with ``__dlpack__`` in memory the CPU can read; bfloat16 included.

    The view keeps the producer's memory alive. Raises what the producer or NumPy raises.
    """
    importer = _Importer(source)
    array: NDArray[Any] = np.from_dlpack(importer)
    return array.view(ml_dtypes.bfloat16) if importer.bfloat16 else array


class Bfloat16Exporter:
    """Export a bfloat16 NumPy array through DLPack as what it is.

    Parameters
    ----------
    array : ndarray
        Of dtype `ml_dtypes.bfloat16`.
    """

    __slots__ = ("_bits",)

    def __init__(self, array: NDArray[Any]) -> None:
        self._bits = array.view(np.uint16)

    def __dlpack__(self, **kwargs: Any) -> Any:
        capsule = self._bits.__dlpack__(**kwargs)
        if not _relabel(capsule, _UINT, _BFLOAT):
            raise BufferError("this NumPy exports DLPack capsules of a layout unknown here")
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._bits.__dlpack_device__()
