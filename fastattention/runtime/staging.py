"""Pieces of host layers' caches on their way up: a ring of places on the device that uploads run ahead in.

Uploads need no query, so they can begin before the layers they are for: as far ahead as there are places. The
next piece goes into a place as soon as the one before has been attended to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .device import Device
from .rows import Rows

__all__ = ["Piece", "Ring"]


@dataclass(frozen=True)
class Piece:
    """Tokens [first, last) of a layer's cache in host memory, whose planes are (B, Hkv, capacity, ...)."""

    planes: tuple[Any, ...]
    first: int
    last: int


class Ring:
    """Places for pieces, filled in the order of a list.

    Parameters
    ----------
    device : Device
    stream : stream
        For uploads.
    places : sequence of Rows
        On the device, each with room for the longest piece.

    Attributes
    ----------
    bytes : int
        Sent up so far.
    """

    def __init__(self, device: Device, stream: Any, places: Sequence[Rows]) -> None:
        self._device = device
        self._places = tuple(places)
        self._stream = stream
        self._pieces: deque[Piece] = deque()
        self._sent: deque[tuple[Rows, Any]] = deque()  # places with a piece, and when it has arrived
        self._free: deque[tuple[Rows, Any]] = deque((place, None) for place in self._places)
        self.bytes = 0

    def start(self, pieces: Sequence[Piece]) -> None:
        """Begin to send pieces up, in this order; those of before are forgotten."""
        self.drop()
        self._pieces.extend(pieces)
        while self._free and self._pieces:
            self._send()

    def drop(self) -> None:
        """Forget all pieces, those that are here, too."""
        self._pieces.clear()
        while self._sent:
            self._free.append(self._sent.popleft())

    def _send(self) -> None:
        place, since = self._free.popleft()
        piece = self._pieces.popleft()
        if since is not None:
            self._device.wait_event(self._stream, since)
        for there, here in zip(place.planes, piece.planes, strict=True):
            source = here[:, :, piece.first : piece.last]
            self._device.copy(self._stream, there[:, :, : piece.last - piece.first], source)
            self.bytes += source.nbytes
        self._sent.append((place, self._device.record(self._stream)))

    def take(self, stream: Any, tokens: int) -> Rows:
        """Return the place with the next piece, of so many tokens, for work on a stream that waits for it."""
        place, arrived = self._sent.popleft()
        self._device.wait_event(stream, arrived)
        place.length = tokens
        return place

    def give_back(self, place: Rows, stream: Any) -> None:
        """Let the next piece into a place once the work queued on a stream is done with it."""
        self._free.append((place, self._device.record(stream)))
        if self._pieces:
            self._send()
