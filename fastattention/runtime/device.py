"""What the cooperative runtime needs of a device: an array module, streams, copies, and calls on the host.

Two classes have it: `CudaDevice`, a GPU through CuPy, and `NumpyDevice`, CPU memory that plays one, on which
the runtime's logic is tested where there is no GPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

from .rows import Rows

__all__ = ["Device", "HostCall", "open_device", "pitched"]


class HostCall(Protocol):
    """Work for the CPU in the middle of a device's stream: `cpu_kernels.HostStep`."""

    @property
    def function(self) -> int:
        """Address of a C function of the type of CUDA's host functions."""

    @property
    def argument(self) -> int:
        """Address that it is called with."""

    def run(self) -> None:
        """Call it here."""


class Device(Protocol):
    """A device, its memory, and the order of what happens there.

    Attributes
    ----------
    xp : module
        CuPy or NumPy.
    name : str
        "cuda:0", or "numpy".
    """

    xp: Any
    name: str

    def stream(self) -> Any:
        """Return a new stream: what is queued there happens in order, and beside other streams."""

    def release(self, stream: Any) -> None:
        """Forget a stream on which nothing is queued any more: `wait` waits for the others."""

    def use(self, stream: Any) -> AbstractContextManager[None]:
        """Let array operations, and kernels, go to a stream."""

    def record(self, stream: Any) -> Any:
        """Return an event: what was queued on the stream until now."""

    def wait_event(self, stream: Any, event: Any) -> None:
        """Let what is queued on the stream from now on wait for an event."""

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return zeros in host memory that the device can copy from and to at the bus's rate.

        Raises
        ------
        MemoryError
            There is no room; what was taken was given back.
        """

    def free_host(self, array: NDArray[Any]) -> None:
        """Give back what `host_array` returned; nobody may use it any more."""

    def copy(self, stream: Any, to: Any, source: Any) -> None:
        """Queue a copy between host and device, or within one, of equal shapes and dtypes, `pitched` both."""

    def mapped(self, array: NDArray[Any]) -> Any:
        """Return host memory as an array that `hand` and `merge` read and write where it is.

        Parameters
        ----------
        array : ndarray
            From `host_array`, or a part of such, without gaps.
        """

    def hand(self, to: Any, source: Any) -> None:
        """Queue, on the current stream, a small copy that no copy engine does.

        Copy engines take copies one after the other, whatever their streams: one that waits for the CPU in
        its stream would hold up all that is queued behind it in others.

        Parameters
        ----------
        to, source : array
            Of equal shapes and dtypes, without gaps: on the device, or `mapped`.
        """

    def call(self, stream: Any, call: HostCall) -> None:
        """Queue a call on the host; it holds nobody up but what is queued behind it."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return zeros on the device, its rows as aligned as rows can be.

        Raises
        ------
        MemoryError
            There is no room.
        """

    def append(self, rows: Rows, k: Any, v: Any) -> None:
        """Queue, on the current stream, keys and values behind those that are held, rounded to their dtype.

        Parameters
        ----------
        rows : Rows
            Their length is what it will be at once. There is room.
        k, v : array, shape (B, Hkv, S, D)
            float32, float16 or bfloat16; the last axis contiguous.
        """

    def attend(self, rows: Rows, q: Any, out: Any, lse: Any, *, causal: bool) -> None:
        """Queue, on the current stream, attention to all that is held; scores over the root of D.

        Parameters
        ----------
        rows : Rows
            Of at least one token.
        q, out : array, shape (B, Hq, S, D)
            The last axis contiguous; `out` is filled.
        lse : float32 array, shape (B, Hq, S), or None
            Likewise.
        causal : bool
            The last query stands at the last key, and sees none behind it.
        """

    def merge(self, outs: list[Any], lses: list[Any], out: Any, lse: Any) -> None:
        """Queue, on the current stream, the joining of attention over parts of the keys.

        Parameters
        ----------
        outs, lses : list of array
            (B, H, S, D) and float32 (B, H, S); on the device, or `mapped`.
        out, lse : array
            Where to. `out` may be one of the parts', `lse` not; it may be None.
        """

    def array(self, array: NDArray[Any]) -> Any:
        """Return a copy on the device."""

    def host(self, array: Any) -> NDArray[Any]:
        """Return a copy in host memory, once it is computed."""

    def normal(self, seed: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        """Return normally distributed float32 numbers, the same for the same seed."""

    def wait(self) -> None:
        """Wait until everything queued has happened, without keeping a core busy."""

    def memory(self) -> tuple[int, int]:
        """Return the bytes that are free for arrays here, and those there are in all."""

    def host_memory(self) -> int:
        """Return the bytes of host memory that `host_array` could still give."""


def open_device(name: str = "cuda") -> Device:
    """Return a device by name.

    Parameters
    ----------
    name : str, default "cuda"
        "cuda" or "gpu" for the current GPU, "cuda:1" for another, "numpy" for CPU memory that plays one.

    Raises
    ------
    TypeError, ValueError
        There is no such device.
    ImportError, RuntimeError
        There is no CuPy, no GPU, or none that CuPy can serve.
    """
    if name == "numpy":
        from .numpy_device import NumpyDevice

        return NumpyDevice()
    from ..cache_device import place_of

    place = place_of(name)
    if place is None:
        raise ValueError(f"device: expected 'cuda', 'cuda:1', ... or 'numpy', got {name!r}")
    from .cuda_device import CudaDevice

    return CudaDevice(place.number)


def pitched(array: Any) -> tuple[int, int, int]:
    """Return how a copy engine sees an array: bytes from line to line, bytes of a line, number of lines.

    The first two axes are lines, at a constant distance; the others lie without gaps.

    Raises
    ------
    ValueError
        The array does not lie so.
    """
    lines = array.shape[:2]
    width = array.dtype.itemsize
    for size, step in zip(reversed(array.shape[2:]), reversed(array.strides[2:]), strict=True):
        if size > 1 and step != width:
            raise ValueError(f"a copy of gaps: shape {array.shape}, strides {array.strides}")
        width *= size
    pitch = array.strides[1] if lines[1] > 1 else array.strides[0]
    if lines[0] > 1 and lines[1] > 1 and array.strides[0] != lines[1] * pitch:
        raise ValueError(f"a copy of uneven lines: shape {array.shape}, strides {array.strides}")
    count = lines[0] * lines[1]
    return (int(pitch) if count > 1 else width), width, count
