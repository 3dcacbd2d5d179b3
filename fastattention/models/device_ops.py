"""The decoder's own work on a device, in few launches: by kernels/10_decoder.cu and cuBLAS, or NumPy.

Both classes have the same functions, so that the decoder is written once. What they compute is the same, too:
in float32, rounded to the compute dtype where a matrix product reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import gpu
from ..gpu.choose import Configuration

__all__ = ["CudaOps", "NumpyOps", "Ops", "ops_for"]

Array = NDArray[Any]


class Ops(Protocol):
    """What a decoder asks of a device, queued on the stream that is current there.

    Arrays are the device's. T is the compute dtype, float32 or float16.
    """

    def upload(self, array: Array, to: Any) -> None:
        """Copy a NumPy array to a device array of the same shape and dtype, without waiting."""

    def download(self, array: Any, to: Array) -> None:
        """Copy a device array into host memory, and wait for it."""

    def embed(self, tokens: Any, embedding: Any, x: Any) -> None:
        """Take rows of an embedding.

        Parameters
        ----------
        tokens : int32 array, shape (rows,)
        embedding : array of T, shape (vocab, hidden)
        x : float32 array, shape (rows, hidden)
            Filled.
        """

    def normalise(self, x: Any, delta: Any, gain: Any, out: Any, epsilon: float) -> None:
        """Add to the residual stream, and divide its rows by their root mean square.

        Parameters
        ----------
        x : float32 array, shape (rows, hidden)
            ``x += delta``. Rows may lie apart.
        delta : array of T, shape (rows, hidden), or None
            Likewise.
        gain : float32 array, shape (hidden,), or None
            What the normalised rows are multiplied by.
        out : array of T, shape (rows, hidden)
            Filled. It may be `delta` where that has no gaps.
        epsilon : float
        """

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        """Write ``a @ b``, summed in float32: no shorter type takes its place, not TF32 either.

        Parameters
        ----------
        a : array of T, shape (M, K)
            Without gaps.
        b : array of T, shape (K, N)
            Without gaps, or the transpose of such.
        out : array of T or float32, shape (M, N)
            Without gaps.
        """

    def rotate(self, qkv: Any, rotation: Any, turned: int) -> None:
        """Turn pairs of neighbouring dimensions (2i, 2i + 1) by their position's angles (RoPE), in place.

        Parameters
        ----------
        qkv : array of T, shape (B, S, heads, D)
        rotation : float32 array, shape (S, pairs, 2)
            Cosines and sines; dimensions from ``2 * pairs`` on stay.
        turned : int
            How many heads are turned: those of queries and keys.
        """

    def gate(self, both: Any, out: Any) -> None:
        """SwiGLU: ``silu(g) * u`` of rows that hold g / 2 and u.

        Parameters
        ----------
        both : array of T, shape (rows, 2 F)
        out : array of T, shape (rows, F)
        """


def ops_for(xp: Any, dtype: Any) -> Ops:
    """Return the operations of an array module, NumPy or CuPy, in a compute dtype, for the current device."""
    return NumpyOps() if xp is np else CudaOps(np.dtype(dtype))


class NumpyOps:
    """On NumPy arrays; see `Ops`."""

    def upload(self, array: Array, to: Any) -> None:
        """Copy."""
        to[...] = array

    def download(self, array: Any, to: Array) -> None:
        """Copy."""
        to[...] = array

    def embed(self, tokens: Any, embedding: Any, x: Any) -> None:
        """Take rows of an embedding."""
        x[...] = embedding[tokens]

    def normalise(self, x: Any, delta: Any, gain: Any, out: Any, epsilon: float) -> None:
        """Add to the residual stream, and divide its rows by their root mean square."""
        if delta is not None:
            x += delta
        square = np.einsum("sh,sh->s", x, x)[:, None]
        square /= np.float32(x.shape[1])
        square += np.float32(epsilon)
        normed = x / np.sqrt(square, out=square)
        if gain is not None:
            normed *= gain
        out[...] = normed

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        """Write ``a @ b``."""
        if a.dtype == np.float32:
            np.matmul(a, b, out=out)
        else:  # NumPy would sum in float16
            out[...] = np.matmul(a.astype(np.float32), b.astype(np.float32))

    def rotate(self, qkv: Any, rotation: Any, turned: int) -> None:
        """Turn pairs by their position's angles."""
        pairs = qkv[:, :, :turned, : 2 * rotation.shape[1]]
        wide = np.ascontiguousarray(pairs, np.float32).view(np.complex64)
        pairs[...] = (wide * rotation.view(np.complex64)[:, None, :, 0]).view(np.float32)

    def gate(self, both: Any, out: Any) -> None:
        """SwiGLU of rows that hold half the gate, and up."""
        width = out.shape[1]
        half = both[:, :width].astype(np.float32)
        gated = np.tanh(half)
        gated += 1
        gated *= half
        gated *= both[:, width:]
        out[...] = gated


# Of cuBLAS and CUDA: cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType.
_COMPUTE_32F = 68
_GEMM_DEFAULT = -1
_AS_IT_IS, _TRANSPOSED = 0, 1
_DATA_TYPE = {np.dtype(np.float32): 0, np.dtype(np.float16): 2}

_ELEMENTS = {np.dtype(np.float32): "Float", np.dtype(np.float16): "Half"}
_ENTRIES = ("embed", "normalise", "rotate", "gate")
_THREADS = 256
_NULL = np.uint64(0)


class CudaOps:
    """On CuPy arrays of the current device; see `Ops`. Nothing waits but `download`.

    cuBLAS is called directly: CuPy's own `matmul` writes no float32 product of float16 matrices, which logits
    want, and takes longer on the way there.

    Raises
    ------
    ImportError, RuntimeError
        CuPy cannot be imported, there is no GPU, or the kernels cannot be compiled.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        cupy = gpu.load_cupy()
        card = gpu.card()
        macros = (("ELEMENT", _ELEMENTS[dtype]),)
        functions: list[Callable[..., None]] = [
            gpu.compiled(Configuration("10_decoder.cu", entry, macros, _THREADS, 1, 1, 0), card).function
            for entry in _ENTRIES
        ]
        self._embed, self._normalise, self._rotate, self._gate = functions
        self._cublas = cupy.cuda.cublas
        self._handle: Callable[[], int] = cupy.cuda.get_cublas_handle
        self._coefficients = np.array([0, 1], np.float32)  # cuBLAS reads them when called
        self._zero = int(self._coefficients.ctypes.data)
        self._one = self._zero + 4

    def upload(self, array: Array, to: Any) -> None:
        """Copy to the device."""
        gpu.upload(array, to.data)

    def download(self, array: Any, to: Array) -> None:
        """Copy into host memory, and wait."""
        array.get(out=to)

    def embed(self, tokens: Any, embedding: Any, x: Any) -> None:
        """Take rows of an embedding."""
        rows, hidden = x.shape
        self._embed((rows,), (_THREADS,), (tokens, embedding, x, np.int32(hidden)))

    def normalise(self, x: Any, delta: Any, gain: Any, out: Any, epsilon: float) -> None:
        """Add to the residual stream, and divide its rows by their root mean square."""
        rows, hidden = x.shape
        threads = min(1024, -(-hidden // 128) * 32)  # four elements a thread, or more
        self._normalise(
            (rows,), (threads,),
            (
                x, np.int64(x.strides[0] // 4),
                _NULL if delta is None else delta,
                np.int64(0 if delta is None else delta.strides[0] // delta.itemsize),
                _NULL if gain is None else gain, out, np.int32(hidden), np.float32(epsilon),
            ),
        )  # fmt: skip

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        """Write ``a @ b``."""
        (rows, inner), columns = a.shape, b.shape[1]
        # cuBLAS reads memory by columns: what is written is the transpose, b.T @ a.T.
        plain = b.flags.c_contiguous
        kind = _DATA_TYPE[a.dtype]
        self._cublas.gemmEx(
            self._handle(), _AS_IT_IS if plain else _TRANSPOSED, _AS_IT_IS, columns, rows, inner, self._one,
            b.data.ptr, kind, columns if plain else inner, a.data.ptr, kind, inner, self._zero,
            out.data.ptr, _DATA_TYPE[out.dtype], columns, _COMPUTE_32F, _GEMM_DEFAULT,
        )  # fmt: skip

    def rotate(self, qkv: Any, rotation: Any, turned: int) -> None:
        """Turn pairs by their position's angles."""
        batch, tokens, heads, dim = qkv.shape
        pairs = rotation.shape[1]
        self._rotate(
            (batch * tokens, -(-turned * pairs // _THREADS)), (_THREADS,),
            (
                qkv, rotation, np.int32(tokens), np.int32(heads), np.int32(turned), np.int32(dim),
                np.int32(pairs),
            ),
        )  # fmt: skip

    def gate(self, both: Any, out: Any) -> None:
        """SwiGLU of rows that hold half the gate, and up."""
        rows, width = out.shape
        # Many rows fill the GPU by themselves; then a thread has four elements.
        each = 4 if rows > 16 else 1
        blocks = -(-width // (_THREADS * each))
        self._gate((rows, blocks), (_THREADS,), (both, out, np.int32(width)))
